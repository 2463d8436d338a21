"""The nouns of the project. Plain frozen data, without torch, files or behaviour that could surprise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation, with all that a chat template can show of it."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str
    reasoning: str = ""
    """What an assistant thought before it answered (`reasoning_content` or `thinking` in data sets)."""
    tool_calls: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    """Calls of an assistant, as OpenAI writes them: `{"type": "function", "function": {"name": …, "arguments": …}}`."""
    name: str = ""
    """Who speaks within the role, such as the tool that answers."""
    tool_call_id: str = ""
    """The call that a tool's turn answers."""
    supervised: bool = True
    """False for an assistant turn that is context only. Turns of other roles are never supervised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a row stands in its pool, and the proof that it is the same row."""

    part: int
    """Index of the file or data set in `Pool.parts`."""
    offset: int
    """First byte of the line in the decompressed file; the row's number in parts that are not made of lines."""
    length: int
    """Bytes of the row: of its line without the line feed, or of the JSON object that it is written as."""
    crc: int
    """CRC-32 of those bytes."""
    number: int | None = None
    """What messages call the row in its file, see `Part.unit`; None where it was read from a store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One row of a pool or a target, in one shape whatever its file looked like.

    Three kinds of text are told apart, because they are rendered differently (METHOD section 5):
    a conversation (`messages`), plain text in which only the completion is supervised (`plain`), and a
    task query whose last answer is opened by an unsupervised `prefix` and not closed by an end-of-sequence token.
    """

    id: str
    """Unique in its pool: the user's id, or one made from the content; repeated ones get their file and place added."""
    source: str
    """Name of the data set the row belongs to."""
    row: int
    """Zero-based position of the row in the whole pool (or target)."""
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    """Functions that the assistant may call, as JSON schemas."""
    plain: bool = False
    """True for prompt/completion records: rendered as text, without a chat template."""
    prefix: str = ""
    """Unsupervised start of the last assistant turn, such as `The answer is:`."""
    closed: bool = True
    """False if the last assistant turn is not followed by an end-of-sequence token."""
    group: str = ""
    """The group of a target record: an MMLU subject, a language; empty for an undivided target."""
    user_id: str | None = None
    """The row's own id as text; None if it has none."""
    place: Place | None = None
    """None for records that are no row of a pool."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """A row that cannot be scored, and why. It is listed in `quarantine.jsonl`, never dropped in silence."""

    id: str
    source: str
    row: int
    reason: str
    user_id: str | None = None
    """The row's own id as text; None if it has none, or was read from a store."""
    place: Place | None = None
    """None for rows that are no row of a pool."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A record as the model sees it."""

    id: str
    input_ids: NDArray[np.int32]
    """(t,) token ids."""
    supervised: NDArray[np.bool_]
    """(t,) True where the token is a label. Token i is predicted from i-1, so position 0 never counts."""
    n_cut: int = 0
    """Tokens lost to truncation; 0 if the record is whole."""
    unshown: str = ""
    """What the chat template leaves out of the record, such as `reasoning`; empty if nothing."""

    @property
    def n_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def n_supervised(self) -> int:
        return int(self.supervised[1:].sum())


class Task(Protocol):
    """A target: where its queries come from, and what evaluates it."""

    name: str
    version: int

    def queries(self) -> Sequence[Record]:
        """The target's validation examples, each with its `group`."""
        ...

    def evaluation(self) -> Sequence[Record]:
        """Held-out items with reference answers, disjoint from the queries; empty if the target has none."""
        ...
