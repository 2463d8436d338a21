"""The nouns of the project. Plain frozen data, without torch, files or behaviour that could surprise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One row of a pool or a target, in one shape whatever its file looked like.

    Three kinds of text are told apart, because they are rendered differently (METHOD section 5):
    a conversation (`messages`), plain text in which only the completion is supervised (`plain`), and a
    task query whose last answer is opened by an unsupervised `prefix` and not closed by an end-of-sequence token.
    """

    id: str
    source: str
    """Name of the data set the row belongs to."""
    row: int
    """Zero-based position of the row in the whole pool (or target)."""
    messages: tuple[Message, ...]
    plain: bool = False
    """True for prompt/completion records: rendered as text, without a chat template."""
    prefix: str = ""
    """Unsupervised start of the last assistant turn, such as `The answer is:`."""
    closed: bool = True
    """False if the last assistant turn is not followed by an end-of-sequence token."""
    group: str = ""
    """The group of a target record: an MMLU subject, a language; empty for an undivided target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """A row that cannot be scored, and why. It is listed in `quarantine.jsonl`, never dropped in silence."""

    id: str
    source: str
    row: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A record as the model sees it."""

    id: str
    input_ids: NDArray[np.int32]
    """(t,) token ids."""
    supervised: NDArray[np.bool_]
    """(t,) True where the token is a label. Token i is predicted from i-1, so position 0 never counts."""

    @property
    def n_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def n_supervised(self) -> int:
        return int(self.supervised[1:].sum())


@dataclass(frozen=True, kw_only=True)
class ScoreMatrix:
    """Scores of pool rows for targets. Rows carry their ids; columns are targets."""

    ids: NDArray[np.object_]
    """(n,) record ids."""
    targets: tuple[str, ...]
    """n_target names, `task` or `task/group`."""
    scores: NDArray[np.float64]
    """(n, n_target); finite."""


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


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What was selected, best first, with everything needed to use it or to question it."""

    ids: tuple[str, ...]
    scores: NDArray[np.float64]
    """(k,) score of each selected row for its best target."""
    best_targets: tuple[str, ...]
    rows: tuple[dict[str, Any], ...] = field(repr=False)
    """The selected rows as they stand in the pool."""
    output: str
    """The run folder, with every file behind the selection."""

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    @property
    def dataset(self) -> Any:
        """The selected rows as a `datasets.Dataset`, in rank order."""
        from datasets import Dataset

        return Dataset.from_list(list(self.rows))
