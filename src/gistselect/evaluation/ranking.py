"""How well scores rank what is known to matter: average precision, recall at k, reciprocal ranks, rank correlation."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gistselect.linalg.intervals import DRAWS, LEVEL, Interval

FloatArray = NDArray[np.float64]


def average_precision(scores: ArrayLike, relevant: ArrayLike) -> float:
    """Area under the precision-recall curve: the sum of precision times the step in recall over distinct scores.

    `scores` (n,), higher first; `relevant` (n,) booleans. Rows with one score count together, so their order does not
    matter. Chance gives the share of relevant rows. Raises `ValueError` without a relevant row or with a NaN.
    """
    scores, relevant = _checked(scores, relevant)
    order = np.argsort(-scores, kind="stable")
    hits, ends = np.cumsum(relevant[order]), np.flatnonzero(np.diff(scores[order], append=-np.inf))
    recall = hits[ends] / relevant.sum()
    return float(np.sum(np.diff(recall, prepend=0.0) * hits[ends] / (ends + 1)))


def average_precision_interval(
    scores: ArrayLike, relevant: ArrayLike, *, draws: int = DRAWS, level: float = LEVEL, rng: np.random.Generator
) -> Interval:
    """`average_precision` with a percentile interval; relevant and other rows are resampled apart."""
    scores, relevant = _checked(scores, relevant)
    chosen, others = np.flatnonzero(relevant), np.flatnonzero(~relevant)
    found = np.empty(draws)
    for draw in range(draws):
        rows = np.concatenate([rng.choice(chosen, len(chosen)), rng.choice(others, len(others))])
        found[draw] = average_precision(scores[rows], relevant[rows])
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=average_precision(scores, relevant), low=float(low), high=float(high))


def recall_at(scores: ArrayLike, relevant: ArrayLike, k: int) -> float:
    """Share of the relevant rows among the k with the highest scores; ties in the order given."""
    scores, relevant = _checked(scores, relevant)
    return float(relevant[np.argsort(-scores, kind="stable")[:k]].sum() / relevant.sum())


def reciprocal_rank(scores: ArrayLike, relevant: ArrayLike) -> float:
    """1 / rank of the first relevant row; ties in the order given."""
    scores, relevant = _checked(scores, relevant)
    return float(1 / (1 + np.argmax(relevant[np.argsort(-scores, kind="stable")])))


def spearman(first: ArrayLike, second: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Rank correlation of (n,) and (n,) values, with its interval on Fisher's scale.

    Variance (1 + rho² / 2) / (n - 3), Bonett & Wright, "Sample size requirements for estimating Pearson, Kendall and
    Spearman correlations" (2000). Raises `ValueError` for fewer than five pairs or values that do not vary.
    """
    from scipy.stats import norm, rankdata

    x, y = (rankdata(np.asarray(values, dtype=np.float64)) for values in (first, second))
    if len(x) < 5 or x.std() == 0 or y.std() == 0:
        raise ValueError(f"{len(x)} pairs; a rank correlation needs at least five that vary.")
    rho = float(np.corrcoef(x, y)[0, 1])
    inside = min(max(rho, -1 + 1e-9), 1 - 1e-9)
    half = float(norm.ppf((1 + level) / 2)) * math.sqrt((1 + rho**2 / 2) / (len(x) - 3))
    low, high = (math.tanh(math.atanh(inside) + sign * half) for sign in (-1, 1))
    return Interval(mean=rho, low=low, high=high)


def _checked(scores: ArrayLike, relevant: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
    scores, relevant = np.asarray(scores, dtype=np.float64), np.asarray(relevant, dtype=bool)
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} scores are not finite; they cannot be ranked.")
    if not relevant.any():
        raise ValueError("no row is relevant.")
    return scores, relevant
