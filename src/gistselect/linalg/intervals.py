"""Intervals by resampling: of one mean, and of the difference between two groups of training runs.

Two things vary: which items the evaluation drew, and which seed the training drew. Items are resampled
(percentile bootstrap, stratified by group). Seeds are too few to resample, three values know nothing of their
tails, so the variation between runs enters as a draw of Student's t with as many degrees of freedom as the
runs support (Welch-Satterthwaite).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

DRAWS = 2000
"""Draws of a bootstrap: the 2.5 % quantile is then known to about 0.3 % of probability."""
LEVEL = 0.95
"""Coverage of an interval."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its percentile interval."""

    mean: float
    low: float
    high: float


def group_means(values: FloatArray, groups: NDArray[np.intp]) -> FloatArray:
    """(..., n_group) means of values (..., n) over the items of each group; `groups` (n,) counts from 0."""
    sizes = np.bincount(groups)
    membership = np.zeros((len(groups), len(sizes)))
    membership[np.arange(len(groups)), groups] = 1.0 / sizes[groups]
    return values @ membership


def item_weights(groups: NDArray[np.intp] | None, n: int) -> FloatArray:
    """(n,) weight of each item in the mean: equal, or equal for each group (a mean of group means)."""
    if groups is None:
        return np.full(n, 1.0 / n)
    sizes = np.bincount(groups)
    return 1.0 / (len(sizes) * sizes[groups])


def bootstrap_mean(
    values: ArrayLike,
    *,
    groups: NDArray[np.intp] | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
    rng: np.random.Generator,
) -> Interval:
    """Percentile interval of the mean of values (n,), or of the mean of group means given `groups` (n,).

    Items are drawn within their group. Raises `ValueError` without values or with one that is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"{len(values)} values, {int((~np.isfinite(values)).sum())} of them not finite.")
    weights = item_weights(groups, len(values))
    mean = float(values @ weights)
    deviations = _item_deviations(values, groups, weights, draws, rng)
    return _percentile(mean, deviations, level)


def mean_of_runs(
    runs: ArrayLike,
    *,
    groups: NDArray[np.intp] | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
    rng: np.random.Generator,
) -> Interval:
    """Interval of the mean of runs (n_run, n_item): one run for each seed, the same items in each.

    With a single run the interval covers the items only: the variation between seeds is then unknown.
    """
    runs = np.asarray(runs, dtype=np.float64)
    weights = item_weights(groups, runs.shape[1])
    deviations = _item_deviations(runs.mean(axis=0), groups, weights, draws, rng)
    if len(runs) > 1:
        deviations = deviations + _seed_deviations((runs @ weights,), draws, rng)
    return _percentile(float((runs @ weights).mean()), deviations, level)


def difference_of_runs(
    first: ArrayLike,
    second: ArrayLike,
    *,
    groups: NDArray[np.intp] | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
    rng: np.random.Generator,
) -> Interval:
    """Interval of mean(first) - mean(second), runs (n_run, n_item) on the same items in the same order.

    Items are resampled in pairs. An arm with one run borrows the variation between seeds of the other; if
    neither has two, the interval covers the items only.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"the runs have {first.shape[1]} and {second.shape[1]} items; they must be the same items.")
    weights = item_weights(groups, first.shape[1])
    deviations = _item_deviations(first.mean(axis=0) - second.mean(axis=0), groups, weights, draws, rng)
    deviations = deviations + _seed_deviations((first @ weights, second @ weights), draws, rng)
    difference = float((first @ weights).mean() - (second @ weights).mean())
    return _percentile(difference, deviations, level)


def _percentile(mean: float, deviations: FloatArray, level: float) -> Interval:
    low, high = np.quantile(deviations, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=mean, low=mean + float(low), high=mean + float(high))


def _item_deviations(
    values: FloatArray,
    groups: NDArray[np.intp] | None,
    weights: FloatArray,
    draws: int,
    rng: np.random.Generator,
) -> FloatArray:
    """(draws,) deviations of the weighted mean when the items of each group are drawn again.

    A group of one item cannot vary on its own: it varies as the items of the others do about the mean of their group.
    If every group has one item, all are drawn together.
    """
    if groups is None or np.bincount(groups).max() < 2:
        groups, alone = np.zeros(len(values), dtype=np.intp), np.zeros(len(values), dtype=np.bool_)
    else:
        alone = np.bincount(groups)[groups] == 1
    total = np.zeros(draws)
    for group in np.unique(groups[~alone]):
        members = np.flatnonzero(groups == group)
        counts = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
        total += counts @ (values[members] * weights[members])
    total -= float(values[~alone] @ weights[~alone])
    if alone.any():
        of, sizes = groups[~alone], np.bincount(groups)[groups[~alone]]
        residuals = (values[~alone] - group_means(values, groups)[of]) * np.sqrt(sizes / (sizes - 1))
        total += rng.choice(residuals, size=(draws, int(alone.sum()))) @ weights[alone]
    return total


def _seed_deviations(arms: tuple[FloatArray, ...], draws: int, rng: np.random.Generator) -> FloatArray:
    """(draws,) deviations of a sum or difference of arm means, each arm (n_run,), due to the seeds."""
    known = [arm for arm in arms if len(arm) > 1]
    if not known:
        return np.zeros(draws)
    if len(known) < len(arms):
        # One estimate serves both arms, so it keeps its own few degrees of freedom.
        variance = float(known[0].var(ddof=1)) * sum(1 / len(arm) for arm in arms)
        return np.sqrt(variance) * rng.standard_t(len(known[0]) - 1, size=draws)
    terms = np.array([arm.var(ddof=1) / len(arm) for arm in arms])
    if not terms.any():
        return np.zeros(draws)
    freedom = terms.sum() ** 2 / (terms**2 / [len(arm) - 1 for arm in arms]).sum()
    return np.sqrt(terms.sum()) * rng.standard_t(freedom, size=draws)
