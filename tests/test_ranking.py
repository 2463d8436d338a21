"""Measures of a ranking against loops over every threshold and every row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from gistselect.evaluation.ranking import (
    average_precision,
    average_precision_interval,
    recall_at,
    reciprocal_rank,
    spearman,
)

ROWS = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=30)


def by_threshold(scores: list[int], relevant: list[bool]) -> float:
    """Precision times the step in recall, one threshold after the other."""
    area, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [good for score, good in zip(scores, relevant, strict=True) if score >= threshold]
        now = sum(taken) / sum(relevant)
        area, recall = area + (now - recall) * sum(taken) / len(taken), now
    return area


@given(ROWS)
def test_measures_equal_loops(rows: list[tuple[int, bool]]) -> None:
    scores, relevant = [list(one) for one in zip(*rows, strict=True)]
    if not any(relevant):
        with pytest.raises(ValueError, match="no row is relevant"):
            average_precision(scores, relevant)
        return
    assert average_precision(scores, relevant) == pytest.approx(by_threshold(scores, relevant))
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    for k in (1, 3, len(scores)):
        assert recall_at(scores, relevant, k) == pytest.approx(sum(relevant[i] for i in order[:k]) / sum(relevant))
    first = next(rank for rank, row in enumerate(order, start=1) if relevant[row])
    assert reciprocal_rank(scores, relevant) == pytest.approx(1 / first)


def test_the_order_of_rows_does_not_matter_to_average_precision() -> None:
    rng = np.random.default_rng(0)
    scores, relevant = rng.integers(0, 5, 60), rng.random(60) < 0.2
    order = rng.permutation(60)
    assert average_precision(scores, relevant) == pytest.approx(average_precision(scores[order], relevant[order]))
    assert average_precision(np.zeros(60), relevant) == pytest.approx(relevant.mean()), "chance is the base rate"
    with pytest.raises(ValueError, match="not finite"):
        average_precision([1.0, np.nan], [True, False])


def test_intervals_hold_the_estimate_and_narrow_with_rows() -> None:
    widths = []
    for n in (60, 600):
        rng = np.random.default_rng(1)
        relevant = np.arange(n) < n // 5
        found = average_precision_interval(rng.normal(relevant, 1.0), relevant, draws=300, rng=rng)
        assert found.low < found.mean < found.high
        widths.append(found.high - found.low)
    assert widths[1] < 0.6 * widths[0]


def test_rank_correlation_equals_scipy_and_its_interval_covers() -> None:
    rng = np.random.default_rng(2)
    covered, trials, truth = 0, 300, 6 / np.pi * np.arcsin(0.6 / 2)
    for _ in range(trials):
        x = rng.normal(size=30)
        y = 0.6 * x + 0.8 * rng.normal(size=30)
        found = spearman(x, y)
        assert found.mean == pytest.approx(spearmanr(x, y).statistic)
        covered += found.low <= truth <= found.high
    assert 0.91 < covered / trials < 0.99
    assert spearman([1, 2, 3, 4, 5], [2, 3, 4, 5, 9]).mean == pytest.approx(1)
    with pytest.raises(ValueError, match="five"):
        spearman([1, 2], [3, 4])
