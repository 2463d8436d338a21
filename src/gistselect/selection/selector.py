"""What a selector is: an order of rows, from their scores or features, that knows no budget.

An order proposes rows one at a time, best first, and is told of each whether it was taken; a budget and all other
constraints are gates (`selection.gates`). So every selector works under every constraint, and one loop serves all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Order = Generator[int, bool | None, None]
"""Positions of the rows, best first, as many as are asked for. What is sent back says whether the row was taken;
nothing sent means that it was."""


class ScoreView(Protocol):
    """The scores of a pool that may not fit in memory."""

    @property
    def best(self) -> NDArray[np.float64]:
        """(n,) best score of each row over targets."""
        ...

    def ids(self, positions: NDArray[np.intp]) -> list[str]:
        """Ids of the rows at these positions, ascending."""
        ...


class Selector(BaseModel, ABC):
    """A way to put rows in order; its fields are its options."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: ClassVar[str]

    @abstractmethod
    def order(self, scores: ScoreView) -> Order:
        """The rows, best first; equal ones by id, so that nothing depends on the order of the pool.

        Raises `DataError` on a score that is not finite: a NaN must never rank.
        """
