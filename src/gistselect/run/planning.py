"""`gistselect plan`: look at a whole job without doing it, and measure how long it would take.

The pool is read, tokenised and, if repeats or overlaps are to be left out, looked through in the run folder, where the
run finds that done; the rates that were measured are kept beside it (`artifacts/rates.json`). Nothing else is written.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from gistselect.model.hush import hushed
from gistselect.run.calibration import SECONDS, Calibration
from gistselect.run.config import RunConfig
from gistselect.run.constraints import refuse_impossible
from gistselect.run.ingest import refuse_unusable
from gistselect.run.lock import locked
from gistselect.run.mending import mending
from gistselect.run.needed import needed
from gistselect.run.outlook import START, forecast_of, speed_up
from gistselect.run.overview import overview
from gistselect.run.plan import Plan, make_plan
from gistselect.run.progress import Reporter
from gistselect.run.rates import Clock, Rate, Spent, Timer, load_rates, save_rates, wall_and_cpu
from gistselect.run.staffing import opened
from gistselect.run.workload import workload

FORMAT = 1
"""Of the document; raised when a field changes its meaning or goes."""
HEAVY = ("torch", "transformers", "peft", "accelerate", "transformers.trainer")


@mending
def plan_run(
    config: RunConfig, reporter: Reporter, *, seconds: float = SECONDS, clock: Clock = wall_and_cpu
) -> dict[str, Any]:
    """Everything that is known of a run before it, as one JSON document; see docs/plan.md.

    `seconds` are for measuring rates; with 0 those that an earlier plan kept are taken. Raises `GistSelectError` and
    its kinds, as the run would.
    """
    with locked(config.output, config.if_busy, reporter.warn):
        # What the interpreter did before this is part of every command's beginning.
        before, starting = clock().cpu, Timer(clock)
        with starting():
            plan = needed(make_plan(config, config.last_stage, None))
            _load_libraries(plan)
        with opened(config, None) as (engine, _):
            plan.records.run(reporter, engine)
            for tokens in plan.tokenisings:
                tokens.run(reporter, engine)
            refuse_unusable(plan.candidates, strict=config.strict)
            refuse_impossible(config, plan.candidates)
            if plan.goes_to("select"):
                plan.texts.run(reporter, engine)
        works = workload(plan, config)
        folder = plan.records.artifact.folder.parent
        rates: Mapping[str, Rate] = load_rates(folder)
        checkpoint_bytes = None
        if seconds:
            calibration = Calibration(plan, reporter, seconds=seconds, clock=clock)
            start = Rate(
                per_unit=Spent(), fixed=starting.spent + Spent(wall=before, cpu=before), measured_on="this command"
            )
            rates = {START: start, **calibration.measure(works)}
            checkpoint_bytes = calibration.checkpoint_bytes
            save_rates(folder, rates)
        return {
            "format": FORMAT,
            "output": str(config.output),
            "until": config.last_stage,
            **overview(plan, config, checkpoint_bytes),
            "methods": [method.representation.title for method in plan.methods],
            "forecast": forecast_of(works, rates, speed_up(config)),
        }


def _load_libraries(plan: Plan) -> None:
    """What a run has to load before it computes anything."""
    if plan.tokens is not None:
        with hushed():
            for name in HEAVY:
                importlib.import_module(name)
