"""Chat templates in Jinja as models ship them: the answers are found in the whole rendering of a conversation.

Every conversation is rendered twice, as it is and with marks around its texts. If the two renderings are equal but for
the marks, the marks say where each text stands, whatever the template does with earlier turns. An answer begins where
the generation prompt after the turn before it ends, and ends with what closes it as a last turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gistselect.data.marks import NONCHARACTERS, TOOLS, Marks, Placed, What, everywhere
from gistselect.data.templates import PROBE, THINKING_OPENS, Rendered, Span, Written, digest, is_query, render_plain
from gistselect.data.told import as_dict, as_parts, forms
from gistselect.errors import DataError
from gistselect.types import Message, Record

FIXED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
"""Put before templates that print today's date: the same rows must give the same text tomorrow."""

_TAG_OR_CHARACTER = r"<[^<>\s]{1,60}>|."
_FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What a sandboxed template can raise, besides Jinja's own errors, for a conversation it was not written for."""

_OMITTED = {"thinking": "reasoning", "call": "calls", "tools": "tools"}
"""What people read for what a template leaves out."""

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A conversation as the template shows it."""

    text: str
    placed: tuple[Placed, ...]
    """Each text of the row, in the order of the rendering."""
    lost: tuple[tuple[int, What], ...]
    """Turn and kind of each text that is not shown."""
    generated: tuple[Span, ...] = ()
    """What stands in `{% generation %}` blocks."""

    @property
    def content(self) -> tuple[Span, ...]:
        return tuple((start, end) for start, end, _ in self.placed)

    @property
    def end(self) -> int:
        """Where the last text of the row ends."""
        return max((end for _, end, _ in self.placed), default=0)


@dataclass(frozen=True, kw_only=True)
class JinjaTemplate:
    """A chat template in Jinja, rendered by transformers in its sandbox.

    Supervised: what stands in `{% generation %}` blocks; without them, each assistant turn after its header, with
    reasoning, calls and what closes the turn. A row is refused, with the reason, if the template leaves out what its
    context says, its calls, or its tools, or has no place for reasoning.
    """

    name: str
    source: str
    special_tokens: dict[str, str]
    control_tokens: tuple[str, ...] = ()
    """Strings that the tokenizer reads as special tokens; see `templates.control_tokens`."""
    omit_unshown: bool = False
    """Use rows without the reasoning, calls and tools that are not shown, instead of refusing them."""
    version: int = 3

    @property
    def digest(self) -> str:
        omits = ("omit",) * self.omit_unshown
        return digest("jinja", self.version, self.source, self.special_tokens, self.control_tokens, *omits)

    def render(self, record: Record) -> Rendered:
        if record.plain:
            return render_plain(record, self.special_tokens["eos_token"])
        if is_query(record):
            return self._query(record)
        shown = self._show(record.messages, record.tools)
        unshown = self._losses(record, shown)
        spans = self._generated(record, shown) if self.marks_answers else self._answers(record, shown)
        if not spans:
            raise DataError(f"the chat template {self.name!r} marks no token of it as the assistant's")
        return Rendered(text=shown.text, supervised=tuple(spans), content=shown.content, unshown=unshown, complete=True)

    # Queries.

    def _query(self, record: Record) -> Rendered:
        context = record.messages[:-1]
        shown = self._show(context, record.tools, prompt=True)
        prompt = shown.text[shown.end :]
        if (thinking := THINKING_OPENS.search(prompt)) and thinking[1] is None:
            # An answer does not stand inside the reasoning that this prompt opens: take the turn as it is shown.
            whole = self._show(record.messages, record.tools)
            if starts := [start for start, _, turn in whole.placed if turn == len(context)]:
                kept = tuple((start, end, turn) for start, end, turn in whole.placed if end <= min(starts))
                shown = _Shown(text=whole.text[: min(starts)], placed=kept, lost=whole.lost)
        self._losses(record, shown)
        written = Written(text=shown.text, content=list(shown.content))
        return written.query(record, self.special_tokens["eos_token"], complete=True)

    # Where the answers are.

    @cached_property
    def marks_answers(self) -> bool:
        """Whether the template itself says which tokens are an assistant's, in `{% generation %}` blocks."""
        return bool(re.search(r"\{%-?\s*generation\s*-?%\}", self.source))

    def _generated(self, record: Record, shown: _Shown) -> list[Span]:
        """The marked blocks that hold a supervised turn; a block without a text belongs to the turn before it."""
        kept = []
        for start, end in shown.generated:
            inside = [turn for first, last, turn in shown.placed if first < end and last > start]
            before = [turn for _, last, turn in shown.placed if last <= start]
            owners = [turn for turn in inside or before[-1:] if turn >= 0]
            if owners and all(_is_supervised(record.messages[turn]) for turn in owners):
                kept.append((start, end))
        return kept

    def _answers(self, record: Record, shown: _Shown) -> list[Span]:
        spans = []
        for turn, message in enumerate(record.messages):
            if not _is_supervised(message):
                continue
            own = [placed for placed in shown.placed if placed[2] == turn]
            if message.tool_calls:
                own = own[: self._placed_alone(record, turn, shown)]
            if not own:
                raise DataError(f"the answer of turn {turn + 1} has no text but thinking tags")
            others = [placed for placed in shown.placed if placed not in own]
            first, last = min(start for start, _, _ in own), max(end for _, end, _ in own)
            before = max((end for _, end, _ in others if end <= first), default=0)
            opening, closing = self._around(record, turn)
            lead = self._common(opening, shown.text[before:first])
            start = before + lead if lead or opening == "" else first
            if self._header and shown.text.startswith(self._header, start, first):
                start += len(self._header)
            after = min((begin for begin, _, _ in others if begin >= last), default=None)
            end = len(shown.text) if after is None else last + self._close(shown.text[last:after], closing)
            spans.append((start, end))
        return spans

    def _placed_alone(self, record: Record, turn: int, shown: _Shown) -> int | None:
        """How many texts of a call are its own: templates name the function again where the tool answers.

        As many as where nothing follows the call, but for those that the template drops once something does.
        """
        try:
            alone = self._show(record.messages[: turn + 1], record.tools)
        except DataError:
            return None
        dropped = sum(of == turn for of, _ in shown.lost) - sum(of == turn for of, _ in alone.lost)
        return sum(of == turn for _, _, of in alone.placed) - dropped

    def _around(self, record: Record, turn: int) -> tuple[str | None, str | None]:
        """What the template says between the turn before and this answer, and after it if nothing follows."""
        messages = record.messages[: turn + 1]
        if record.tools or any(message.tool_calls for message in messages):
            return self._measure(messages, record.tools)
        alike = tuple(_alike(one, with_space=i >= turn - 1) for i, one in enumerate(messages))
        if alike not in self._measured:
            self._measured[alike] = self._measure(alike, ())
        return self._measured[alike]

    @cached_property
    def _measured(self) -> dict[tuple[Message, ...], tuple[str | None, str | None]]:
        return {}

    def _measure(self, messages: tuple[Message, ...], tools: Tools) -> tuple[str | None, str | None]:
        opening = self._tail(messages[:-1], tools, prompt=True)
        if opening is not None and (thinking := THINKING_OPENS.search(opening)):
            opening = opening[: thinking.start()]
        return opening, self._tail(messages, tools, prompt=False)

    @cached_property
    def _header(self) -> str:
        """What opens an answer after a question; where a tool has answered a prompt may leave it to the answer."""
        opening, _ = self._measure(PROBE.messages, ())
        closing = self._tail(PROBE.messages[:-1], (), prompt=False) or ""
        return opening.removeprefix(closing) if opening and opening.startswith(closing) else ""

    def _tail(self, messages: tuple[Message, ...], tools: Tools, prompt: bool) -> str | None:
        try:
            shown = self._show(messages, tools, prompt=prompt)
        except DataError:
            return None
        return shown.text[shown.end :]

    @cached_property
    def _pieces(self) -> Callable[[str], list[str]]:
        return re.compile("|".join([*map(re.escape, self.control_tokens), _TAG_OR_CHARACTER]), re.DOTALL).findall

    def _common(self, one: str | None, other: str) -> int:
        """Characters that the two have in common from their start, in whole control tokens and tags."""
        length = 0
        for piece, same in zip(self._pieces(one or ""), self._pieces(other), strict=False):
            if piece != same:
                break
            length += len(piece)
        return length

    def _close(self, between: str, closing: str | None) -> int:
        """Characters of what follows an answer that close it.

        Those that also close it as the last turn. Where a template closes the last turn by another token, or leaves
        that to the next turn, through the first control token or tag after them.
        """
        shared = self._common(closing, between)
        if between[:shared].strip() and self._closes_last_turn:
            return shared
        length = shared
        for piece in self._pieces(between[shared:]):
            length += len(piece)
            if len(piece) > 1:
                return length
        return shared

    @cached_property
    def _closes_last_turn(self) -> bool:
        return bool((self._tail(PROBE.messages, (), prompt=False) or "").strip())

    # Rendering.

    def _losses(self, record: Record, shown: _Shown) -> str:
        """What is left out, if rows are used all the same. Raises `DataError` if not, and for lost words always."""
        last = len(record.messages) - 1
        omitted: dict[str, None] = {}
        for turn, what in shown.lost:
            if what == "detail" or (what == "thinking" and turn < last and self._shows_reasoning):
                continue  # of earlier turns templates drop the reasoning by design
            if self.omit_unshown and what != "text":
                omitted[_OMITTED["tools" if turn == TOOLS else what]] = None
                continue
            if what == "thinking":
                lost = f"the reasoning of turn {turn + 1}"
            elif what == "text":
                lost = f"turn {turn + 1} ({record.messages[turn].role})"
            else:
                lost = "its tools" if turn == TOOLS else f"the call in turn {turn + 1}"
            remedy = "use --template tulu" + ", or --unshown omit" * (what != "text")
            raise DataError(f"the chat template {self.name!r} does not show {lost}; {remedy}")
        return " and ".join(omitted)

    @cached_property
    def _shows_reasoning(self) -> bool:
        question = Message(role="user", content="Question?")
        answer = Message(role="assistant", content="Answer.", reasoning="A thought.")
        return "A thought." in self._show((question, answer), ()).text

    def _show(self, messages: tuple[Message, ...], tools: Tools, *, prompt: bool = False) -> _Shown:
        """The whole rendering with the place of every text in it. Raises `DataError` if they cannot be told apart."""
        shown = refusal = None
        for form in forms(messages):
            try:
                shown = self._find([as_dict(message, *form) for message in messages], tools, prompt)
            except DataError as error:
                refusal = refusal or error
                continue
            if not any(what == "call" for _, what in shown.lost):
                break
        if shown is None:
            raise refusal or DataError("it has no form that a template could show")
        return shown

    def _find(self, messages: list[dict[str, Any]], tools: Tools, prompt: bool) -> _Shown:
        text, _ = self._apply(messages, tools, prompt)
        if NONCHARACTERS.search(text):
            raise DataError("it holds one of the noncharacters U+FDD0 to U+FDEF, which no text may")
        for answers_only in (False, True):
            marks = Marks(control=self._control, answers_only=answers_only)
            marked = [marks.message(message, turn) for turn, message in enumerate(messages)]
            try:
                rendered, blocks = self._apply(marked, marks.tools(tools), prompt, track=self.marks_answers)
            except DataError:
                continue
            reading = marks.read(rendered)
            if reading.text == text:
                placed = reading.placed + (everywhere(messages, text) if answers_only else [])
                return _Shown(
                    text=text,
                    placed=tuple(sorted(placed)),
                    lost=tuple(reading.lost),
                    generated=tuple((reading.position(start), reading.position(end)) for start, end in blocks),
                )
        raise DataError(
            f"the chat template {self.name!r} rewrites its texts, so it cannot say which tokens are the assistant's; "
            "use --template tulu, or a Jinja file that shows them as they are"
        )

    @cached_property
    def _control(self) -> re.Pattern[str] | None:
        return re.compile("|".join(map(re.escape, self.control_tokens))) if self.control_tokens else None

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether the template, as of a model that also sees images, shows a content only as a list of parts."""
        probe = [{"role": "user", "content": "Question?"}]
        shows: dict[bool, bool] = {}
        for in_parts in (False, True):
            try:
                shows[in_parts] = "Question?" in self._render(probe, (), False, False, in_parts)[0]
            except DataError:
                shows[in_parts] = False
        return shows[True] and not shows[False]

    def _apply(
        self, messages: list[dict[str, Any]], tools: Tools, prompt: bool, track: bool = False
    ) -> tuple[str, list[Span]]:
        return self._render(messages, tools, prompt, track, self._wants_parts)

    def _render(
        self, messages: list[dict[str, Any]], tools: Tools, prompt: bool, track: bool, in_parts: bool
    ) -> tuple[str, list[Span]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        options: dict[str, Any] = {"add_generation_prompt": prompt, **self.special_tokens}
        try:
            texts, spans = render_jinja_template(
                [[as_parts(message) for message in messages] if in_parts else messages],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=FIXED_DATE * ("strftime_now" in self.source) + self.source,
                return_assistant_tokens_mask=track,
                **options,
            )
        except (TemplateError, *_FAILURES) as error:
            raise DataError(f"the chat template {self.name!r} refuses the conversation: {error}") from error
        return texts[0], [(int(start), int(end)) for start, end in spans[0] if start < end] if track else []


def _alike(message: Message, *, with_space: bool) -> Message:
    """A message that a template treats as it does this one, but for what its text says."""
    said = message.content.strip()
    before, after = message.content.split(said) if said and with_space and message.content != said else ("", "")
    return Message(
        role=message.role,
        content=f"{before}Text.{after}" if said else "",
        reasoning="Thought." if message.reasoning.strip() else "",
    )


def _is_supervised(message: Message) -> bool:
    return message.role == "assistant" and message.supervised
