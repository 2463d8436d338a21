"""The forecast of a run: what is left of each piece of work times what an amount of it takes here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from gistselect.run.config import RunConfig
from gistselect.run.plan import Plan
from gistselect.run.progress import duration
from gistselect.run.rates import Rate, Spent, load_rates
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
    cores = os.cpu_count() or 1
    here = int(os.environ.get("OMP_NUM_THREADS") or cores)
    each = int(environment(names[0], len(names))["OMP_NUM_THREADS"])
    return max(1.0, min(len(names) * each, cores) / min(here, cores))


def forecast_of(works: Sequence[Work], rates: Mapping[str, Rate], workers: float = 1.0) -> dict[str, Any]:
    """Seconds of each piece that is left and of each stage, as JSON.

    `seconds` are those of the clock, `cpu_seconds` those of all cores; None where no rate is known, and such pieces
    are named in `unknown` and not in the sums.
    """
    pieces: list[dict[str, Any]] = []
    stages: dict[str, Spent] = {START: rates[START].fixed} if START in rates else {}
    unknown: list[str] = []
    for work in works:
        spent = _spent(work, rates.get(work.rate), workers)
        if spent is None:
            unknown.append(work.name)
        else:
            stages[work.stage] = stages.get(work.stage, Spent()) + spent
        pieces.append(
            {
                "stage": work.stage,
                "name": work.name,
                "state": work.state,
                "parts_done": work.parts[0],
                "parts": work.parts[1],
                "unit": work.unit,
                "total": work.total,
                "left": work.left,
                **_described(spent),
                "measured_on": rates[work.rate].measured_on if work.left and work.rate in rates else None,
            }
        )
    total = sum(stages.values(), Spent())
    return {
        "work": pieces,
        "stages": {name: _described(spent) for name, spent in stages.items()},
        "unknown": unknown,
        "total": _described(total),
    }


def _spent(work: Work, rate: Rate | None, workers: float) -> Spent | None:
    if not work.left:
        return Spent()
    if rate is None:
        return None
    shared = Spent(wall=rate.per_unit.wall / (workers if work.parallel else 1.0), cpu=rate.per_unit.cpu)
    return rate.fixed + shared * work.left


def _described(spent: Spent | None) -> dict[str, float | None]:
    if spent is None:
        return {"seconds": None, "cpu_seconds": None}
    return {"seconds": round(spent.wall, 2), "cpu_seconds": round(spent.cpu, 2)}


def time_line(plan: Plan, config: RunConfig, works: Sequence[Work]) -> str | None:
    """The forecast in a line, at the rates that `gistselect plan` measured in this run folder; None without any."""
    rates = load_rates(plan.records.artifact.folder.parent)
    if not rates:
        return None
    forecast = forecast_of(works, rates, speed_up(config))
    stages = [f"{name} {duration(one['seconds'])}" for name, one in forecast["stages"].items() if one["seconds"] >= 1]
    unknown = f", without {', '.join(dict.fromkeys(forecast['unknown']))}" if forecast["unknown"] else ""
    total = duration(forecast["total"]["seconds"])
    return f"Time, as 'gistselect plan' measured it: {', '.join([*stages, f'in all {total}'])}{unknown}."
