"""Records to text, and the spans of it that the model is asked to produce."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gistselect.errors import ConfigError, DataError
from gistselect.types import Message, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""Characters [start, end) of a text."""

FIXED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
"""Put before templates that print today's date: the same rows must give the same text tomorrow."""

PROBE = Record(
    id="probe",
    source="probe",
    row=0,
    messages=(Message(role="user", content="Question?"), Message(role="assistant", content="Answer.")),
)
"""The plainest conversation; a chat template that cannot express it is refused before any row is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """The text of a record and the spans of it that the model is asked to produce."""

    text: str
    supervised: tuple[Span, ...]


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


def load_template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """`tulu`, `model` (the chat template of the tokenizer), or the path of a Jinja chat template.

    Raises `ConfigError` if there is no such template, or if the tokenizer lacks what it needs.
    """
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
    tokens = {key: str(token) for key, token in tokenizer.special_tokens_map.items() if not isinstance(token, list)}
    template = JinjaTemplate(name=name, source=source, special_tokens=tokens)
    try:
        template.render(PROBE)
    except DataError as error:
        raise ConfigError(f"cannot use the template {name!r}: {error}.") from error
    return template


@dataclass(frozen=True, kw_only=True)
class Tulu:
    """The template that LESS and GIST use for every model (METHOD section 5).

    Supervised: what follows the header line of an assistant turn: content, end of sequence, final newline.
    """

    eos: str
    name: str = "tulu"
    version: int = 1

    @property
    def digest(self) -> str:
        return _digest(self.name, self.version, self.eos)

    def render(self, record: Record) -> Rendered:
        if record.plain:
            return _render_plain(record, self.eos)
        if _is_open(record):
            head = "".join(self._header(m) + self._body(m, m.content) for m in record.messages[:-1])
            return _render_answer(record, head + "<|assistant|>\n", self.eos + "\n")
        text, spans = "", []
        for message in record.messages:
            text += self._header(message)
            start = len(text)
            text += self._body(message, message.content.strip())
            if message.role == "assistant":
                spans.append((start, len(text)))
        return Rendered(text=text, supervised=tuple(spans))

    def _header(self, message: Message) -> str:
        return f"<|{message.role}|>\n"

    def _body(self, message: Message, content: str) -> str:
        return content + (self.eos if message.role == "assistant" else "") + "\n"


@dataclass(frozen=True, kw_only=True)
class JinjaTemplate:
    """A chat template in Jinja, rendered by transformers in its sandbox.

    Supervised: what stands in `{% generation %}` blocks; without them, what each assistant turn adds to the
    text of the turns before it and the generation prompt. Templates that rewrite earlier turns are refused.
    """

    name: str
    source: str
    special_tokens: dict[str, str]
    version: int = 1

    @property
    def digest(self) -> str:
        return _digest("jinja", self.version, self.source, self.special_tokens)

    def render(self, record: Record) -> Rendered:
        if record.plain:
            return _render_plain(record, self.special_tokens["eos_token"])
        if _is_open(record):
            head, _ = self._apply(record.messages[:-1], prompt=True)
            return _render_answer(record, head, self.special_tokens["eos_token"])
        if re.search(r"\{%-?\s*generation\s*-?%\}", self.source):
            text, spans = self._apply(record.messages, track=True)
        else:
            text, spans = self._split_turns(record.messages)
        if not spans:
            raise DataError(f"the chat template {self.name!r} marks no token of it as the assistant's")
        return Rendered(text=text, supervised=tuple(spans))

    def _split_turns(self, messages: tuple[Message, ...]) -> tuple[str, list[Span]]:
        whole, _ = self._apply(messages)
        spans = []
        for i, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before, _ = self._apply(messages[:i], prompt=True)
            through, _ = self._apply(messages[: i + 1])
            if not (whole.startswith(through) and through.startswith(before) and len(before) < len(through)):
                raise DataError(
                    f"the chat template {self.name!r} rewrites what stands around turn {i + 1}, so it cannot "
                    "say which tokens are the assistant's; use --template tulu, or a Jinja file with "
                    "{% generation %} blocks"
                )
            spans.append((len(before), len(through)))
        return whole, spans

    def _apply(
        self, messages: tuple[Message, ...], *, prompt: bool = False, track: bool = False
    ) -> tuple[str, list[Span]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        options: dict[str, Any] = {"add_generation_prompt": prompt, **self.special_tokens}
        try:
            texts, spans = render_jinja_template(
                [[{"role": message.role, "content": message.content} for message in messages]],
                chat_template=FIXED_DATE * ("strftime_now" in self.source) + self.source,
                return_assistant_tokens_mask=track,
                **options,
            )
        except (TemplateError, TypeError) as error:
            raise DataError(f"the chat template {self.name!r} refuses the conversation: {error}") from error
        return texts[0], [(int(start), int(end)) for start, end in spans[0] if start < end] if track else []


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _is_open(record: Record) -> bool:
    """Whether the last answer is a task query's: verbatim after a prefix, and the only supervised one."""
    return bool(record.prefix) or not record.closed


def _render_answer(record: Record, head: str, end: str) -> Rendered:
    if record.messages[-1].role != "assistant":
        raise DataError("a query must end with the assistant turn that holds its answer")
    head += record.prefix
    text = head + record.messages[-1].content + (end if record.closed else "")
    return Rendered(text=text, supervised=((len(head), len(text)),))


def _render_plain(record: Record, eos: str) -> Rendered:
    """One space at the seam of prompt and completion if none is there; an added one belongs to the answer."""
    prompt = record.messages[0].content + record.prefix
    completion = record.messages[1].content
    seam = "" if not prompt or prompt[-1].isspace() or completion[:1].isspace() else " "
    text = prompt + seam + completion + (eos if record.closed else "")
    return Rendered(text=text, supervised=((len(prompt), len(text)),))
