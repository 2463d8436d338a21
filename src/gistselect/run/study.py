"""`gistselect compare`: methods × selectors × budgets × seeds × targets in one folder that can be continued.

One pass over the pool serves all methods and targets; every combination then scores, selects, trains and measures with
the same store, so that two selections of the same rows share a training, and baselines are trained once a budget.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gistselect.evaluation.verdict import BEFORE, Comparison, verdict_on_row
from gistselect.files import write_json
from gistselect.run.choosing import Select
from gistselect.run.engine import Engine
from gistselect.run.lock import locked
from gistselect.run.mending import mending
from gistselect.run.needed import needed_by
from gistselect.run.pipeline import Clock, prepare, read_pool
from gistselect.run.plan import Plan, make_plans
from gistselect.run.prefilter import loss_described, loss_told
from gistselect.run.progress import Reporter
from gistselect.run.remember import remember, remember_first
from gistselect.run.scoring import SCORES
from gistselect.run.staffing import opened
from gistselect.run.store import read_batches
from gistselect.run.study_config import STUDY_YAML, Combination, StudyConfig
from gistselect.run.study_report import write_report

STUDY, COMBINATIONS = "study.json", "combinations"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One arm of one combination on one metric."""

    target: str
    budget: str
    n_rows: int
    selector: str
    """Empty for an arm without a selection."""
    arm: str
    metric: str
    n_runs: int
    mean: float
    low: float
    high: float
    against: Mapping[str, Mapping[str, float]]
    """Mean and interval of the difference from each reference."""
    cost: Mapping[str, Any] | None
    verdicts: tuple[str, ...]
    """A sentence on this arm against each reference; none for a reference without a selection."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The selection of one method in one combination."""

    target: str
    budget: str
    selector: str
    arm: str
    rows: frozenset[int]
    sources: Mapping[str, float]
    """Share of each source in the selection."""
    lost: Mapping[str, Any] | None
    """Share of the best rows that a prefilter left out, measured; None if there is no prefilter, or no sample."""
    stability: Mapping[str, Any] | None
    """How often its rows stay selected when the queries are drawn anew (`mean`), or the `reason` why that is not known;
    None with --stability-draws 0, or where what it takes is not stored."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study found."""

    scored_by: str | None
    trained: str
    level: float
    findings: tuple[Finding, ...]
    chosen: tuple[Chosen, ...]
    pool: Mapping[str, float]
    """Share of each source in the scored pool."""

    def overlap(self) -> list[dict[str, Any]]:
        """Jaccard index (shared rows / rows of either) of every two selections of one target and budget."""
        pairs = []
        for index, one in enumerate(self.chosen):
            for other in self.chosen[index + 1 :]:
                if (one.target, one.budget) == (other.target, other.budget):
                    shared = len(one.rows & other.rows) / max(len(one.rows | other.rows), 1)
                    names = [f"{side.arm}, {side.selector}" for side in (one, other)]
                    pairs.append({"target": one.target, "budget": one.budget, "selections": names, "jaccard": shared})
        return pairs

    def described(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "scored_by": self.scored_by,
            "trained": self.trained,
            "level": self.level,
            "findings": [asdict(one) for one in self.findings],
            "overlap": self.overlap(),
            "sources": [
                {name: value for name, value in asdict(one).items() if name != "rows"} | {"n_rows": len(one.rows)}
                for one in self.chosen
            ],
            "pool_sources": dict(self.pool),
        }


