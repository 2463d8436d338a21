"""From scores to an order of rows: which comes first, whatever the budget. Shared by every representation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gistselect.errors import DataError

BLOCK = 1 << 16
"""Ranks whose ties are resolved together."""


class ScoreView(Protocol):
    """The scores of a pool that may not fit in memory."""

    @property
    def best(self) -> NDArray[np.float64]:
        """(n,) best score of each row over targets."""
        ...

    def ids(self, positions: NDArray[np.intp]) -> list[str]:
        """Ids of the rows at these positions, ascending."""
        ...


Order = Callable[[ScoreView], Iterator[int]]
"""Positions of the rows, best first; as many as are asked for."""


def top_k(scores: ScoreView) -> Iterator[int]:
    """Rows by their best score for any target (GIST section 4, LESS section 4).

    Ties break by id, so that a selection is a function of its inputs and not of the order of the pool.
    Raises `DataError` on a score that is not finite: a NaN must never rank.
    """
    best = scores.best
    if not np.isfinite(best).all():
        raise DataError(f"{int((~np.isfinite(best)).sum())} scores are not finite; they cannot be ranked.")
    order = np.argsort(-best, kind="stable")
    start = 0
    while start < len(order):
        stop = min(start + BLOCK, len(order))
        while stop < len(order) and best[order[stop]] == best[order[stop - 1]]:
            stop += 1
        yield from _by_id(order[start:stop], best, scores)
        start = stop


def _by_id(block: NDArray[np.intp], best: NDArray[np.float64], scores: ScoreView) -> Iterator[int]:
    """The positions of a block in which every tie is whole, ties sorted by id."""
    values = best[block]
    same = values[1:] == values[:-1]
    tied = np.concatenate([[False], same]) | np.concatenate([same, [False]])
    if not tied.any():
        yield from block.tolist()
        return
    positions = np.sort(block[tied])
    names = dict(zip(positions.tolist(), scores.ids(positions), strict=True))
    ranked = sorted(zip(block.tolist(), values.tolist(), strict=True), key=lambda one: (-one[1], names.get(one[0], "")))
    yield from (position for position, _ in ranked)
