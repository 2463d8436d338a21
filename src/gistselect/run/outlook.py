"""The forecast of a run: what is left of each piece of work times what an amount of it takes here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from gistselect.run.config import RunConfig
from gistselect.run.plan import Plan
from gistselect.run.progress import duration
from gistselect.run.rates import Rate, Spent, load_rates
from gistselect.run.threads import told_threads, usable_cores
from gistselect.run.workload import Work

START = "start"
"""Rate of what every command begins with: libraries are loaded, files and models are identified."""


def speed_up(config: RunConfig) -> float:
    """How many times the speed of this process the workers of a configuration have together, if they share well.

    Workers on cores divide the cores of this machine, so they gain where this process may use few of them. Of a
    cluster nothing is known before it is there.
    """
    if config.engine_kind != "local":
        return 1.0
    from gistselect.run.local import devices, environment

    names = devices(config.devices, cuda=config.device in ("auto", "cuda"), cards=config.cards_of_a_worker)
    if names[0].startswith("cuda"):
        return float(len(names))
    cores = usable_cores()
    here = told_threads(os.environ.get("OMP_NUM_THREADS", "")) or cores
    each = told_threads(environment(names[0], len(names))["OMP_NUM_THREADS"]) or cores
    return max(1.0, min(len(names) * each, cores) / min(here, cores))


def forecast_of(works: Sequence[Work], rates: Mapping[str, Rate], workers: float = 1.0) -> dict[str, Any]:
    """Seconds of each piece that is left and of each stage, as JSON.

    `seconds` are those of the clock, `cpu_seconds` those of all cores; None where no rate is known, and such pieces
    are named in `unknown` and not in the sums.
    """
    spent = [_spent(work, rates, workers) for work in works]
    stages, unknown = _by_stage(works, spent, rates)
    pieces: list[dict[str, Any]] = [
        {
            "stage": work.stage,
            "name": work.name,
            "state": work.state,
            "parts_done": work.parts[0],
            "parts": work.parts[1],
            "unit": work.unit,
            "total": work.total,
            "left": work.left,
            **_described(one),
            "measured_on": rates[work.rate].measured_on if work.left and work.rate in rates else None,
        }
        for work, one in zip(works, spent, strict=True)
    ]
    return {
        "work": pieces,
        "stages": {name: _described(one) for name, one in stages.items()},
        "unknown": unknown,
        "total": _described(sum(stages.values(), Spent())),
    }


def _by_stage(
    works: Sequence[Work], spent: Sequence[Spent | None], rates: Mapping[str, Rate]
) -> tuple[dict[str, Spent], list[str]]:
    """What each stage takes, and the names of pieces of which it is not known."""
    stages = {START: rates[START].fixed} if START in rates else {}
    for work, one in zip(works, spent, strict=True):
        if one is not None:
            stages[work.stage] = stages.get(work.stage, Spent()) + one
    return stages, [work.name for work, one in zip(works, spent, strict=True) if one is None]


def _spent(work: Work, rates: Mapping[str, Rate], workers: float) -> Spent | None:
    """What is left of a piece takes, with what is done on the way; None if a rate of it is not known."""
    needed = work.needed
    if not needed.keys() <= rates.keys():
        return None
    total = Spent()
    for key, left in needed.items():
        rate = rates[key]
        shared = Spent(wall=rate.per_unit.wall / (workers if work.parallel else 1.0), cpu=rate.per_unit.cpu)
        total += rate.fixed + shared * left
    return total


def _described(spent: Spent | None) -> dict[str, float | None]:
    if spent is None:
        return {"seconds": None, "cpu_seconds": None}
    return {"seconds": round(spent.wall, 2), "cpu_seconds": round(spent.cpu, 2)}


def time_line(plan: Plan, config: RunConfig, works: Sequence[Work]) -> str | None:
    """The forecast in a line, at the rates that `gistselect plan` measured in this run folder; None without any."""
    rates = load_rates(plan.records.artifact.folder.parent)
    if not rates:
        return None
    spent = [_spent(work, rates, speed_up(config)) for work in works]
    stages, unnamed = _by_stage(works, spent, rates)
    told = [f"{name} {duration(one.wall)}" for name, one in stages.items() if round(one.wall, 2) >= 1]
    unknown = f", without {', '.join(dict.fromkeys(unnamed))}" if unnamed else ""
    total = duration(round(sum(stages.values(), Spent()).wall, 2))
    return f"Time, as 'gistselect plan' measured it: {', '.join([*told, f'in all {total}'])}{unknown}."
