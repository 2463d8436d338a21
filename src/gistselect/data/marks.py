"""Marks around the texts of a conversation, to find them again in whatever a chat template makes of it."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

_FRONT, _BACK, _END = "\ufde0", "\ufde1", "\ufde2"
_FIRST_DIGIT = 0xFDD0
_MARK = re.compile(f"([{_FRONT}{_BACK}])([\ufdd0-\ufddf]+){_END}")
NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")
"""What marks are made of: Unicode keeps these code points free of any use in texts that are exchanged."""

_THINKING_TAGS = re.compile(r"(</?think>)")
TOOLS = -1
"""The turn that texts of tools are said to belong to, and texts that a template shows again elsewhere."""

What = Literal["text", "thinking", "call", "tools", "detail"]
Placed = tuple[int, int, int]
"""(start, end, turn) of a text of the row in the rendering."""


@dataclass(kw_only=True)
class Marks:
    """Numbers texts and puts marks around them, inside their white space.

    Texts between thinking tags are marked apart, since templates cut there. Of calls and tools one name is marked to
    see that they are shown, and whatever holds a control token.
    """

    control: re.Pattern[str] | None
    """What the tokenizer would read as a control token."""
    answers_only: bool = False
    """Mark no text of other roles, for templates that look at how those begin or end."""
    marked: list[tuple[str, int, What]] = field(default_factory=list)
    """(text, turn, what it is) by number."""

    def message(self, told: Mapping[str, Any], turn: int) -> dict[str, Any]:
        """A message for a template, with marks."""
        is_answer, content = told["role"] == "assistant", told["content"]
        changed: dict[str, Any] = {}
        if content and (is_answer or not self.answers_only):
            pieces = _THINKING_TAGS.split(content) if is_answer else [content]
            last = len(pieces) - 1
            changed["content"] = "".join(
                piece if i % 2 else self._put(piece, turn, "text" if i == last else "thinking")
                for i, piece in enumerate(pieces)
            )
        if reasoning := told.get("reasoning_content"):
            changed["reasoning_content"] = changed["thinking"] = self._put(reasoning, turn, "thinking")
        if calls := told.get("tool_calls"):
            changed["tool_calls"] = [self._function(call, turn, "call") for call in calls]
        if name := told.get("name"):
            changed["name"] = self._detail(name, turn)
        return {**told, **changed}

    def tools(self, tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Tools for a template, with marks."""
        return [self._function(tool, TOOLS, "tools") for tool in tools]

    def _function(self, described: Mapping[str, Any], turn: int, what: What) -> dict[str, Any]:
        marked = self._detail(described, turn)
        function = described.get("function")
        if isinstance(function, Mapping) and isinstance(name := function.get("name"), str):
            marked["function"]["name"] = self._put(name, turn, what)
        return marked

    def _detail(self, value: Any, turn: int) -> Any:
        """The value with marks around every text in it that holds a control token."""
        if isinstance(value, str):
            return self._put(value, turn, "detail") if self.control and self.control.search(value) else value
        if isinstance(value, Mapping):
            return {self._detail(key, turn): self._detail(one, turn) for key, one in value.items()}
        return [self._detail(one, turn) for one in value] if isinstance(value, list | tuple) else value

    def _put(self, text: str, turn: int, what: What) -> str:
        core = text.strip()
        if not core:
            return text
        number = "".join(chr(_FIRST_DIGIT + int(digit, 16)) for digit in f"{len(self.marked):x}")
        self.marked.append((core, turn, what))
        start = text.index(core)
        return f"{text[:start]}{_FRONT}{number}{_END}{core}{_BACK}{number}{_END}{text[start + len(core) :]}"

    def read(self, rendered: str) -> Reading:
        """The rendering without marks, and what they say."""
        pieces, ends, removed = [], [], [0]
        hits: list[tuple[bool, int, int]] = []
        last = length = 0
        for mark in _MARK.finditer(rendered):
            pieces.append(rendered[last : mark.start()])
            length += mark.start() - last
            last = mark.end()
            number = int("".join(f"{ord(digit) - _FIRST_DIGIT:x}" for digit in mark[2]), 16)
            hits.append((mark[1] == _FRONT, number, length))
            ends.append(last)
            removed.append(removed[-1] + len(mark[0]))
        pieces.append(rendered[last:])
        text = "".join(pieces)
        seen = {number for _, number, _ in hits}
        return Reading(
            text=text,
            placed=self._placed(hits, text),
            lost=[(turn, what) for number, (_, turn, what) in enumerate(self.marked) if number not in seen],
            position=lambda marked: marked - removed[bisect_right(ends, marked)],
        )

    def _placed(self, hits: Sequence[tuple[bool, int, int]], text: str) -> list[Placed]:
        """One mark of two is enough: templates cut at either end."""
        found: list[tuple[int, int, int]] = []
        opened: dict[int, int] = {}
        for is_front, number, position in hits:
            core, _, _ = self.marked[number]
            if is_front:
                opened[number] = position
            elif number in opened:
                found.append((opened.pop(number), position, number))
            else:
                found.append((position - _shared(core[::-1], text[:position][::-1]), position, number))
        for number, position in opened.items():
            core, _, _ = self.marked[number]
            found.append((position, position + _shared(core, text[position:]), number))
        placed: list[Placed] = []
        shown: set[int] = set()
        for start, end, number in sorted(found):
            turn = self.marked[number][1]
            is_elsewhere = number in shown and placed[-1][2] != turn
            placed.append((start, end, TOOLS if is_elsewhere else turn))
            shown.add(number)
        return placed


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What marks say about a rendering."""

    text: str
    placed: list[Placed]
    lost: list[tuple[int, What]]
    """(turn, what it is) of each marked text that is not shown at all."""
    position: Callable[[int], int]
    """Where a position of the marked rendering lies in the text."""


def _shared(one: str, other: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def everywhere(messages: list[dict[str, Any]], text: str) -> list[Placed]:
    """Every place that the texts of other roles could stand at, for want of marks around them."""
    return [
        (found.start(), found.end(), turn)
        for turn, message in enumerate(messages)
        if message["role"] != "assistant" and (core := (message["content"] or "").strip())
        for found in re.finditer(re.escape(core), text)
    ]
