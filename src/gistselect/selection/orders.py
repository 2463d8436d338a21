"""Orders that need nothing but scores. They stream: what they hold is a few numbers a row."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gistselect.errors import DataError
from gistselect.selection.selector import Order, ScoreView, Selector

BLOCK = 1 << 16
"""Ranks whose ties are resolved together."""


class TopK(Selector):
    """Rows by their best score for any target."""

    name: ClassVar[str] = "top_k"

    def order(self, scores: ScoreView) -> Order:
        return top_k(scores)


def top_k(scores: ScoreView) -> Order:
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
        # A list itself cannot be told whether the row was taken.
        for position in _by_id(order[start:stop], best, scores):  # noqa: UP028
            yield position
        start = stop


def _by_id(block: NDArray[np.intp], best: NDArray[np.float64], scores: ScoreView) -> list[int]:
    """The positions of a block in which every tie is whole, ties sorted by id."""
    values = best[block]
    same = values[1:] == values[:-1]
    tied = np.concatenate([[False], same]) | np.concatenate([same, [False]])
    if not tied.any():
        return block.tolist()
    positions = np.sort(block[tied])
    names = dict(zip(positions.tolist(), scores.ids(positions), strict=True))
    ranked = sorted(zip(block.tolist(), values.tolist(), strict=True), key=lambda one: (-one[1], names.get(one[0], "")))
    return [position for position, _ in ranked]
