"""Greedy information projection: rows that together span what the queries need (arXiv 2603.13790).

The projection of the query matrix onto the span of the selected rows grows row by row, as in matching pursuit. In the
coordinates of a task subspace this needs no gradient: with m candidates of width d it holds 8·m·d bytes and takes
about 4·m·d FLOP for each row that is taken.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gistselect.selection.selector import FloatArray, Order, PoolView, Shortlisting, Space

WITHIN = 1e-8
"""Share of a row's squared length outside the span, below which it lies within."""
LEAST = 1e-9
"""Share of the queries' energy below which a row adds nothing; gains are told apart to this."""


class Gip(Shortlisting):
    """Each time the candidate that adds most to the share of the queries' energy in the span of the rows taken.

    Over several spaces the shares are averaged with their weights. A span is full after as many rows as it has
    dimensions: then a new one is begun with the rows that are left. Equal gains stand by score and id.
    """

    def order(self, pool: PoolView) -> Order:
        rows = self.shortlist(pool)
        spans = [
            _Span(np.asarray(points, dtype=np.float64), space)
            for space, points in zip(pool.spaces, pool.points(rows), strict=True)
        ]
        left = np.ones(len(rows), dtype=np.bool_)
        is_new = True
        while left.any():
            gains = np.sum([span.gains for span in spans], axis=0)
            gains = np.where(left, np.rint(gains / LEAST), -1)
            row = int(gains.argmax())
            if gains[row] <= 0 and not is_new:
                for span in spans:
                    span.restart()
                is_new = True
                continue
            left[row] = False
            taken = yield int(rows[row])
            if taken is not False:
                # A row that adds nothing to an empty span leaves it so.
                is_new = is_new and bool(gains[row] <= 0)
                for span in spans:
                    span.add(row)


class _Span:
    """The span of the rows taken, in one space."""

    def __init__(self, points: FloatArray, space: Space) -> None:
        self._points = points
        self._lengths = (points**2).sum(axis=1)
        energy = float((space.queries**2).sum())
        # Q'Q = L L' makes |Q x|² = |L' x|², with no more columns than dimensions.
        left, values, _ = np.linalg.svd(space.queries.T, full_matrices=False)
        self._factor = left * values * np.sqrt(space.weight / energy if energy > 0 else 0.0)
        self.restart()

    def restart(self) -> None:
        """The empty span."""
        self._basis = np.zeros((0, self._points.shape[1]))
        self._outside = self._lengths.copy()
        self._needed = self._points @ self._factor

    @property
    def gains(self) -> FloatArray:
        """(m,) what each row would add: `|Q x|² / |x|²` of its part x outside the span, as a share of `|Q|²`."""
        outside = self._outside > WITHIN * self._lengths
        energy = (self._needed**2).sum(axis=1)
        return np.divide(energy, self._outside, out=np.zeros_like(energy), where=outside)

    def add(self, row: int) -> None:
        """Widen the span by a row, if it does not lie within."""
        if not self._outside[row] > WITHIN * self._lengths[row]:
            return
        direction = self._points[row]
        for _ in range(2):  # Twice, since once leaves rounding errors in a nearly dependent row.
            direction = direction - self._basis.T @ (self._basis @ direction)
        direction = direction / np.linalg.norm(direction)
        self._basis = np.concatenate([self._basis, direction[None]])
        along = self._points @ direction
        self._outside = np.maximum(self._outside - along**2, 0)
        self._needed -= along[:, None] * (direction @ self._factor)


def captured(points: NDArray[np.floating], queries: FloatArray) -> float:
    """Share of the queries' energy (n_query, d) in the span of rows (k, d): what the selection makes large."""
    left, values, _ = np.linalg.svd(np.asarray(points, dtype=np.float64).T, full_matrices=False)
    basis = left[:, values > np.sqrt(WITHIN) * max(values.max(initial=0), 1e-300)]
    return float(((queries @ basis) ** 2).sum() / (queries**2).sum())
