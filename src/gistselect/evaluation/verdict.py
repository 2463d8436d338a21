"""Which arm of an experiment is better, and whether that can be said at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gistselect.errors import ConfigError, DataError
from gistselect.evaluation.cost import SelectionCost, took
from gistselect.evaluation.results import LOSS, group_codes
from gistselect.linalg.intervals import DRAWS, LEVEL, Interval, difference_of_runs, mean_of_runs

if TYPE_CHECKING:
    from gistselect.evaluation.results import ItemValues

BEFORE = "before"
"""The arm of the model before any training."""
Outcome = Literal["better", "worse", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of choosing the training rows, evaluated on the same items after each of its trainings."""

    name: str
    """`before`, `random`, `length`, `gist`, `full`, …"""
    runs: NDArray[np.float64]
    """(n_run, n_item) per-item values, one row for each training seed."""
    trained: bool = True
    """False for the model before any training, which no seed can change."""


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """An arm's mean over items and seeds."""

    arm: str
    n_runs: int
    interval: Interval
    against: Mapping[str, Interval] = field(default_factory=dict)
    """This arm minus each reference."""
    cost: Mapping[str, Any] | None = None
    """What its selection took; None for an arm without one."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The arms of an experiment on one metric of one task, and what can be concluded."""

    task: str
    metric: str
    level: float
    """Coverage of the intervals."""
    rows: tuple[ComparisonRow, ...]
    verdicts: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    """What each verdict comes to."""
    scored_by: str | None = None
    """Name of the model whose gradients or hidden states chose the rows; None if only text was read."""
    trained: str | None = None
    """Name of the model that was fine-tuned and measured."""
    higher_is_better: bool = False


