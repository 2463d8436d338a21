"""Gates: what a row must pass to be selected, and the one loop that asks them.

A budget is a gate that closes when it is full. The others refuse single rows, each for a reason that is kept.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gistselect.selection.selector import Order

Known = TypeVar("Known", contravariant=True)


class Gate(Protocol):
    """One constraint on a selection, which knows what was taken so far."""

    @property
    def reason(self) -> str:
        """Why rows are refused, in words for people."""
        ...

    def admits(self, position: int) -> bool:
        """Whether the row may be taken now; asked of each row once, after the gates before this one admitted it."""
        ...

    def take(self, position: int) -> None:
        """The row was taken."""
        ...


class Budget(Protocol):
    """How much is selected."""

    def has_room(self, position: int) -> bool:
        """Whether the row still fits. The first that does not ends the selection."""
        ...

    def take(self, position: int) -> None:
        """The row was taken."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether nothing more can be taken."""
        ...


class Seen(Protocol[Known]):
    """What was taken so far, by which later rows are told to be alike."""

    def holds(self, one: Known, /) -> bool: ...

    def add(self, one: Known, /) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What was selected, and what was refused on the way."""

    positions: NDArray[np.intp]
    """(k,) best first."""
    refused: Mapping[str, NDArray[np.intp]]
    """Rows refused by each gate, by reason, in the order in which they came; rows that the order never came to are
    not among them."""
    is_full: bool
    """False if the rows came to an end before the budget did."""

    @property
    def dropped(self) -> dict[str, int]:
        """Number of rows refused, by reason."""
        return {reason: len(rows) for reason, rows in self.refused.items()}


def choose(order: Order, budget: Budget, gates: Sequence[Gate]) -> Chosen:
    """Take rows from an order until the budget is full; each must pass every gate, and the order is told."""
    chosen: list[int] = []
    refused: dict[str, array[int]] = {}
    position = next(order, None)
    full = budget.is_full
    while position is not None and not full:
        reason = next((gate.reason for gate in gates if not gate.admits(position)), None)
        if reason is not None:
            refused.setdefault(reason, array("q")).append(position)
        elif not budget.has_room(position):
            full = True
            break
        else:
            for gate in (budget, *gates):
                gate.take(position)
            chosen.append(position)
        full = budget.is_full
        if not full:
            try:
                position = order.send(reason is None)
            except StopIteration:
                position = None
    return Chosen(
        positions=np.asarray(chosen, dtype=np.intp),
        refused={reason: np.asarray(rows, dtype=np.intp) for reason, rows in refused.items()},
        is_full=full,
    )


class Room:
    """A budget of so many rows, or of so many tokens. The first row that does not fit ends the selection.

    So a larger budget's selection begins with that of a smaller one, and no short rows fill the last gap.
    """

    def __init__(self, total: int, costs: NDArray[np.integer] | None = None) -> None:
        self.left = total
        self._costs = costs

    def cost(self, position: int) -> int:
        """Rows or tokens that a row takes."""
        return 1 if self._costs is None else int(self._costs[position])

    def has_room(self, position: int) -> bool:
        return self.cost(position) <= self.left

    def take(self, position: int) -> None:
        self.left -= self.cost(position)

    @property
    def is_full(self) -> bool:
        return self.left <= 0


class SourceMost:
    """At most so much of each source. As in a budget of tokens, the first row that does not fit ends its source."""

    reason: str = "of a source that has its most (--source-max)"

    def __init__(self, most: Mapping[int, int], codes: NDArray[np.integer], budget: Room) -> None:
        self._left, self._codes, self._budget = dict(most), codes, budget
        self.unused = 0
        """What sources may have, but their next row did not fit into."""

    def admits(self, position: int) -> bool:
        source = int(self._codes[position])
        left = self._left.get(source)
        if left is None or self._budget.cost(position) <= left:
            return True
        self.unused += left
        self._left[source] = 0
        return False

    def take(self, position: int) -> None:
        source = int(self._codes[position])
        if source in self._left:
            self._left[source] -= self._budget.cost(position)


class SourceLeast:
    """At least so much of each source: what they still need is kept for them.

    A row is taken while the budget has room for it beside all that is kept for the other sources. So whatever the
    order, the minima are met if the rows are there, and of the selections that meet them this is the best by rank. The
    first row of a source that does not fit into what is kept for it and what is free ends its claim: in tokens a
    minimum is met up to one row.
    """

    reason: str = "their place is kept for another source (--source-min)"

    def __init__(self, least: Mapping[int, int], codes: NDArray[np.integer], budget: Room) -> None:
        self.needed = dict(least)
        """What each source still has to get."""
        self._codes, self._budget = codes, budget
        self._kept = sum(least.values())
        self._ended = 0
        self._shortest: int | None = None

    def admits(self, position: int) -> bool:
        if self._kept == 0:
            return True
        source, cost = int(self._codes[position]), self._budget.cost(position)
        own = self.needed.get(source, 0)
        if self._kept - own + cost <= self._budget.left:
            return True
        self._shortest = min(cost, self._shortest or cost)
        self._kept -= own
        self._ended += own
        if own:
            self.needed[source] = 0
        return False

    @property
    def unused(self) -> int:
        """What may be left of the budget in the end: ends of claims, and less than any row that was refused."""
        return self._ended + max(0, (self._shortest or 1) - 1)

    def take(self, position: int) -> None:
        source = int(self._codes[position])
        if own := self.needed.get(source, 0):
            met = min(own, self._budget.cost(position))
            self.needed[source] -= met
            self._kept -= met


class Distinct(Generic[Known]):
    """No row that is alike to one taken before, so that of duplicates the best ranked stays."""

    reason: str = "alike to a row that was selected (--dedup)"

    def __init__(self, of: Callable[[int], Known | None], seen: Seen[Known]) -> None:
        """`of` tells what a row is compared by; None for a row that is alike to no other."""
        self._of, self._seen = of, seen

    def admits(self, position: int) -> bool:
        known = self._of(position)
        return known is None or not self._seen.holds(known)

    def take(self, position: int) -> None:
        if (known := self._of(position)) is not None:
            self._seen.add(known)


class Apart:
    """No row that shares a passage with what the model is to be judged by."""

    reason: str = "sharing a passage with an item (--decontaminate)"

    def __init__(self, sharing: NDArray[np.bool_]) -> None:
        """`sharing` (n,) says which rows do."""
        self._sharing = sharing

    def admits(self, position: int) -> bool:
        return not self._sharing[position]

    def take(self, position: int) -> None:
        """Nothing to remember."""
