"""What a selector is: an order of rows, from their scores or features, that knows no budget.

An order proposes rows one at a time, best first, and is told of each whether it was taken; a budget and all other
constraints are gates (`selection.gates`). So every selector works under every constraint, and one loop serves all.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from gistselect.errors import DataError
from gistselect.shares import rows_of

BLOCK = 1 << 16
"""Ranks whose ties are resolved together."""

FloatArray = NDArray[np.float64]
Blocks = Iterator[tuple[int, FloatArray]]
"""A matrix (n, width) a piece at a time: the position of the piece's first row, and the piece."""
Order = Generator[int, bool | None, None]
"""Positions of the rows, best first, as many as are asked for. What is sent back says whether the row was taken;
nothing sent means that it was."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """One space of features, at one checkpoint: for GIST of one target, for LESS of all."""

    queries: FloatArray
    """(n_query, d)"""
    weight: float
    """Weights of all spaces add up to 1."""


class PoolView(Protocol):
    """The scored rows of a pool that may not fit in memory, by position: ascending in the pool, from 0."""

    @property
    def best(self) -> FloatArray:
        """(n,) best score of each row over targets."""
        ...

    @property
    def targets(self) -> Sequence[str]:
        """Names of the columns of `scores`."""
        ...

    def column(self, target: str) -> FloatArray:
        """(n,) scores for one target."""
        ...

    def scores(self) -> Blocks:
        """Scores (n, n_target)."""
        ...

    def ids(self, positions: NDArray[np.intp]) -> list[str]:
        """Ids of the rows at these positions, ascending."""
        ...

    def id_ranks(self) -> NDArray[np.integer]:
        """(n,) place of each row among all, sorted by id."""
        ...

    @property
    def spaces(self) -> Sequence[Space]:
        """Where rows and queries are points. Empty for a representation without such."""
        ...

    def points(self, positions: NDArray[np.intp]) -> list[NDArray[np.floating]]:
        """Of each space, the features (k, d) of these rows, in the given order."""
        ...

    def query_scores(self) -> Blocks:
        """Cosines (n, n_query) with each query, weighted over its spaces."""
        ...

    def expect(self, positions: NDArray[np.intp]) -> None:
        """These rows will probably be proposed, in this order: what gates need of them can be read together."""
        ...


class Selector(BaseModel, ABC):
    """A way to put rows in order; its fields are its options."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @property
    def needs_points(self) -> bool:
        """Whether rows are compared as points with each other or with single queries, beyond their scores."""
        return False

    @abstractmethod
    def order(self, pool: PoolView) -> Order:
        """The rows, best first; equal ones by id, so that nothing depends on the order of the pool.

        Raises `DataError` on a score that is not finite: a NaN must never rank.
        """


class Shortlisting(Selector):
    """A selector whose cost grows with the square of what it looks at, and which therefore looks at the best only."""

    candidates: float = Field(default=0.2, gt=0)
    """How many of the best rows are looked at: a share of those with a score, or (from 2) a number."""

    @field_validator("candidates")
    @classmethod
    def _share_or_number(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError("above 1 it is a number of rows, and whole")
        return value

    @property
    def needs_points(self) -> bool:
        return True

    def shortlist(self, pool: PoolView) -> NDArray[np.intp]:
        """(m,) the best rows, best first."""
        best = pool.best
        wanted = rows_of(self.candidates, len(best)) if self.candidates <= 1 else int(self.candidates)
        rows = np.fromiter(itertools.islice(by_keys([best], pool), wanted), dtype=np.intp)
        pool.expect(rows)
        return rows


def by_keys(keys: Sequence[NDArray[np.floating]], pool: PoolView) -> Order:
    """Positions by the first of the keys (n,), highest first, equal ones by the next, and at last by id.

    Raises `DataError` on a key that is not finite.
    """
    for key in keys:
        if not np.isfinite(key).all():
            raise DataError(f"{int((~np.isfinite(key)).sum())} scores are not finite; they cannot be ranked.")
    order = np.lexsort([-key for key in reversed(keys)]) if len(keys) > 1 else np.argsort(-keys[0], kind="stable")
    start = 0
    while start < len(order):
        stop = _end_of_tie(order, min(start + BLOCK, len(order)), keys)
        block = _ties_by_id(order[start:stop], keys, pool)
        pool.expect(block)
        for position in block.tolist():  # noqa: UP028 - a list cannot be told what was taken
            yield position
        start = stop


def _end_of_tie(order: NDArray[np.intp], stop: int, keys: Sequence[NDArray[np.floating]]) -> int:
    """The first rank from `stop` on whose row differs from the one before."""
    while stop < len(order):
        ranked = order[stop - 1 : stop + BLOCK]
        differs = np.logical_or.reduce([key[ranked[1:]] != key[ranked[:-1]] for key in keys])
        if differs.any():
            return stop + int(differs.argmax())
        stop += len(differs)
    return stop


def _ties_by_id(block: NDArray[np.intp], keys: Sequence[NDArray[np.floating]], pool: PoolView) -> NDArray[np.intp]:
    """The positions of a block in which every tie is whole, ties sorted by id."""
    same = np.logical_and.reduce([key[block[1:]] == key[block[:-1]] for key in keys])
    tied = np.concatenate([[False], same]) | np.concatenate([same, [False]])
    if not tied.any():
        return block
    places = np.flatnonzero(tied)
    group = np.concatenate([[0], np.cumsum(~same)])[places]
    sorted_block = block.copy()
    if len(places) > BLOCK:
        # One tie of many rows, as where nothing was found: their ids are not made text of Python.
        ranks = pool.id_ranks()[block[places]]
        sorted_block[places] = block[places][np.lexsort([ranks, group])]
        return sorted_block
    positions = np.sort(block[places])
    names = dict(zip(positions.tolist(), pool.ids(positions), strict=True))
    ranked = sorted(zip(group.tolist(), block[places].tolist(), strict=True), key=lambda one: (one[0], names[one[1]]))
    sorted_block[places] = [position for _, position in ranked]
    return sorted_block
