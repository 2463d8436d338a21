"""What a prefilter costs: how many of the best rows lie among those that it left out, from a random sample of them."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from gistselect.linalg.intervals import LEVEL, FloatArray, Interval


def lost_share(
    kept: FloatArray, sampled: FloatArray, *, n_rest: int, n_selected: int, level: float = LEVEL
) -> Interval | None:
    """Share of the `n_selected` best rows of a pool that are not among the rows kept of it, with its interval.

    `kept` holds the scores of all rows that were kept, `sampled` those of a simple random sample of the `n_rest`
    others; a row that cannot be scored has minus infinity.

    Let a_1 ≥ a_2 ≥ … be the kept scores and C(i) the number of others above a_i. At least l of the n best rows lie
    among the others exactly if C(n - l + 1) ≥ l, and at most l exactly if C(n - l) ≤ l: statements on one count above
    a threshold that is known. The sampled rows above it are hypergeometric. The interval holds every l of which neither
    statement is refuted at (1 - level) / 2, and so the true one with at least the probability `level` at any sizes
    (as Clopper & Pearson 1934, without replacement). The estimate counts each sampled row as n_rest / n_sampled rows.

    None without a sample to tell from. Raises `ValueError` if fewer rows were kept than are selected.
    """
    if not 0 < n_selected <= len(kept):
        raise ValueError(f"{n_selected} rows cannot be the best of {len(kept)} kept ones.")
    if not n_rest:
        return Interval(mean=0.0, low=0.0, high=0.0)
    if not len(sampled):
        return None
    from scipy.stats import hypergeom

    best = np.sort(kept)[::-1]
    ascending = np.sort(sampled)
    n_sampled, tail = len(sampled), (1 - level) / 2

    def above(place: int) -> int:
        """Sampled rows above the kept one at a place (from 1); none is above place 0."""
        return n_sampled - int(np.searchsorted(ascending, best[place - 1], side="right")) if place else 0

    def refutes_as_few(lost: int) -> bool:
        return bool(hypergeom.sf(above(n_selected - lost) - 1, n_rest, lost, n_sampled) <= tail)

    def refutes_as_many(lost: int) -> bool:
        return bool(hypergeom.cdf(above(n_selected - lost + 1), n_rest, lost, n_sampled) <= tail)

    # As l grows, the threshold rises, so each condition holds up to some l, or from some l on.
    possible = range(min(n_selected, n_rest) + 1)
    low = bisect_left(possible, True, key=lambda lost: not refutes_as_few(lost))
    high = bisect_left(possible, True, lo=1, key=refutes_as_many) - 1
    estimate = (
        bisect_left(possible, True, lo=1, key=lambda lost: above(n_selected - lost + 1) * n_rest < lost * n_sampled) - 1
    )
    return Interval(
        mean=estimate / n_selected, low=min(low, estimate) / n_selected, high=max(high, estimate) / n_selected
    )
