"""What was found in the parts of a pool, said once for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gistselect.types import Message

MOST_NAMES = 1000
"""Different columns that are counted; a file with more has no table in it."""


@dataclass(kw_only=True)
class Detected:
    """How the rows of one part were read."""

    name: str
    """The file or data set."""
    n_rows: int = 0
    n_rejected: int = 0
    n_repeated_ids: int = 0
    """Rows whose own id an earlier row of the pool has; they are used under a longer one."""
    n_renamed: int = 0
    """These, and rows without an id that say the same as an earlier one."""
    shapes: Counter[str] = field(default_factory=Counter)
    """Rows read by shape and columns, such as `alpaca (instruction, output, input)`."""
    unread: Counter[str] = field(default_factory=Counter)
    """Rows that have a value in a column (or a key of their turns) that has no place here."""
    example: str = ""
    """The first row read, shortened."""

    @property
    def described(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "shapes": dict(self.shapes), "unread": dict(self.unread)}

    @classmethod
    def restored(cls, described: Mapping[str, Any]) -> Detected:
        """From `described`."""
        counters = {name: Counter(described[name]) for name in ("shapes", "unread")}
        return cls(**{**described, **counters})

    def count_unread(self, names: Iterable[str], n_rows: int = 1) -> None:
        """Count rows with values in these columns."""
        for name in names:
            if name in self.unread or len(self.unread) < MOST_NAMES:
                self.unread[name] += n_rows

    def add(self, other: Detected) -> None:
        """Count what comes next too."""
        self.n_rows += other.n_rows
        self.n_rejected += other.n_rejected
        self.n_repeated_ids += other.n_repeated_ids
        self.n_renamed += other.n_renamed
        self.shapes.update(other.shapes)
        for name, count in other.unread.items():
            self.count_unread([name], count)
        self.example = self.example or other.example

    @property
    def lines(self) -> list[str]:
        """Sentences for people: one of the shapes with an example, one of each thing that was not used."""
        read = " and ".join(f"{count:,} as {shape}" for shape, count in self.shapes.most_common()) or "none"
        lines = [f"{self.name}: {self.n_rows:,} rows, {read}{f'; the first: {self.example}' if self.example else ''}"]
        if self.n_rejected:
            lines.append(f"{self.name}: {self.n_rejected:,} rows cannot be used; quarantine.jsonl says why")
        if self.n_repeated_ids:
            lines.append(
                f"{self.name}: {self.n_repeated_ids:,} rows repeat the id of an earlier row; theirs got longer"
            )
        for column, count in sorted(self.unread.items()):
            lines.append(f"{self.name}: {column!r} is not read; {count:,} rows have it (--columns gives it a place)")
        return lines


def together(parts: Sequence[Detected]) -> Detected:
    """What was found in many parts, counted as one."""
    whole = Detected(name=f"{len(parts)} files")
    for part in parts:
        whole.add(part)
    return whole


def shown(messages: tuple[Message, ...], limit: int = 60) -> str:
    """A conversation in one short line."""

    def one(message: Message) -> str:
        said = message.content or ("a call" if message.tool_calls else "")
        return f"{message.role}: {said if len(said) <= limit else said[:limit] + '…'!r}"

    first = [message for message in messages if message.role != "system"][:2]
    return " → ".join(one(message) for message in first)
