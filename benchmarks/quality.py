"""The study: does a selection teach a real model more than what is cheap? `python benchmarks/quality.py --small`.

SmolLM2-135M-Instruct, and a seeded part of the pool in a LESS-style folder. It is `gistselect compare` with its options
written down (`study_sizes.py`): one pass over the pool for all targets, then target by target, so that it can be
interrupted and continued; a small JSON file holds everything that is found so far.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cyclopts
import torch

from gistselect.errors import GistSelectError
from gistselect.run.config import DRAWN, RunConfig
from gistselect.run.pipeline import execute
from gistselect.run.plan import make_plans
from gistselect.run.progress import Reporter
from gistselect.run.study import run_study
from gistselect.run.study_config import StudyConfig
from study_setup import DEFAULT_PLACE, Place, circumstances, model_folder, model_title, pool_part
from study_sizes import SIZES, Size
from study_targets import OWN, OwnTargets

app = cyclopts.App(help=__doc__, default_parameter=cyclopts.Parameter(consume_multiple=True))
PARTS = ("findings", "overlap", "sources")
"""What is found target by target; the rest of a study is the same for all."""


@app.default
def main(
    *,
    place: Place = DEFAULT_PLACE,
    demo: bool = False,
    small: bool = False,
    choices: bool = False,
    cpu: bool = False,
    full: bool = False,
    threads: int = 2,
    train_seeds: tuple[int, ...] = (),
    plan: bool = False,
) -> None:
    """Run one size of the study, or continue it.

    Parameters
    ----------
    demo:
        The embedded 3.7 M-parameter model instead, every representation, three targets; give --data .../small.
    small:
        One target, six representations, three seeds: at most 90 minutes on two CPU cores.
    choices:
        The embedded model, the three targets on which it can tell methods apart, four methods under every kind of
        selector at budgets of 1 and 5 %.
    cpu:
        The table that a CPU can fill in a few days, in pieces.
    full:
        The whole pool, for a GPU.
    threads:
        CPU threads.
    train_seeds:
        Seeds of the trainings, fewer than the size has for a first look; by default all.
    plan:
        Only make every plan and count the trainings: whatever can be refused is refused now.
    """
    sizes = {"demo": demo, "small": small, "choices": choices, "cpu": cpu, "full": full}
    chosen = [name for name, wanted in sizes.items() if wanted]
    if len(chosen) != 1:
        raise SystemExit(f"give one of {', '.join(f'--{name}' for name in sizes)}.")
    torch.set_num_threads(threads)
    name = chosen[0]
    size, folder = SIZES[name], place.work / f"{name}-{place.seed}"
    own = OwnTargets(place.data, folder / "targets", place.seed) if set(size.heldout) & set(OWN) else None
    pool = pool_part(place.pool, size.pool_rows, place.seed, folder, own.apart if own else set())
    options = {**size.options, **({"train_seeds": train_seeds} if train_seeds else {})}
    shared = {**options, "model": model_folder(size.demo), "pool": [str(pool)], "output": folder / "study"}
    shared |= {"data_dir": place.data, "seed": place.seed}
    if "embedding" in size.methods:
        # No text encoder can be installed as a package: the hidden states of the embedded model stand for one.
        shared["encoder"] = model_folder(demo=True)
    pieces = [config for target in size.heldout for config in _pieces(size, target, shared, own)]
    if plan:
        print(_counted(pieces))
        return
    reporter = Reporter()
    execute(_together(size, shared, own), reporter, last="features")
    told = f"quality.py --{name} --seed {place.seed} --threads {threads}"
    recorded = {**options, "pool_rows": size.pool_rows, "methods": size.methods, "heldout_items": size.heldout}
    made = circumstances(told, model_title(size.demo), recorded)
    found: dict[str, Any] = {}
    for config in pieces:
        study = run_study(config, reporter).described()
        found = {**study, **{part: [*found.get(part, ()), *study[part]] for part in PARTS}}
        place.write(name, {"made": made, **found})


def _pieces(size: Size, target: str, shared: dict[str, Any], own: OwnTargets | None) -> list[StudyConfig]:
    """The comparisons of one target: one for each set of selectors that go with the same methods."""
    found = []
    for methods, selectors in size.orders:
        # A method that a selector cannot be used with is no rival there either.
        baselines = [one for one in shared["baselines"] if one in DRAWN or one in methods]
        own_values = {"representation": methods, "selectors": selectors, "baselines": baselines}
        items = {"heldout_items": size.heldout[target]}
        found.append(StudyConfig.from_values({**shared, **items, **_targets([target], own), **own_values}))
    return found


def _together(size: Size, shared: dict[str, Any], own: OwnTargets | None) -> RunConfig:
    """One run whose passes over the pool serve every target and method."""
    values = {name: value for name, value in shared.items() if name in RunConfig.model_fields}
    return RunConfig.from_values({**values, **_targets(list(size.heldout), own), "representation": size.methods})


def _targets(names: list[str], own: OwnTargets | None) -> dict[str, Any]:
    return own.options(names) if own else {"target": names}


def _counted(pieces: list[StudyConfig]) -> str:
    """Every plan made; the trainings that they ask for, and one line for each piece."""
    lines, trainings = [], set()
    for config in pieces:
        combinations = [one.config for one in config.variants()]
        try:
            _, plans = make_plans(combinations[0], combinations, "evaluate")
        except GistSelectError as error:
            raise SystemExit(f"{config.target}: {error}") from None
        compared = [one.compare for one in plans if one.compare is not None]
        arms = {arm.artifact.key for compare in compared for arm in compare.arms}
        items = len(compared[0].heldout[0].queries.examples)
        queries = len(plans[0].targets[0].queries.examples)
        trainings |= arms
        lines.append(
            f"{', '.join(Path(one).stem for one in config.target)}: {queries} queries, {items} items; "
            f"{len(config.representation)} methods with {', '.join(config.selectors or (config.selector,))}; "
            f"at most {len(arms)} trainings"
        )
    return "\n".join([*lines, f"at most {len(trainings)} trainings in all; those of the same rows are done once"])


if __name__ == "__main__":
    app()
