"""Gates: what a row must pass to be selected, and the one loop that asks them.

A budget is a gate that closes when it is full. The others refuse single rows, each for a reason that is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gistselect.selection.selector import Order


class Gate(Protocol):
    """One constraint on a selection, which knows what was taken so far."""

    @property
    def reason(self) -> str:
        """Why rows are refused, in words for people."""
        ...

    def admits(self, position: int) -> bool:
        """Whether the row may be taken now."""
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


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What was selected, and what was refused on the way."""

    positions: NDArray[np.intp]
    """(k,) best first."""
    dropped: Mapping[str, int]
    """Rows refused by each gate, by reason; rows that the order never came to are not among them."""
    is_full: bool
    """False if the rows came to an end before the budget did."""


def choose(order: Order, budget: Budget, gates: Sequence[Gate]) -> Chosen:
    """Take rows from an order until the budget is full; each must pass every gate, and the order is told."""
    chosen: list[int] = []
    dropped: Counter[str] = Counter()
    position = next(order, None)
    full = budget.is_full
    while position is not None and not full:
        refused = next((gate.reason for gate in gates if not gate.admits(position)), None)
        if refused is not None:
            dropped[refused] += 1
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
                position = order.send(refused is None)
            except StopIteration:
                position = None
    return Chosen(positions=np.asarray(chosen, dtype=np.intp), dropped=dict(dropped), is_full=full)


class RowBudget:
    """So many rows."""

    def __init__(self, n_rows: int) -> None:
        self.left = n_rows

    def has_room(self, position: int) -> bool:
        return self.left > 0

    def take(self, position: int) -> None:
        self.left -= 1

    @property
    def is_full(self) -> bool:
        return self.left == 0
