"""Stages `train` and `evaluate`: fine-tune on the selection and on its baselines, and say honestly which is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gistselect.errors import ConfigError
from gistselect.evaluation import target_losses
from gistselect.linalg.intervals import Interval, difference_of_runs, mean_of_runs
from gistselect.model.adapters import load_adapter
from gistselect.run.context import Run
from gistselect.run.ingest import TokenizedPool
from gistselect.run.store import Artifact, digest, read_table, write_json, write_table
from gistselect.run.targets import Target, heldout_items
from gistselect.selection.baselines import length_matched_rows, random_rows
from gistselect.training import steps_per_epoch, train

TRAIN_VERSION = 1
LOSSES_VERSION = 1
BASELINE_STREAM = 3
"""Name of the random stream of baselines beside the run's seed and the training's."""
BOOTSTRAP_STREAM = 4
"""Name of the random stream of intervals beside the run's seed."""
SELECTED = "gist"
LABELS = {
    "before": "before",
    "random": "random rows",
    "length": "random, same lengths",
    "full": "full pool",
    SELECTED: "GIST",
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One fine-tuning: which rows, and with which seed."""

    name: str
    seed: int
    rows: NDArray[np.intp]
    """Positions among the pool's examples."""


@dataclass(frozen=True, kw_only=True)
class ArmLoss:
    """One arm's mean loss on a target's held-out items, with its interval over items and seeds."""

    arm: str
    runs: int
    loss: Interval
    against_random: Interval | None
    """Difference to random rows (negative: lower loss), or None for the random rows themselves."""


def compare(run: Run, pool: TokenizedPool, selection: pa.Table, *, evaluate: bool) -> None:
    """Fine-tune every arm; with `evaluate`, measure target losses and write comparison.json.

    Raises `ConfigError` for a live model, which cannot be trained from its base again.
    """
    if run.live:
        raise ConfigError("fine-tuning needs a model folder or hub id, not a live model; or stop at --until select.")
    heldout = heldout_items(run, run.config.heldout_items) if evaluate else {}
    arms = _arms(run, pool, selection)
    trained = [(arm, _fine_tuned(run, pool, arm)) for arm in arms]
    if not evaluate:
        return
    losses = {task: _losses(run, target, trained) for task, target in heldout.items()}
    results = {task: summarise(run.config.seed, heldout[task], by_arm) for task, by_arm in losses.items()}
    write_json(
        run.path("comparison.json"),
        {
            task: {
                "items": len(heldout[task].examples),
                "rows": selection.num_rows,
                "arms": [asdict(row) for row in rows],
                "verdict": verdict(task, rows),
            }
            for task, rows in results.items()
        },
    )
    for task, rows in results.items():
        run.say(table(task, rows))


def _arms(run: Run, pool: TokenizedPool, selection: pa.Table) -> list[Arm]:
    """The selection and each baseline once for every training seed."""
    rows = pool.rows()
    position = {row: index for index, row in enumerate(rows["row"].to_pylist())}
    selected = np.asarray([position[row] for row in selection["row"].to_pylist()])
    lengths = rows["n_tokens"].to_numpy()
    arms = []
    for seed in run.config.train_seeds:
        arms.append(Arm(name=SELECTED, seed=seed, rows=selected))
        for number, name in enumerate(run.config.baselines):
            rng = np.random.default_rng([run.config.seed, BASELINE_STREAM, number, seed])
            drawn = {
                "random": lambda rng=rng: random_rows(len(selected), len(lengths), rng),
                "length": lambda rng=rng: length_matched_rows(lengths, selected, rng),
                "full": lambda: np.arange(len(lengths)),
            }[name]()
            arms.append(Arm(name=name, seed=seed, rows=drawn))
    return arms


def _fine_tuned(run: Run, pool: TokenizedPool, arm: Arm) -> Artifact:
    config = run.config
    artifact = run.store.artifact(
        "train",
        TRAIN_VERSION,
        **run.model_inputs,
        tokens=pool.artifact.key,
        rows=digest(arm.rows.tolist()),
        training=config.finetune.model_dump(mode="json"),
        seed=arm.seed,
    )
    if not artifact.is_complete:
        n_steps = config.finetune.epochs * steps_per_epoch(len(arm.rows), config.finetune.global_batch_size)
        with run.reporter.step(f"train on {LABELS[arm.name]}, seed {arm.seed}", total=n_steps, unit="steps") as step:
            result = train(
                run.load_model(),
                pool.select(arm.rows),
                config.finetune,
                output=artifact / "training",
                seed=arm.seed,
                progress=step.reach,
            )
        artifact.complete(arm=arm.name, seed=arm.seed, adapter=str(result.adapter.relative_to(artifact.folder)))
    return artifact


def _losses(run: Run, target: Target, trained: Sequence[tuple[Arm, Artifact]]) -> dict[str, NDArray[np.float64]]:
    """Losses (n_run, n_item) on the held-out items for every arm, and for the model as it came ("before")."""
    found: dict[str, list[NDArray[np.float64]]] = {"before": [_measured(run, target, None)]}
    for arm, artifact in trained:
        found.setdefault(arm.name, []).append(_measured(run, target, artifact))
    return {name: np.stack(runs) for name, runs in found.items()}


def _measured(run: Run, target: Target, trained: Artifact | None) -> NDArray[np.float64]:
    artifact = run.store.artifact(
        "losses", LOSSES_VERSION, **run.model_inputs, adapter=trained.key if trained else None, items=target.digest
    )
    if not artifact.is_complete:
        model = run.load_model()
        name = "before training"
        if trained:
            model = load_adapter(model, trained / trained.facts["adapter"])
            name = f"{LABELS[trained.facts['arm']]}, seed {trained.facts['seed']}"
        with run.reporter.step(f"{target.task} loss: {name}", total=len(target.examples), unit="items") as step:
            losses = target_losses(model, target.examples, target.groups, step.reach)
        table = {"id": [one.id for one in losses], "loss": [one.loss for one in losses], "group": target.groups}
        write_table(artifact / "losses.parquet", pa.table(table))
        artifact.complete(items=len(losses))
    return read_table(artifact / "losses.parquet")["loss"].to_numpy()


def summarise(seed: int, target: Target, by_arm: dict[str, NDArray[np.float64]]) -> list[ArmLoss]:
    """Mean losses with intervals, groups weighing the same, and each arm's paired difference to random rows."""
    _, groups = np.unique(target.groups, return_inverse=True)
    rows = []
    for name, runs in by_arm.items():
        rng = np.random.default_rng([seed, BOOTSTRAP_STREAM])
        difference = None
        if "random" in by_arm and name != "random":
            difference = difference_of_runs(runs, by_arm["random"], groups=groups, rng=rng)
        loss = mean_of_runs(runs, groups=groups, rng=rng)
        rows.append(ArmLoss(arm=name, runs=len(runs), loss=loss, against_random=difference))
    return sorted(rows, key=lambda row: list(LABELS).index(row.arm))


def verdict(task: str, rows: Sequence[ArmLoss]) -> str:
    """One sentence: whether the selection beats random rows on the target loss, as far as the intervals tell."""
    difference = next(row.against_random for row in rows if row.arm == SELECTED)
    if difference is None:
        return f"GIST on {task}: no random rows to compare with (--baselines random)."
    interval = f"target loss {difference.mean:+.3f} nats, 95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
    if difference.high < 0:
        return f"GIST is better than random on {task}: {interval}."
    if difference.low > 0:
        return f"GIST is worse than random on {task}: {interval}."
    return f"GIST is not distinguishable from random on {task}: {interval}."


def table(task: str, rows: Sequence[ArmLoss]) -> str:
    """The arms' losses as aligned text, with the verdict."""
    lines = [f"Loss on held-out {task} items (nats per supervised token, 95 % interval over items and seeds):"]
    for row in rows:
        runs = "" if row.arm == "before" else f"  {row.runs} runs"
        lines.append(f"  {LABELS[row.arm]:<22} {row.loss.mean:.3f}  [{row.loss.low:.3f}, {row.loss.high:.3f}]{runs}")
    return "\n".join([*lines, verdict(task, rows)])
