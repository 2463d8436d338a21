"""Records to text, and the spans of it that the model is asked to produce."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gistselect.errors import ConfigError, DataError
from gistselect.types import Message, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""Characters [start, end) of a text."""

PROBE = Record(
    id="probe",
    source="probe",
    row=0,
    messages=(Message(role="user", content="Question?"), Message(role="assistant", content="Answer.")),
)
"""The plainest conversation; a chat template that cannot express it is refused before any row is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """The text of a record, and what stands where in it."""

    text: str
    supervised: tuple[Span, ...]
    """What the model is asked to produce."""
    content: tuple[Span, ...]
    """What the row itself says, in order: no control token is read from there."""
    unshown: str = ""
    """What the template leaves out of the row, of which the user wants it used all the same; empty if nothing."""
    complete: bool = False
    """True if the text begins and ends as the model expects it, so that the tokenizer adds no token of its own."""


class Template(Protocol):
    """How a record becomes one string."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def digest(self) -> str:
        """SHA-256 over all that the text depends on besides the record."""
        ...

    def render(self, record: Record) -> Rendered:
        """Raises `DataError` for a record that the template cannot express."""
        ...


def load_template(name: str, tokenizer: PreTrainedTokenizerBase, *, omit_unshown: bool = False) -> Template:
    """`tulu`, `model` (the chat template of the tokenizer), or the path of a Jinja chat template.

    With `omit_unshown` a row is used without the reasoning, calls and tools that a Jinja template does not show.

    Raises `ConfigError` if there is no such template, or if the tokenizer lacks what it needs.
    """
    from gistselect.data.chat_templates import JinjaTemplate

    if not isinstance(tokenizer.eos_token, str):
        raise ConfigError(f"the tokenizer {tokenizer.name_or_path!r} has no eos_token to close answers with; set it.")
    if name == "tulu":
        return Tulu(eos=tokenizer.eos_token)
    try:
        source = tokenizer.get_chat_template() if name == "model" else Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no template {name!r}; known: tulu, model, or the path of a Jinja file.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use the template {name!r}: {error}. Or use tulu, which fits any model.") from error
    template = JinjaTemplate(
        name=name,
        source=source,
        special_tokens={
            key: str(one) for key, one in tokenizer.special_tokens_map.items() if not isinstance(one, list)
        },
        control_tokens=control_tokens(tokenizer),
        omit_unshown=omit_unshown,
    )
    try:
        template.render(PROBE)
    except DataError as error:
        raise ConfigError(f"cannot use the template {name!r}: {error}.") from error
    return template


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The strings that the tokenizer reads as one special token wherever they stand; the longest first."""
    special = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(sorted(special, key=lambda token: (-len(token), token)))


@dataclass(frozen=True, kw_only=True)
class Tulu:
    """The template that LESS and GIST use for every model (METHOD section 5).

    Supervised: what follows the header line of an assistant turn: content, end of sequence, final newline.

    Beyond the published format, as text: tools stand at the end of the (first) system turn, one JSON object a line
    between `<tools>` and `</tools>`; reasoning before an answer between `<think>` and `</think>`; each call after it
    as one JSON object with name and arguments between `<tool_call>` and `</tool_call>`; the answer of a tool in a
    turn of the role `tool`.
    """

    eos: str
    name: str = "tulu"
    version: int = 1

    @property
    def digest(self) -> str:
        return digest(self.name, self.version, self.eos)

    def render(self, record: Record) -> Rendered:
        if record.plain:
            return render_plain(record, self.eos)
        is_open = is_query(record)
        written = Written()
        messages = _with_tools(record)
        for message in messages[:-1] if is_open else messages:
            written.add(f"<|{message.role}|>\n")
            start = len(written)
            self._body(written, message, _said(message) if is_open else _said(message).strip())
            if message.role == "assistant" and message.supervised and not is_open:
                written.supervised.append((start, len(written)))
        if is_open:
            written.add("<|assistant|>\n")
            return written.query(record, self.eos + "\n")
        return written.rendered()

    def _body(self, written: Written, message: Message, content: str) -> None:
        written.add(content, own=True)
        written.add((self.eos if message.role == "assistant" else "") + "\n")


@dataclass(kw_only=True)
class Written:
    """A text in the making."""

    text: str = ""
    supervised: list[Span] = field(default_factory=list)
    content: list[Span] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.text)

    def add(self, text: str, *, own: bool = False) -> None:
        """Append what the template says, or what is the row's own."""
        if own and text:
            self.content.append((len(self.text), len(self.text) + len(text)))
        self.text += text

    def query(self, record: Record, end: str, *, complete: bool = False) -> Rendered:
        """The text with the last answer of a task query, verbatim after its prefix: the only supervised one.

        Raises `DataError` if the query does not end with an answer.
        """
        if record.messages[-1].role != "assistant":
            raise DataError("a query must end with the assistant turn that holds its answer")
        self.add(record.prefix, own=True)
        start = len(self)
        self.add(record.messages[-1].content, own=True)
        self.add(end if record.closed else "")
        self.supervised = [(start, len(self))]
        return self.rendered(complete=complete)

    def rendered(self, *, complete: bool = False) -> Rendered:
        return Rendered(
            text=self.text, supervised=tuple(self.supervised), content=tuple(self.content), complete=complete
        )


def _with_tools(record: Record) -> tuple[Message, ...]:
    if not record.tools:
        return record.messages
    lines = "\n".join(["<tools>", *(_json(tool) for tool in record.tools), "</tools>"])
    first = record.messages[0]
    if first.role == "system":
        return (Message(role="system", content=f"{first.content.strip()}\n\n{lines}"), *record.messages[1:])
    return (Message(role="system", content=lines), *record.messages)


def _said(message: Message) -> str:
    """Reasoning, content and calls of a turn as one text."""
    if not message.reasoning and not message.tool_calls:
        return message.content
    said = [message.content] if message.content.strip() else []
    for call in message.tool_calls:
        function = call.get("function", call)
        told = {"name": function.get("name"), "arguments": function.get("arguments")}
        said.append(f"<tool_call>\n{_json(told)}\n</tool_call>")
    text = "\n".join(said)
    return f"<think>\n{message.reasoning.strip()}\n</think>\n\n{text}" if message.reasoning.strip() else text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def digest(*parts: object) -> str:
    """SHA-256 of what a template depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def is_query(record: Record) -> bool:
    """Whether the last answer is a task query's: verbatim after a prefix, and the only supervised one."""
    return bool(record.prefix) or not record.closed


def render_plain(record: Record, eos: str) -> Rendered:
    """One space at the seam of prompt and completion if none is there; an added one belongs to the answer."""
    written = Written()
    prompt, completion = record.messages[0].content + record.prefix, record.messages[1].content
    written.add(prompt, own=True)
    start = len(written)
    written.add("" if not prompt or prompt[-1].isspace() or completion[:1].isspace() else " ")
    written.add(completion, own=True)
    written.add(eos if record.closed else "")
    written.supervised = [(start, len(written))]
    return written.rendered()


_THINK = r"[\w:|▁｜]*think[\w|▁｜]*[>\]▷]\s*"
THINKING_OPENS = re.compile(rf"[<\[◁]{_THINK}([<\[◁]/{_THINK})?\Z", re.IGNORECASE)
"""What opens a block of reasoning, or an empty one, at the end of a prompt; the group is what closes it."""
