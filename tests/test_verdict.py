"""Intervals by resampling, and what they allow to conclude."""

from __future__ import annotations

import numpy as np
import pytest

from gistselect.errors import DataError
from gistselect.evaluation.cost import FullTraining, SelectionCost, took
from gistselect.evaluation.verdict import Arm, compare, outcome, verdict
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
    certain = bootstrap_mean(np.full(5, 6.0), groups=np.array([0, 1, 1, 1, 1]), rng=np.random.default_rng(0))
    assert (certain.low, certain.high) == pytest.approx((6.0, 6.0)), (
        "the weight that a draw happens to have is no spread"
    )
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_mean(np.array([1.0, np.nan]), rng=np.random.default_rng(0))


def test_groups_of_very_different_sizes_give_an_interval_that_covers() -> None:
    """A group of one item beside one of twelve: a mean of six nats that is drawn again lies within its interval."""
    rng, groups = np.random.default_rng(3), np.array([0] + [1] * 12 + [2] * 12)
    covered, widths = 0, []
    for _ in range(200):
        interval = bootstrap_mean(rng.normal(6, 1, len(groups)), groups=groups, draws=500, rng=rng)
        covered += interval.low <= 6 <= interval.high
        widths.append(interval.high - interval.low)
    assert covered >= 170
    spread = np.sqrt((1 + 1 / 12 + 1 / 12) / 9)  # of a mean of three group means
    assert 1 < np.median(widths) / (2 * spread) < 5


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
    assert table.verdicts[0].startswith("gist beats no training by 0.9")
    assert table.verdicts[1].startswith("gist beats random by 0.")
    assert table.verdicts[2].startswith("gist is worse than full by 0.")
    flipped = compare("gsm8k", "f1", arms[1:3], higher_is_better=True, rng=rng)
    assert flipped.verdicts[0].startswith("gist is worse than random")
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
        "gist beats random by 0.100 ± 0.050 exact_match on bbh (seeds 3 against 3)"
    )
    assert (
        verdict(Interval(mean=0.1, low=-0.05, high=0.25), **facts, n_runs=(3, 3))
        == "gist is not distinguishable from random on bbh (exact_match +0.100 ± 0.150, seeds 3 against 3)"
    )
    assert "not judged" in verdict(sure, **facts, n_runs=(1, 1))
    dearer = {
        **facts,
        "metric": "loss",
        "higher_is_better": False,
        "n_runs": (3, 3),
        "took": took(DEAR.described(), CHEAP.described()),
    }
    better = Interval(mean=-0.04, low=-0.06, high=-0.02)
    assert outcome(better, (3, 3), higher_is_better=False) == "better"
    assert outcome(better, (3, 3), higher_is_better=True) == "worse"
    assert outcome(better, (1, 1), higher_is_better=False) == "undecided"
    assert verdict(better, **dearer) == (
        "gist beats random by 0.040 ± 0.020 nats on bbh (seeds 3 against 3); it took 31 times as long"
    )


FULL = FullTraining(seconds=200.0, measured=True)
DEAR = SelectionCost(seconds={"read": 2.0, "pool": 60.0}, bytes_per_row=40.0, full_training=FULL)
CHEAP = SelectionCost(seconds={"read": 2.0}, bytes_per_row=4.0, full_training=FULL)


def test_effort_is_told_as_a_ratio_of_times() -> None:
    assert took(CHEAP.described(), DEAR.described()) == "it took 0.032 of the time"
    assert took(DEAR.described(), DEAR.described()) == "it took about as long"
    assert took(DEAR.described(), None) == "selecting took 62 s, 0.31 of one training on the full pool"
    assert took(None, DEAR.described()) == ""
    assert DEAR.selection_to_tuning == pytest.approx(62 / 200)
    assert SelectionCost(seconds={"read": 1.0}, bytes_per_row=0).selection_to_tuning is None
    assert FullTraining.forecast(tokens=1000, epochs=4, tokens_per_second=50).seconds == 80


def test_references_and_costs_move_no_other_number() -> None:
    rng = np.random.default_rng(3)
    arms = [
        Arm(name=name, runs=rng.normal(mean, 0.1, (3, 40)))
        for name, mean in (("random", 1.0), ("gist", 0.5), ("bm25", 0.7))
    ]
    facts = {"higher_is_better": False, "candidate": "gist"}
    plain = compare("mine", "loss", arms, rng=np.random.default_rng(1), **facts)
    told = compare(
        "mine",
        "loss",
        arms,
        rng=np.random.default_rng(1),
        references=("random", "bm25", "absent"),
        costs={"gist": DEAR, "bm25": CHEAP},
        **facts,
    )
    assert [row.interval for row in told.rows] == [row.interval for row in plain.rows]
    assert [list(row.against) for row in told.rows] == [["bm25"], ["random", "bm25"], ["random"]]
    gist = told.rows[1]
    assert gist.against["random"].mean == pytest.approx(gist.interval.mean - told.rows[0].interval.mean)
    assert gist.cost is not None
    assert gist.cost["selection_to_tuning"] == pytest.approx(0.31)
    assert told.rows[0].cost is None
    assert told.verdicts[1] == f"{plain.verdicts[1]}; it took 31 times as long"


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
