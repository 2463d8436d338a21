"""Where is there anything to be gained? `python benchmarks/headroom.py [--smollm2]`.

For each target, 64 random rows of its own sources against 64 random rows of the whole pool: the loss on held-out items
after training on either. A target on which even the right sources teach no more than chance cannot tell methods apart.
Items and queries of targets that are no built-in task are rows of the pool's sources, which are never trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import torch

from gistselect.evaluation.verdict import BEFORE
from gistselect.run.config import RunConfig
from gistselect.run.lock import locked
from gistselect.run.plan import make_plan
from gistselect.run.progress import Reporter
from gistselect.run.staffing import opened
from study_arms import LEVEL, Arms, compared
from study_setup import (
    DEFAULT_PLACE,
    DEMO,
    REAL,
    Place,
    circumstances,
    model_folder,
    model_title,
    pool_lines,
    write_lines,
)
from study_targets import SOURCES, OwnTargets

app = cyclopts.App(help=__doc__, default_parameter=cyclopts.Parameter(consume_multiple=True))
ROWS = 64
ITEMS = {"mmlu": 1, "bbh": 1, "xqa": 8}
"""Held-out items of each group; 40 of targets without groups."""
IN_DOMAIN, RANDOM = "rows of its sources", "random rows"


@app.default
def main(
    *,
    place: Place = DEFAULT_PLACE,
    smollm2: bool = False,
    targets: tuple[str, ...] = tuple(SOURCES),
    draws: int | None = None,
    threads: int = 1,
) -> None:
    """Compute whatever is missing, a target at a time; the file holds those that are done.

    Parameters
    ----------
    smollm2:
        The real model instead of the embedded one.
    targets:
        Which of them.
    draws:
        Draws of the rows, each a training; by default 1 of the real model and 3 of the embedded one.
    threads:
        CPU threads.
    """
    torch.set_num_threads(threads)
    name = "smollm2" if smollm2 else "demo"
    draws = draws or (1 if smollm2 else 3)
    folder = place.work / f"headroom-{name}-{place.seed}"
    own = OwnTargets(place.data, folder / "targets", place.seed)
    pool, places = rows_to_train(place, own, draws, folder)
    common: dict[str, Any] = {
        **(REAL if smollm2 else DEMO),
        "max_length": 2048,
        "model": model_folder(not smollm2),
        "pool": [str(pool)],
        "data_dir": place.data,
        "output": folder / "study",
        "seed": place.seed,
        "representation": ["random"],
        "budget": 1,
    }
    told = f"headroom.py --seed {place.seed}" + " --smollm2" * smollm2
    made = circumstances(told, model_title(not smollm2), {**common, "draws": draws, "items": ITEMS})
    found: list[dict[str, Any]] = []
    reporter = Reporter()
    for target in targets:
        config = RunConfig.from_values({**common, **own.options([target]), "heldout_items": ITEMS.get(target, 40)})
        found.append(
            {"target": target, "sources": SOURCES[target], **judged(config, places[target], places[""], reporter)}
        )
        place.write(f"headroom-{name}", {"made": made, "level": LEVEL, "targets": found})


def judged(
    config: RunConfig, in_domain: list[list[int]], random: list[list[int]], reporter: Reporter
) -> dict[str, Any]:
    """Losses before training, after random rows and after rows of the target's sources, a draw for each seed."""
    with locked(config.output, "wait", reporter.say):
        plan = make_plan(config, "evaluate", None)
        assert plan.compare is not None
        assert plan.tokens is not None
        plan.records.run(reporter)
        with opened(config, None) as (engine, _):
            plan.tokens.run(reporter, engine)
        own = Arms(plan.compare, reporter)
        arms = [
            (BEFORE, [own.before()]),
            (RANDOM, [own.after(rows, draw, RANDOM) for draw, rows in enumerate(random)]),
            (IN_DOMAIN, [own.after(rows, draw, IN_DOMAIN) for draw, rows in enumerate(in_domain)]),
        ]
    return {
        "items": len(own.items.queries.examples),
        "left_out": len(own.items.rejected),
        "arms": compared(arms, candidate=IN_DOMAIN, references=(BEFORE, RANDOM), seed=config.seed),
    }


def rows_to_train(place: Place, own: OwnTargets, draws: int, folder: Path) -> tuple[Path, dict[str, list[list[int]]]]:
    """A pool of the rows that any arm trains on, and the places in it of each draw by target; "" has random ones."""
    every: dict[str, list[bytes]] = {name: [] for name in ("", *SOURCES)}
    for source, line in pool_lines(place.pool):
        if line not in own.apart:
            every[""].append(line)
            for name, sources in SOURCES.items():
                if source in sources:
                    every[name].append(line)
    lines: dict[bytes, int] = {}
    places: dict[str, list[list[int]]] = {}
    for number, (name, candidates) in enumerate(every.items()):
        order = np.random.default_rng([place.seed, number]).permutation(len(candidates))
        places[name] = [
            [lines.setdefault(candidates[row], len(lines)) for row in order[draw * ROWS : (draw + 1) * ROWS]]
            for draw in range(draws)
        ]
    write_lines(pool := folder / "pool.jsonl", list(lines))
    return pool, places


if __name__ == "__main__":
    app()
