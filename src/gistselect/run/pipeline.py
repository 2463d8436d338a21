"""The stages in order, up to the one that was asked for. Finished work is reused; one process writes at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistselect.report.closing import closing_lines
from gistselect.run.config import RunConfig, Stage
from gistselect.run.constraints import refuse_impossible
from gistselect.run.contamination import overlap_line
from gistselect.run.engine import Engine
from gistselect.run.features import Features
from gistselect.run.finished import write_queries
from gistselect.run.forecast import forecast
from gistselect.run.ingest import refuse_unusable
from gistselect.run.lock import locked
from gistselect.run.mending import mending
from gistselect.run.needed import needed
from gistselect.run.outlook import time_line
from gistselect.run.plan import Plan, make_plan
from gistselect.run.prefilter import loss_told
from gistselect.run.progress import Reporter
from gistselect.run.remember import remember, remember_first
from gistselect.run.reporting import report_of
from gistselect.run.results import (
    REPORT,
    agreement_lines,
    publish_prefilter,
    publish_scores,
    publish_selection,
    refuse_foreign,
    retract_methods,
    write_manifest,
    write_rejected_queries,
)
from gistselect.run.sources import Sources
from gistselect.run.staffing import opened
from gistselect.run.warmup import WarmUp
from gistselect.run.workload import workload

if TYPE_CHECKING:
    from gistselect.model.loading import LanguageModel


@mending
def execute(
    config: RunConfig, reporter: Reporter, *, live: LanguageModel | None = None, last: Stage | None = None
) -> None:
    """Run the stages up to `last` (by default the configuration's last stage).

    Writes the files of the output contract into the run folder; see docs/architecture.md. Raises `GistSelectError`
    and its kinds, before any work for all that can be known before it.
    """
    with locked(config.output, config.if_busy, reporter.warn), reporter.recording(config.output), _given_back(live):
        refuse_foreign(config.output)
        plan = needed(make_plan(config, last or config.last_stage, live))
        clock = Clock(reporter)
        with opened(config, live) as (engine, sources):
            read_pool(plan, config, reporter, clock, engine)
            remember_first(config)
            counts = _carry_out(plan, config, reporter, clock, sources, engine)
        write_manifest(plan, config.output, config.seed, clock.seconds, counts)
        remember(config)
        if plan.goes_to("select"):
            _report(config, reporter)
    reporter.say(f"Results are in {config.output}")


def _report(config: RunConfig, reporter: Reporter) -> None:
    """Write the page and say what it comes to. The results are whole already, so no failure of it is the command's."""
    folder = config.output
    try:
        run = report_of(folder)
        reporter.say("\n".join(closing_lines(run, has_model=config.names_what_is_trained)))
    except Exception as error:  # noqa: BLE001 - see above
        reporter.warn(
            f"Warning: {folder / REPORT} could not be written ({type(error).__name__}: {error}). The results are "
            f"whole; 'gistselect report {folder}' writes it again."
        )


def _given_back(live: LanguageModel | None) -> AbstractContextManager[None]:
    """A live model is as it came after the run, however that ends."""
    if live is None:
        return nullcontext()
    from gistselect.model.live import restored

    return restored(live.model)


def _carry_out(
    plan: Plan, config: RunConfig, reporter: Reporter, clock: Clock, sources: Sources, engine: Engine
) -> dict[str, Any]:
    """Do what the plan needs; the counts of the stages that ran."""
    prepare(plan, config, reporter, clock, sources, engine)
    counts: dict[str, Any] = {}
    if plan.goes_to("score"):
        with clock("score"):
            counts |= _score(plan, config.output, reporter, sources)
    if plan.goes_to("select"):
        with clock("select"):
            for method in plan.methods:
                method.select.run(reporter)
                overlap = plan.overlaps.run(method.select.artifact, method.select.table["row"].to_pylist())
                reporter.say(f"{method.select.mix()}\n{overlap_line(overlap.facts)}")
                if method.stability:
                    method.stability.run(reporter)
                    reporter.say(method.stability.told())
                publish_selection(method, overlap)
                if said := loss_told(method.score, method.select.artifact.facts["n_selected"]):
                    reporter.say(said)
        counts["selected"] = plan.methods[0].select.artifact.facts["n_selected"]
    if plan.compare is not None:
        with clock("train and evaluate"):
            plan.compare.run(reporter, config.output, engine)
    return counts


def read_pool(plan: Plan, config: RunConfig, reporter: Reporter, clock: Clock, engine: Engine) -> None:
    """Read the pool, and refuse what cannot be done with it: options that are refused are not yet remembered."""
    with clock("ingest"):
        plan.records.run(reporter, engine)
        for tokens in plan.tokenisings:
            tokens.run(reporter, engine)
        refuse_unusable(plan.candidates, strict=config.strict)
        refuse_impossible(config, plan.candidates)
        if plan.prefilter:
            plan.prefilter.refuse_small()
        if plan.goes_to("select"):
            plan.texts.run(reporter, engine)


def prepare(plan: Plan, config: RunConfig, reporter: Reporter, clock: Clock, sources: Sources, engine: Engine) -> None:
    """Everything between the read pool and scores: the warm-up, and what the passes keep of every row."""
    write_rejected_queries(plan.targets, config.output)
    write_queries(plan.targets, config.output)
    _foretell(plan, config, reporter)
    if plan.goes_to("features") and plan.prefilter:
        with clock("prefilter"):
            plan.prefilter.run(reporter, engine, sources)
    if plan.goes_to("warmup") and isinstance(plan.warmup, WarmUp) and plan.features.reads_gradients:
        with clock("warmup"):
            plan.warmup.run(reporter, engine)
    if plan.goes_to("features"):
        with clock("features"):
            try:
                plan.features.run(reporter, engine, sources)
            finally:
                # What comes next wants the memory of the devices.
                sources.close()
                engine.close()


def _foretell(plan: Plan, config: RunConfig, reporter: Reporter) -> None:
    works = workload(plan, config)
    if (line := time_line(plan, config, works)) is not None:
        reporter.say(line)
    reporter.say(forecast(plan, config, works))


def _score(plan: Plan, output: Path, reporter: Reporter, sources: Sources) -> dict[str, Any]:
    retract_methods(plan, output)
    publish_prefilter(plan.prefilter, output)
    for method in plan.methods:
        method.score.run(reporter)
        if method.agreement:
            method.agreement.run(reporter, sources, _gradient_sources(plan.features))
            for line in agreement_lines(method):
                reporter.say(line)
        publish_scores(method)
    sources.close()
    facts = plan.methods[0].score.artifact.facts
    left_out = {"left_out": facts["n_left_out"]} if "n_left_out" in facts else {}
    return {"scored": facts["n_scored"], "quarantined": facts["n_rejected"], **left_out}


def _gradient_sources(features: Features) -> dict[str, Any]:
    """The source of each checkpoint by its key."""
    assert features.warmup is not None
    return {one.checkpoint.key: features.source("gradient", one.checkpoint) for one in features.warmup.placed()}


class Clock:
    """Wall seconds of each stage, which the reporter is told of."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        with self._reporter.stage(stage):
            yield
        self.seconds[stage] = round(time.monotonic() - started, 2)
