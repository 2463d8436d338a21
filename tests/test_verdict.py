"""Intervals by resampling, and what they allow to conclude."""

from __future__ import annotations

import numpy as np
import pytest

from gistselect.errors import DataError
from gistselect.evaluation.verdict import Arm, compare, verdict
from gistselect.linalg.intervals import Interval, bootstrap_mean, difference_of_runs, mean_of_runs


def test_bootstrap_interval_matches_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    interval = bootstrap_mean(values, draws=4000, rng=np.random.default_rng(1))
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.05)


def test_group_means_count_equally() -> None:
    values, groups = np.array([0.0, 0.0, 0.0, 1.0, 1.0]), np.array([0, 0, 0, 1, 1])
    interval = bootstrap_mean(values, groups=groups, rng=np.random.default_rng(0))
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.5, 0.5, 0.5))
    alone = bootstrap_mean(np.array([0.0, 1.0]), groups=np.array([0, 1]), rng=np.random.default_rng(0))
    assert alone.low < 0.5 < alone.high
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_mean(np.array([1.0, np.nan]), rng=np.random.default_rng(0))


@pytest.mark.parametrize("seed_spread", [0.0, 0.05, 0.3])
@pytest.mark.parametrize(("n_gist", "n_random"), [(3, 3), (1, 3), (2, 5)])
def test_null_cases_are_rarely_called_different(n_gist: int, n_random: int, seed_spread: float) -> None:
    rng = np.random.default_rng(7)
    trials, wrong = 200, 0
    for _ in range(trials):
        item = rng.normal(4, 1, 60)
        first, second = (
            item + rng.normal(0, seed_spread, (n, 1)) + rng.normal(0, 0.2, (n, 60)) for n in (n_gist, n_random)
        )
        one = difference_of_runs(first, second, draws=300, rng=rng)
        wrong += not one.low <= 0 <= one.high
    assert wrong / trials < 0.10


def test_planted_effects_are_found_with_the_right_direction() -> None:
    rng = np.random.default_rng(3)
    item = rng.normal(4, 1, 80)

    def arm(name: str, effect: float, n: int, trained: bool = True) -> Arm:
        runs = item + effect + rng.normal(0, 0.02, (n, 1)) + rng.normal(0, 0.1, (n, 80))
        return Arm(name=name, runs=runs, trained=trained)

    arms = [arm("before", 0.9, 1, False), arm("random", 0.5, 3), arm("gist", 0.0, 3), arm("full", -0.5, 2)]
    table = compare("gsm8k", "loss", arms, higher_is_better=False, rng=rng)
    assert [row.arm for row in table.rows] == ["before", "random", "gist", "full"]
    assert table.verdicts[0].startswith("gist: better than before on gsm8k (loss -0.9")
    assert table.verdicts[1].startswith("gist: better than random on gsm8k (loss -0.")
    assert table.verdicts[2].startswith("gist: worse than full on gsm8k (loss +0.")
    flipped = compare("gsm8k", "f1", arms[1:3], higher_is_better=True, rng=rng)
    assert flipped.verdicts[0].startswith("gist: worse than random")
    for row in table.rows:
        assert row.interval.low < row.interval.mean < row.interval.high


def test_verdict_sentences() -> None:
    facts = {
        "task": "bbh",
        "metric": "exact_match",
        "candidate": "gist",
        "baseline": "random",
        "higher_is_better": True,
    }
    sure = Interval(mean=0.1, low=0.05, high=0.15)
    assert verdict(sure, **facts, n_runs=(3, 3)) == (
        "gist: better than random on bbh (exact_match +0.100 ± 0.050, seeds 3 against 3)"
    )
    assert "not distinguishable from random" in verdict(
        Interval(mean=0.1, low=-0.05, high=0.25), **facts, n_runs=(3, 3)
    )
    assert "not judged" in verdict(sure, **facts, n_runs=(1, 1))


def test_more_seeds_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for n in (2, 4, 16):
        one = mean_of_runs(rng.normal(0, 1, (n, 1)) + np.zeros((n, 50)), rng=np.random.default_rng(1))
        widths.append(one.high - one.low)
    assert widths[0] > widths[1] > widths[2]


def test_arms_on_different_items_are_refused() -> None:
    arms = [Arm(name="gist", runs=np.zeros((1, 3))), Arm(name="random", runs=np.zeros((1, 4)))]
    with pytest.raises(DataError, match="different items"):
        compare("bbh", "loss", arms, higher_is_better=False, rng=np.random.default_rng(0))
