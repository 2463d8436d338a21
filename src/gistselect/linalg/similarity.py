"""Alignment of pool features with target features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gistselect.errors import ConfigError, DataError

FloatArray = NDArray[np.float64]


def units(vectors: NDArray[np.floating]) -> FloatArray:
    """The vectors (n, d) at length 1, in float64; one of length 0 stays so, and is orthogonal to all."""
    vectors = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def cosine_scores(pool: NDArray[np.floating], targets: NDArray[np.floating]) -> FloatArray:
    """Cosines (n, n_target) of pool features (n, r) with target features (n_target, r), in float64.

    A pool row without any component in the subspace is orthogonal to every target: 0.
    Raises `DataError` for non-finite pool features or a target vector of length zero.
    """
    pool, targets = np.asarray(pool, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if not np.isfinite(pool).all():
        raise DataError(f"{int((~np.isfinite(pool)).any(axis=1).sum())} pool rows have non-finite features.")
    target_norms = np.linalg.norm(targets, axis=1)
    if not (target_norms > 0).all():
        raise DataError(f"target vector {int(np.argmin(target_norms))} has length zero: its queries cancel out.")
    return units(pool) @ (targets / target_norms[:, None]).T


def cosines(rows: NDArray[np.floating], queries: NDArray[np.floating]) -> FloatArray:
    """Cosines (n, n_query) of any vectors (n, r) and (n_query, r); 0 where either has no length or is not finite."""
    finite = (np.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0) for vectors in (rows, queries))
    first, second = map(units, finite)
    return first @ second.T


def mean_of_columns(scores: FloatArray, groups: NDArray[np.integer]) -> FloatArray:
    """Means (n, n_group) of scores (n, n_query) over the queries of each group; `groups` (n_query,) counts from 0.

    This averages *scores*, as LESS does; GIST averages features before the cosine, which is another estimator.
    """
    return np.stack([scores[:, groups == index].mean(axis=1) for index in range(int(groups.max()) + 1)], axis=1)


def checkpoint_weights(weights: Sequence[float] | None, n_checkpoints: int) -> FloatArray:
    """(n_checkpoints,) weights normalised to 1; equal if none are given."""
    values = np.ones(n_checkpoints) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(values) != n_checkpoints:
        raise ConfigError(f"{len(values)} checkpoint weights for {n_checkpoints} checkpoints; give one for each.")
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() == 0:
        raise ConfigError(f"checkpoint weights must be non-negative with a positive sum, not {list(values)}.")
    return values / values.sum()


def null_scores(
    targets: Sequence[NDArray[np.floating]],
    weights: FloatArray,
    rng: np.random.Generator,
    n_draws: int = 10_000,
) -> FloatArray:
    """Best-target scores (n_draws,) of random directions in the same subspaces: what a score means without signal.

    `targets` holds one (n_target, r) array for each checkpoint. Directions are independent between checkpoints.
    """
    total = sum(
        weight * cosine_scores(rng.standard_normal((n_draws, target.shape[1])), target)
        for weight, target in zip(weights, targets, strict=True)
    )
    return np.asarray(total).max(axis=1)


def null_products(vectors: NDArray[np.floating], rng: np.random.Generator, n_draws: int = 10_000) -> FloatArray:
    """Inner products (n_draws, k) of random unit directions in d dimensions with vectors (k, d).

    Only the part of a direction within the vectors' span is drawn, and the length of the rest.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    rank, d = min(vectors.shape), vectors.shape[1]
    values, basis = np.linalg.eigh(vectors @ vectors.T)
    # (k, rank): the vectors in an orthonormal basis of their span.
    coordinates = (basis * np.sqrt(np.clip(values, 0, None)))[:, -rank:]
    inside = rng.standard_normal((n_draws, rank))
    outside = rng.chisquare(d - rank, n_draws) if d > rank else 0.0
    lengths = np.sqrt((inside**2).sum(axis=1) + outside)
    return inside @ coordinates.T / lengths[:, None]


def share_in_span(products: FloatArray, gram: FloatArray, norms: FloatArray) -> FloatArray:
    """(n,) share of the squared length of vectors that lies in the span of k directions.

    From the inner products (n, k) with the directions, those of the directions with each other (k, k), and the vectors'
    lengths (n,), none of them 0.
    """
    inverse = np.linalg.pinv(gram, rcond=1e-10, hermitian=True)
    return np.clip(((products @ inverse) * products).sum(axis=1) / norms**2, 0.0, 1.0)


def spearman(first: FloatArray, second: FloatArray) -> float:
    """Rank correlation of two score vectors (n,); equal scores share their mean rank."""
    from scipy.stats import spearmanr

    return float(spearmanr(first, second)[0])  # pyright: ignore[reportArgumentType]


def overlap(first: FloatArray, second: FloatArray, n_top: int) -> float:
    """Share of the `n_top` best of one score vector (n,) that are among those of the other."""
    best = [set(np.argsort(-scores, kind="stable")[:n_top].tolist()) for scores in (first, second)]
    return len(best[0] & best[1]) / n_top
