"""Selections that match the queries' distribution: nearest neighbours, and optimal transport (TSDS, arXiv 2410.11303).

Every query hands its share 1/M of the mass to the rows nearest to it; rows stand by the mass they receive. Rows that
received some are taken first, then the mass is handed out again over the rows that are left. With m candidates and M
queries they hold 16·m·M bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gistselect.selection.cover import embed
from gistselect.selection.selector import FloatArray, Order, PoolView, Shortlisting

MOST_NEIGHBOURS = 1000
"""Most rows that a query hands its mass to."""
GRAIN = 1e-12
"""Masses are told apart to this, so that the order of a sum decides nothing."""


class NearestNeighbours(Shortlisting):
    """Rows by the number of queries that have them among their nearest (TSDS, KNN-Uniform)."""

    neighbours: int = Field(default=10, ge=1, le=MOST_NEIGHBOURS)
    """Rows that each query hands its mass to, in equal parts."""

    def order(self, pool: PoolView) -> Order:
        return _rounds(self.shortlist(pool), pool, None, self.neighbours, 0.0)


class OptimalTransport(Shortlisting):
    """Rows by the mass that they receive in the transport that TSDS calls optimal.

    It minimises `α/C Σ γ_ij d_ij + (1-α) M max_ij ρ_j γ_ij` over γ with `Σ_j γ_ij = 1/M`: near rows against an even
    spread. d is `1 - cosine`, C the mean of all d, and ρ_j a row's density, which makes near-duplicates share what one
    would get. The optimum gives each query an equal part of K neighbours (`ρ = 1`), for the best whole K.
    """

    alpha: float = Field(default=0.6, ge=0, le=1)
    """Weight of nearness (1) against an even spread (0)."""
    kernel: float = Field(default=0.0, ge=0)
    """Distance within which rows count as near-duplicates: ρ_j = Σ_k max(0, 1 - (d_jk / kernel)²), over candidates
    that some query may reach; 0 counts each row as itself alone."""

    def order(self, pool: PoolView) -> Order:
        return _rounds(self.shortlist(pool), pool, self.alpha, MOST_NEIGHBOURS, self.kernel)


def _rounds(rows: NDArray[np.intp], pool: PoolView, alpha: float | None, most: int, kernel: float) -> Order:
    """Rows by their mass, round by round; those of equal mass in the order of the shortlist."""
    embedded = embed(pool, rows)
    distances = 1 - _query_cosines(pool, rows)
    scale = float(distances.mean()) or 1.0
    left = np.arange(len(rows))
    while len(left):
        density = densities(embedded[left], distances[left], most, kernel)
        mass = transported(distances[left], density, alpha, most, scale)
        order = np.argsort(-np.rint(mass / GRAIN), kind="stable")
        order = order[: int((mass[order] > 0).sum())]
        for place in order.tolist():
            yield int(rows[left[place]])
        left = np.delete(left, order)


def transported(distances: FloatArray, density: FloatArray, alpha: float | None, most: int, scale: float) -> FloatArray:
    """Mass (m,) that each row receives, for distances (m, M) and densities (m,); equally near rows in their order.

    Without `alpha` each query's mass goes to `most` neighbours.
    """
    n_rows, n_query = distances.shape
    reach = min(n_rows, most)
    nearest = np.argsort(distances, axis=0, kind="stable")[:reach].T
    near = np.take_along_axis(distances.T, nearest, axis=1)
    parts = 1 / density[nearest]
    # Where query i has filled its first k rows, it has handed out room[i, k] parts at cost[i, k].
    room = np.concatenate([np.zeros((n_query, 1)), np.cumsum(parts, axis=1)], axis=1)
    cost = np.concatenate([np.zeros((n_query, 1)), np.cumsum(near * parts, axis=1)], axis=1)
    widest = max(1, int(np.floor(room[:, -1].min() + 1e-9)))
    neighbours = np.arange(1, widest + 1)
    best = widest
    if alpha is not None:
        mean = np.mean([np.interp(neighbours, *pair) for pair in zip(room, cost, strict=True)], axis=0) / neighbours
        best = int(np.argmin(alpha / scale * mean + (1 - alpha) / neighbours)) + 1
    given = np.clip(best - room[:, :-1], 0, parts) / best / n_query
    mass = np.zeros(n_rows)
    np.add.at(mass, nearest.reshape(-1), given.reshape(-1))
    return mass


def _query_cosines(pool: PoolView, rows: NDArray[np.intp]) -> FloatArray:
    """(m, M) cosine of each row with each query."""
    ascending = np.sort(rows)
    pieces = []
    for start, block in pool.query_scores():
        low, high = np.searchsorted(ascending, [start, start + len(block)])
        pieces.append(block[ascending[low:high] - start])
    return np.concatenate(pieces)[np.searchsorted(ascending, rows)]


def densities(embedded: NDArray[np.float32], distances: FloatArray, most: int, kernel: float) -> FloatArray:
    """(m,) near-duplicates of each row among those that some query may reach, itself included."""
    density = np.ones(len(embedded))
    if kernel == 0:
        return density
    reach = min(len(embedded), most)
    near = np.unique(np.argsort(distances, axis=0, kind="stable")[:reach])
    for start in range(0, len(near), 1024):
        block = near[start : start + 1024]
        apart = np.clip(1 - (embedded[block] @ embedded[near].T).astype(np.float64), 0, None)
        density[block] = np.maximum(1 - (apart / kernel) ** 2, 0).sum(axis=1)
    return density
