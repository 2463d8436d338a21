"""Stages `train` and `evaluate`: fine-tune on the selection and on its baselines, and say honestly which is better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gistselect.errors import ConfigError
from gistselect.evaluation.catalog import task_facts, tasks_digest
from gistselect.evaluation.results import ItemValues, read_values
from gistselect.evaluation.session import evaluate as evaluate_model
from gistselect.evaluation.target_loss import target_losses
from gistselect.evaluation.verdict import Comparison, compare_values
from gistselect.model.adapters import load_adapter
from gistselect.run.context import Run
from gistselect.run.ingest import TokenizedPool
from gistselect.run.store import Artifact, digest, read_table, write_json, write_table
from gistselect.run.targets import Target, heldout_items
from gistselect.selection.baselines import length_matched_rows, random_rows
from gistselect.streams import Stream, generator
from gistselect.training.recipe import steps_per_epoch
from gistselect.training.train import train

TRAIN_VERSION = 2
LOSSES_VERSION = 1
EVALUATION_VERSION = 1
BASELINE_STREAM = 3
"""Name of the random stream of baselines beside the run's seed and the training's."""
GIST, BEFORE = "GIST", "before"
BASELINES = {"random": "random rows", "length": "random rows of the same lengths", "full": "the full pool"}
"""What people read for each baseline of the configuration."""


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """One training: of which arm, on which rows, with which seed."""

    arm: str
    seed: int
    rows: NDArray[np.intp]
    """Positions among the pool's examples."""

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model to measure: after one training, or the base model."""

    arm: str
    name: str
    artifact: Artifact | None
    """Its training; None for the base model."""

    @property
    def key(self) -> str | None:
        return self.artifact.key if self.artifact else None


def compare(run: Run, pool: TokenizedPool, selection: pa.Table, *, evaluate: bool) -> None:
    """Fine-tune on the selection and its baselines; with `evaluate`, measure all and write comparison.json.

    Raises `ConfigError` for a live model, which cannot be trained from its base again.
    """
    if run.live:
        raise ConfigError("fine-tuning needs a model folder or hub id, not a live model; or stop at --until select.")
    heldout = heldout_items(run, run.config.heldout_items) if evaluate else {}
    models = [Trained(arm=BEFORE, name=BEFORE, artifact=None)]
    for one in _trainings(run, pool, selection):
        models.append(Trained(arm=one.arm, name=one.name, artifact=_fine_tuned(run, pool, one)))
    if evaluate:
        comparisons = _comparisons(run, heldout, models)
        write_json(run.path("comparison.json"), [asdict(one) for one in comparisons])
        for comparison in comparisons:
            run.say(table(comparison))


def _trainings(run: Run, pool: TokenizedPool, selection: pa.Table) -> Iterator[FineTuning]:
    """The selection and each baseline once for every training seed; baselines are drawn anew each time."""
    rows = pool.rows()
    position = {row: index for index, row in enumerate(rows["row"].to_pylist())}
    selected = np.asarray([position[row] for row in selection["row"].to_pylist()])
    lengths = rows["n_tokens"].to_numpy()
    for seed in run.config.train_seeds:
        yield FineTuning(arm=GIST, seed=seed, rows=selected)
        for name in run.config.baselines:
            rng = np.random.default_rng([run.config.seed, BASELINE_STREAM, list(BASELINES).index(name), seed])
            yield FineTuning(arm=BASELINES[name], seed=seed, rows=_baseline_rows(name, lengths, selected, rng))


def _baseline_rows(
    name: str, lengths: NDArray[np.integer], selected: NDArray[np.intp], rng: np.random.Generator
) -> NDArray[np.intp]:
    if name == "full":
        return np.arange(len(lengths))
    if name == "length":
        return length_matched_rows(lengths, selected, rng)
    return random_rows(len(selected), len(lengths), rng)


def _fine_tuned(run: Run, pool: TokenizedPool, one: FineTuning) -> Artifact:
    config = run.config
    artifact = run.store.artifact(
        "train",
        TRAIN_VERSION,
        **run.model_inputs,
        tokens=pool.artifact.key,
        rows=digest(one.rows.tolist()),
        training=config.finetune.model_dump(mode="json"),
        seed=one.seed,
    )
    if not artifact.is_complete:
        n_steps = config.finetune.epochs * steps_per_epoch(len(one.rows), config.finetune.global_batch_size)
        with run.reporter.step(f"train on {one.name}", total=n_steps, unit="steps") as step:
            result = train(
                config.source,
                pool.select(one.rows),
                config.finetune,
                output=artifact / "training",
                seed=one.seed,
                progress=step.reach,
            )
        artifact.complete(adapter=str(result.adapter.relative_to(artifact.folder)))
    return artifact


def _comparisons(run: Run, heldout: dict[str, Target], models: Sequence[Trained]) -> list[Comparison]:
    """Every metric over all arms: target losses first, then the evaluation protocols that were asked for."""
    by_model = [
        [*(_target_loss(run, target, model) for target in heldout.values()), *_protocols(run, model)]
        for model in models
    ]
    arms = dict.fromkeys(model.arm for model in models)
    return [
        compare_values(
            [(arm, [one for one, model in zip(metric, models, strict=True) if model.arm == arm]) for arm in arms],
            rng=generator(run.config.seed, Stream.BOOTSTRAP),
            candidate=GIST,
            untrained=BEFORE,
            draws=run.config.evaluation.draws,
            level=run.config.evaluation.level,
        )
        for metric in zip(*by_model, strict=True)
    ]


def _target_loss(run: Run, target: Target, model: Trained) -> ItemValues:
    artifact = run.store.artifact("losses", LOSSES_VERSION, **run.model_inputs, training=model.key, items=target.digest)
    if not artifact.is_complete:
        language_model = run.load_model()
        if model.artifact:
            language_model = load_adapter(language_model, model.artifact / model.artifact.facts["adapter"])
        name = f"{target.task} loss, {model.name}"
        with run.reporter.step(name, total=len(target.examples), unit="items") as step:
            losses = target_losses(language_model, target.examples, target.groups, step.reach)
        columns = {"id": [one.id for one in losses], "loss": [one.loss for one in losses], "group": target.groups}
        write_table(artifact / "losses.parquet", pa.table(columns))
        artifact.complete(items=len(losses))
    stored = read_table(artifact / "losses.parquet")
    return ItemValues(
        task=target.task,
        metric="loss",
        higher_is_better=False,
        ids=tuple(stored["id"].to_pylist()),
        values=stored["loss"].to_numpy(),
        groups=target.groups if task_facts(target.task).average == "groups" else None,
    )


def _protocols(run: Run, model: Trained) -> list[ItemValues]:
    """The first metric of each evaluation protocol of the configuration."""
    config = run.config
    if not config.evaluate_tasks:
        return []
    options = config.evaluation.resolved(template=config.template, seed=config.seed)
    artifact = run.store.artifact(
        "evaluation",
        EVALUATION_VERSION,
        **run.model_inputs,
        training=model.key,
        tasks=list(config.evaluate_tasks),
        content=tasks_digest(config.evaluate_tasks, config.data_dir),
        evaluation=options.model_dump(mode="json"),
    )
    if not artifact.is_complete:
        adapter = model.artifact / model.artifact.facts["adapter"] if model.artifact else None
        run.say(f"Evaluating {model.name}.")
        with run.reporter.steps("items") as progress:
            evaluate_model(
                config.source,
                adapter,
                config.evaluate_tasks,
                config.data_dir,
                artifact / "results",
                options,
                progress,
            )
        artifact.complete()
    return [values[0] for values in read_values(artifact / "results").values() if values]


def table(comparison: Comparison) -> str:
    """The arms as aligned text, with the verdicts."""
    lines = [f"{comparison.task}, held-out {comparison.metric} (mean, 95 % interval over items and seeds):"]
    for row in comparison.rows:
        one = row.interval
        runs = f"  {row.n_runs} trainings" if row.arm != BEFORE else ""
        lines.append(f"  {row.arm:<32} {one.mean:.3f}  [{one.low:.3f}, {one.high:.3f}]{runs}")
    return "\n".join([*lines, *comparison.verdicts])