@mending
def run_study(config: StudyConfig, reporter: Reporter) -> Study:
    """Compute whatever is missing of a study, and write its table, charts and summary into the folder.

    Raises `GistSelectError` and its kinds, before any work for all that can be known before it.
    """
    with locked(config.output, config.if_busy, reporter.warn), reporter.recording(config.output):
        combinations = config.variants()
        first = combinations[0].config
        shared = config.model_copy(update={"budget": first.budget, "selector": first.selector})
        together, plans = make_plans(shared, [one.config for one in combinations], "evaluate")
        together = needed_by(together, plans)
        clock = Clock(reporter)
        with opened(config, None) as (engine, sources):
            read_pool(together, shared, reporter, clock, engine)
            remember_first(config, STUDY_YAML)
            prepare(together, shared, reporter, clock, sources, engine)
            findings: list[Finding] = []
            chosen: list[Chosen] = []
            several = len({one.selector for one in combinations}) > 1
            for number, (combination, plan) in enumerate(zip(combinations, plans, strict=True), start=1):
                what = f"{combination.target}, {combination.selector}, {combination.budget}"
                reporter.say(f"Combination {number} of {len(plans)}: {what}.")
                comparisons = _compared(combination, plan, config, reporter, engine)
                known = {(one.target, one.budget, one.arm) for one in findings if not one.selector}
                findings += [
                    one
                    for one in _findings(combination, plan, comparisons, several=several)
                    if one.selector or (one.target, one.budget, one.arm) not in known
                ]
                chosen += _chosen(combination, plan)
        assert together.compare is not None
        study = Study(
            scored_by=together.compare.scored_by,
            trained=together.compare.trained,
            level=config.evaluation.level,
            findings=tuple(findings),
            chosen=tuple(chosen),
            pool=_pool_mix(plans[0].methods[0].select),
        )
        write_json(config.output / STUDY, study.described())
        write_report(study.described(), config.output)
        remember(config, STUDY_YAML)
    reporter.say(f"The study is in {config.output}: study.md, study.csv, {STUDY} and its charts.")
    return study


def _compared(
    combination: Combination, plan: Plan, config: StudyConfig, reporter: Reporter, engine: Engine
) -> list[Comparison]:
    for method in plan.methods:
        method.score.run(reporter)
        method.select.run(reporter)
        if method.stability:
            method.stability.run(reporter)
        if said := loss_told(method.score, method.select.artifact.facts["n_selected"]):
            reporter.say(said)
    assert plan.compare is not None
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{combination.selector}-{combination.budget.replace('%', 'percent')}")
    folder = config.output / COMBINATIONS / combination.target / name
    return plan.compare.run(reporter, folder, engine)


def _findings(
    combination: Combination, plan: Plan, comparisons: Sequence[Comparison], *, several: bool
) -> list[Finding]:
    """The arms of a combination; with several selectors sentences name theirs."""
    n_rows = plan.methods[0].select.artifact.facts["n_selected"]
    by = f" by {combination.selector}" if several else ""
    return [
        Finding(
            target=combination.target,
            budget=combination.budget if row.arm != BEFORE else "",
            n_rows=n_rows if row.arm != BEFORE else 0,
            selector=combination.selector if row.cost is not None else "",
            arm=row.arm,
            metric=comparison.metric if comparison.task == combination.target else _metric(comparison),
            n_runs=row.n_runs,
            mean=row.interval.mean,
            low=row.interval.low,
            high=row.interval.high,
            against={name: asdict(interval) for name, interval in row.against.items()},
            cost=row.cost,
            verdicts=verdict_on_row(comparison, replace(row, arm=row.arm + by)) if row.cost is not None else (),
        )
        for comparison in comparisons
        for row in comparison.rows
    ]


def _metric(comparison: Comparison) -> str:
    return f"{comparison.task} {comparison.metric}"


def _chosen(combination: Combination, plan: Plan) -> list[Chosen]:
    assert plan.compare is not None
    selects = {arm.name: arm.select for arm in plan.compare.arms if arm.baseline is None}
    stabilities = {one.select.artifact.key: one.stability for one in plan.methods}
    found = []
    for name, select in selects.items():
        table = select.table
        stability = stabilities[select.artifact.key]
        found.append(
            Chosen(
                target=combination.target,
                budget=combination.budget,
                selector=combination.selector,
                arm=name,
                rows=frozenset(table["row"].to_pylist()),
                sources=_shares(Counter(table["source"].to_pylist())),
                lost=loss_described(select.score, table.num_rows),
                stability=stability.facts if stability and stability.artifact.is_complete else None,
            )
        )
    return found


def _pool_mix(select: Select) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for batch in read_batches(select.score.artifact / SCORES, ["source"]):
        counts.update(batch.column(0).to_pylist())
    return _shares(counts)


def _shares(counts: Counter[str]) -> dict[str, float]:
    """Share of each source, largest first."""
    return {name: count / counts.total() for name, count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))}