def compare(
    task: str,
    metric: str,
    arms: Sequence[Arm],
    *,
    higher_is_better: bool,
    rng: np.random.Generator,
    candidate: str = "gist",
    groups: Sequence[str] | None = None,
    references: Sequence[str] = (),
    costs: Mapping[str, SelectionCost] | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Comparison:
    """A row for each arm, and a verdict on the candidate against each other arm.

    Intervals cover items and training seeds; `groups` (n_item,) makes every mean one of group means. Each arm's row
    also has its differences from the `references` among the arms. Raises `DataError` if the arms were not evaluated
    on the same number of items, `ConfigError` without the candidate.
    """
    if len({arm.runs.shape[1] for arm in arms}) != 1:
        raise DataError(f"{task}: the arms were evaluated on different items; evaluate them again with one seed.")
    by_name = {arm.name: arm for arm in arms}
    if candidate not in by_name:
        raise ConfigError(f"there is no arm {candidate!r}; arms: {', '.join(by_name)}.")
    codes = group_codes(groups)
    rows = tuple(
        ComparisonRow(
            arm=one.name,
            n_runs=len(one.runs),
            interval=mean_of_runs(one.runs, groups=codes, draws=draws, level=level, rng=rng),
        )
        for one in arms
    )
    costs = costs or {}

    def difference(one: Arm, other: Arm) -> Interval:
        return difference_of_runs(_seeds(one), _seeds(other), groups=codes, draws=draws, level=level, rng=rng)

    own = by_name[candidate]
    judged = [(other, difference(own, other), (len(own.runs), len(other.runs))) for other in arms if other is not own]
    verdicts = tuple(
        verdict(
            found,
            task=task,
            metric=metric,
            candidate=candidate,
            baseline=other.name,
            higher_is_better=higher_is_better,
            n_runs=n_runs,
            took=took(*(costs[name].described() if name in costs else None for name in (candidate, other.name))),
        )
        for other, found, n_runs in judged
    )
    outcomes: tuple[Outcome, ...] = tuple(
        outcome(found, n_runs, higher_is_better=higher_is_better) for _, found, n_runs in judged
    )
    # Drawn last, so that more references move no other number.
    rows = tuple(
        replace(
            row,
            against={
                name: difference(by_name[row.arm], by_name[name])
                for name in references
                if name in by_name and name != row.arm
            },
            cost=costs[row.arm].described() if row.arm in costs else None,
        )
        for row in rows
    )
    return Comparison(
        task=task,
        metric=metric,
        level=level,
        rows=rows,
        verdicts=verdicts,
        outcomes=outcomes,
        higher_is_better=higher_is_better,
    )


def compare_values(
    arms: Sequence[tuple[str, Sequence[ItemValues]]],
    *,
    rng: np.random.Generator,
    candidate: str,
    untrained: str | None = None,
    references: Sequence[str] = (),
    costs: Mapping[str, SelectionCost] | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Comparison:
    """`compare` on what evaluations found: of each arm its name and one metric of one task for each training.

    `untrained` names the arm of the model before any training. Raises `DataError` if the evaluations differ in task,
    metric, items or groups.
    """
    first = arms[0][1][0]
    for name, runs in arms:
        for one in runs:
            same = (one.task, one.metric, one.higher_is_better) == (first.task, first.metric, first.higher_is_better)
            if not same or one.ids != first.ids or one.groups != first.groups:
                raise DataError(
                    f"{first.task}, {first.metric}: the arms {arms[0][0]!r} and {name!r} were evaluated on different "
                    "items; evaluate them again with the same tasks, template, context and seed."
                )
    return compare(
        first.task,
        first.metric,
        [Arm(name=name, runs=np.stack([one.values for one in runs]), trained=name != untrained) for name, runs in arms],
        higher_is_better=first.higher_is_better,
        rng=rng,
        candidate=candidate,
        groups=first.groups,
        references=references,
        costs=costs,
        draws=draws,
        level=level,
    )


def verdict_on_row(comparison: Comparison, row: ComparisonRow) -> tuple[str, ...]:
    """A sentence on one arm against each of its references."""
    by_name = {one.arm: one for one in comparison.rows}
    return tuple(
        verdict(
            difference,
            task=comparison.task,
            metric=comparison.metric,
            candidate=row.arm,
            baseline=name,
            higher_is_better=comparison.higher_is_better,
            n_runs=(row.n_runs, by_name[name].n_runs),
            took=took(row.cost, by_name[name].cost),
        )
        for name, difference in row.against.items()
    )


def _seeds(arm: Arm) -> NDArray[np.float64]:
    """The arm's runs; an untrained model's single run counts as known not to vary."""
    return arm.runs if arm.trained else np.repeat(arm.runs[:1], 2, axis=0)


def outcome(difference: Interval, n_runs: tuple[int, int], *, higher_is_better: bool) -> Outcome:
    """What candidate minus baseline comes to: better or worse only if the interval leaves out zero.

    With one training of each, nothing is known about the variation between seeds.
    """
    if max(n_runs) < 2 or difference.low <= 0 <= difference.high:
        return "undecided"
    return "better" if (difference.mean > 0) == higher_is_better else "worse"


def verdict(
    difference: Interval,
    *,
    task: str,
    metric: str,
    candidate: str,
    baseline: str,
    higher_is_better: bool,
    n_runs: tuple[int, int],
    took: str = "",
) -> str:
    """One sentence on candidate minus baseline (`outcome`); `took` says what the candidate's selection cost."""
    half = (difference.high - difference.low) / 2
    unit = "nats" if metric == LOSS else metric
    seeds = f"seeds {n_runs[0]} against {n_runs[1]}"
    end = f"; {took}" if took else ""
    found = outcome(difference, n_runs, higher_is_better=higher_is_better)
    baseline = "no training" if baseline == BEFORE else baseline
    if found == "undecided":
        amount = f"{metric} {difference.mean:+.3f} ± {half:.3f}"
        if max(n_runs) < 2:
            return f"{candidate} is not judged against {baseline} on {task}, one seed each ({amount}); use more seeds"
        return f"{candidate} is not distinguishable from {baseline} on {task} ({amount}, {seeds}){end}"
    beats = "beats" if found == "better" else "is worse than"
    return f"{candidate} {beats} {baseline} by {abs(difference.mean):.3f} ± {half:.3f} {unit} on {task} ({seeds}){end}"
