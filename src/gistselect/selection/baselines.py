"""Selections without any signal, which every selection has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LENGTH_BINS = 20


def random_rows(n_rows: int, n_pool: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Positions (n_rows,) drawn uniformly without replacement."""
    return rng.choice(n_pool, size=n_rows, replace=False)


def random_rows_within(total: int, costs: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.intp]:
    """Positions drawn uniformly without replacement, of rows that cost (n_pool,) tokens, up to the first that does not
    fit into `total`."""
    order = rng.permutation(len(costs))
    return order[: int(np.searchsorted(np.cumsum(costs[order]), total, side="right"))]


def length_matched_rows(
    lengths: NDArray[np.integer], chosen: NDArray[np.intp], rng: np.random.Generator
) -> NDArray[np.intp]:
    """Random positions whose lengths are distributed as those of the `chosen` rows, to the bin.

    `lengths` (n_pool,) are token counts; bins hold equal parts of the pool. This separates what a selection
    teaches from what its longer or shorter rows teach anyhow.
    """
    edges = np.quantile(lengths, np.linspace(0, 1, LENGTH_BINS + 1)[1:-1])
    bins = np.searchsorted(edges, lengths, side="right")
    drawn = [
        rng.choice(np.flatnonzero(bins == one), size=count, replace=False)
        for one, count in zip(*np.unique(bins[chosen], return_counts=True), strict=True)
    ]
    return np.concatenate(drawn)
