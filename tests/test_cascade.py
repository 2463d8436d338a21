"""The measured loss of a prefilter against the true one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistselect.linalg.cascade import lost_share


def true_loss(kept: np.ndarray, rest: np.ndarray, n_selected: int) -> float:
    """By sorting everything."""
    order = np.argsort(-np.concatenate([kept, rest]), kind="stable")
    return float((order[:n_selected] >= len(kept)).mean())


@pytest.mark.parametrize(
    ("n", "share", "n_selected", "n_sampled"), [(2000, 0.3, 100, 200), (400, 0.1, 40, 30), (60, 0.5, 20, 5)]
)
@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.95])
def test_the_interval_holds_the_true_loss(
    correlation: float, n: int, share: float, n_selected: int, n_sampled: int
) -> None:
    inside, estimates, truths = [], [], []
    for seed in range(250):
        rng = np.random.default_rng(seed)
        exact = rng.standard_normal(n)
        cheap = correlation * exact + (1 - correlation**2) ** 0.5 * rng.standard_normal(n)
        order = np.argsort(-cheap)
        kept, rest = exact[order[: int(share * n)]], exact[order[int(share * n) :]]
        truth = true_loss(kept, rest, n_selected)
        sampled = rng.choice(rest, n_sampled, replace=False)
        lost = lost_share(kept, sampled, n_rest=len(rest), n_selected=n_selected)
        assert lost is not None
        assert 0 <= lost.low <= lost.mean <= lost.high <= 1
        inside.append(lost.low - 1e-12 <= truth <= lost.high + 1e-12)
        estimates.append(lost.mean)
        truths.append(truth)
    assert np.mean(inside) >= 0.93
    assert abs(np.mean(estimates) - np.mean(truths)) < 0.04


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=30),
    st.lists(st.integers(0, 30), min_size=1, max_size=30),
    st.data(),
)
def test_a_sample_of_all_leaves_no_doubt(kept: list[int], rest: list[int], data: st.DataObject) -> None:
    n_selected = data.draw(st.integers(1, len(kept)))
    mine, others = np.array(kept, dtype=float), np.array(rest, dtype=float)
    lost = lost_share(mine, others, n_rest=len(others), n_selected=n_selected)
    assert lost is not None
    assert lost.low == lost.mean == lost.high == pytest.approx(true_loss(mine, others, n_selected))


def test_a_wider_sample_narrows_the_interval() -> None:
    rng = np.random.default_rng(0)
    kept, rest = rng.standard_normal(300) + 1, rng.standard_normal(3000)
    found = [lost_share(kept, rest[:size], n_rest=3000, n_selected=100) for size in (100, 400, 1600)]
    widths = [one.high - one.low for one in found if one is not None]
    assert sorted(widths, reverse=True) == widths
    assert len(widths) == 3


def test_rows_that_cannot_be_scored_are_lost_to_nobody() -> None:
    lost = lost_share(np.arange(10.0), np.full(20, -np.inf), n_rest=40, n_selected=5)
    assert lost is not None
    assert (lost.low, lost.mean) == (0.0, 0.0)
    assert lost.high > 0, "twenty rows do not speak for the other twenty"


def test_nothing_is_lost_where_nothing_was_left_out_and_nothing_said_without_a_sample() -> None:
    scores = np.arange(10.0)
    whole = lost_share(scores, np.zeros(0), n_rest=0, n_selected=5)
    assert whole is not None
    assert (whole.mean, whole.low, whole.high) == (0.0, 0.0, 0.0)
    assert lost_share(scores, np.zeros(0), n_rest=6, n_selected=3) is None
    with pytest.raises(ValueError, match="11 rows cannot be the best of 10"):
        lost_share(scores, np.zeros(1), n_rest=6, n_selected=11)
