"""Selections that cover: rows unlike those taken already (k-center), or that stand for many others (facility location).

Both look at a shortlist of the best rows, since each step compares one row with all of them. With m candidates of
width d they hold 4·m·d bytes and take about 2·m·d FLOP for each row that is taken; facility location first takes
2·m²·d more.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gistselect.selection.selector import FloatArray, Order, PoolView, Shortlisting

GRID = 1 << 16
"""Similarities are whole parts of this, so that sums are exact and equal rows tie."""
COMPARED = 256
"""Rows compared with all others at a time."""


class KCenter(Shortlisting):
    """The best row, then each time the candidate that is farthest from all rows taken.

    Farthest-first traversal (Gonzalez 1985), a 2-approximation of the k-center problem, as in core-set selection
    (arXiv 1708.00489). Distance is `1 - similarity`; equally far rows stand by score and id.
    """

    def order(self, pool: PoolView) -> Order:
        rows = self.shortlist(pool)
        embedded = embed(pool, rows)
        # Farther than anything, so that the best row comes first.
        distance = np.full(len(rows), np.inf)
        for _ in range(len(rows)):
            row = int(distance.argmax())
            taken = yield int(rows[row])
            if taken is not False:
                distance = np.minimum(distance, GRID - similarities(embedded, row))
            distance[row] = -np.inf


class FacilityLocation(Shortlisting):
    """Each time the candidate that adds most to `Σ_i max_{j taken} max(0, similarity(i, j))` over all candidates i.

    Lazy greedy (Minoux 1978): gains only fall, so a candidate whose gain is still the highest after it was computed
    anew is the best. Equal gains stand by score and id.
    """

    def order(self, pool: PoolView) -> Order:
        rows = self.shortlist(pool)
        embedded = embed(pool, rows)
        covered = np.zeros(len(rows))
        heap = [(-gain, row) for row, gain in enumerate(_first_gains(embedded))]
        heapq.heapify(heap)
        while heap:
            row = heap[0][1]
            here = similarities(embedded, row)
            gain = float(np.maximum(here - covered, 0).sum())
            if gain < -heap[0][0]:
                heapq.heapreplace(heap, (-gain, row))
                continue
            heapq.heappop(heap)
            taken = yield int(rows[row])
            if taken is not False:
                np.maximum(covered, here, out=covered)


def embed(pool: PoolView, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """(m, Σ d) features of the rows, so that an inner product is the cosine, weighted over the spaces.

    A row without a component in a space is unlike every other there.
    """
    return np.concatenate(
        [
            _unit(points) * np.float32(np.sqrt(space.weight))
            for space, points in zip(pool.spaces, pool.points(rows), strict=True)
        ],
        axis=1,
    )


def _unit(points: NDArray[np.floating]) -> NDArray[np.float32]:
    points = np.asarray(points, dtype=np.float32)
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    return np.divide(points, norms, out=np.zeros_like(points), where=norms > 0)


def similarities(embedded: NDArray[np.float32], row: int) -> FloatArray:
    """(m,) similarities with one row, in whole parts of GRID."""
    return np.rint((embedded @ embedded[row]).astype(np.float64) * GRID)


def _first_gains(embedded: NDArray[np.float32]) -> Sequence[float]:
    """(m,) sums of each row's positive similarities, in whole parts of GRID."""
    gains: list[float] = []
    for start in range(0, len(embedded), COMPARED):
        block = embedded @ embedded[start : start + COMPARED].T
        gains += np.maximum(np.rint(block.astype(np.float64) * GRID), 0).sum(axis=0).tolist()
    return gains
