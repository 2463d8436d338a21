"""Commands beside a run: train on any rows, evaluate any model, hand a selection to another tool."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gistselect.data.pool import open_pool, read_records
from gistselect.data.templates import load_template
from gistselect.data.tokens import encode
from gistselect.errors import ConfigError, DataError
from gistselect.evaluation.session import evaluate
from gistselect.export.job import ExportJob, export
from gistselect.files import replacing, write_json_lines
from gistselect.model.loading import load_tokenizer
from gistselect.report.charts import Line, line_chart
from gistselect.run.choosing import SELECTED
from gistselect.run.lock import locked
from gistselect.run.progress import Reporter
from gistselect.run.remember import recall
from gistselect.run.scoring import quarantine_entry
from gistselect.run.standalone_config import EvaluateConfig, TrainConfig
from gistselect.run.steady import steady
from gistselect.training.checkpoints import TrainingResult
from gistselect.training.recipe import steps_per_epoch, training_amounts
from gistselect.training.train import merge_adapter, train
from gistselect.types import Example, Record, Rejected


def train_on_rows(config: TrainConfig, reporter: Reporter) -> list[TrainingResult]:
    """One training for each seed, with its curve as numbers and picture; merged on request.

    Rows that cannot be trained on are listed in quarantine.jsonl. Raises `DataError` if none is left, `ConfigError`
    for options that contradict each other.
    """
    if config.merge and config.training.full:
        raise ConfigError("--merge adds an adapter to its base; a full fine-tuning is a whole model already.")
    with locked(config.output, "wait", reporter.warn), reporter.recording(config.output):
        examples = _examples(config, reporter)
        return [_train(config, examples, seed, reporter) for seed in config.seeds]


def _train(config: TrainConfig, examples: list[Example], seed: int, reporter: Reporter) -> TrainingResult:
    folder = config.output / f"seed-{seed}"
    n_steps = config.training.epochs * steps_per_epoch(len(examples), config.training.global_batch_size)
    read = training_amounts(np.array([one.n_tokens for one in examples]), config.training.epochs)
    with reporter.step(f"train, seed {seed}", total=n_steps, unit="steps", **read) as step:
        result = train(config.source, examples, config.training, output=folder, seed=seed, progress=step.reach)
    _draw_curve(result, folder / "curve.svg")
    reporter.say(f"  checkpoint: {result.adapter}")
    if config.merge:
        merge_adapter(config.source, result.adapter, folder / "merged")
        reporter.say(f"  merged model: {folder / 'merged'}")
    return result


def _examples(config: TrainConfig, reporter: Reporter) -> list[Example]:
    tokenizer = load_tokenizer(config.source)
    rows = list(open_pool(config.data, config).rows())
    records = [row for row in rows if isinstance(row, Record)]
    template = load_template(config.template, tokenizer, omit_unshown=config.unshown == "omit")
    encoded = encode(records, template, tokenizer, config.max_length)
    rejected = [one for one in (*rows, *encoded) if isinstance(one, Rejected)]
    write_json_lines(config.output / "quarantine.jsonl", map(quarantine_entry, rejected))
    examples = [one for one in encoded if isinstance(one, Example)]
    if not examples:
        raise DataError(f"none of the {len(rows)} rows can be trained on; the first: {rejected[0].reason}")
    reporter.say(f"{len(examples):,} rows to train on, {len(rejected):,} quarantined.")
    return examples


def _draw_curve(result: TrainingResult, path: Path) -> None:
    steps, losses, _ = zip(*result.curve, strict=True)
    chart = line_chart(
        [Line(name="training loss", x=steps, y=losses)],
        title="Training curve",
        x_label="optimizer step",
        y_label="loss (nats per token)",
    )
    with replacing(path) as part:
        part.write_text(chart, encoding="utf-8")


def evaluate_model(config: EvaluateConfig, reporter: Reporter) -> list[str]:
    """Measure a model on tasks; one line of metrics with intervals for each. See `evaluation.evaluate`."""
    with (
        locked(config.output, "wait", reporter.warn),
        reporter.recording(config.output),
        reporter.steps("items") as progress,
    ):
        result = evaluate(
            config.source,
            config.adapter,
            config.tasks,
            config.data_dir,
            config.output,
            config.evaluation.resolved(),
            progress,
        )
    return [*(task.summary for task in result.tasks), f"details: {result.output / 'results.json'}"]


def export_selection(folder: Path, tool: str, output: Path, model: str | None = None) -> list[Path]:
    """Write a run's selection for another tool; the files written.

    The configuration trains `model`, or the one that the run trains: --finetune-model, or else the one that scored.
    Raises `ConfigError` if there is none, or no selection.
    """
    with steady(folder):
        config = recall(folder)
        if model is not None:
            config = config.model_copy(update={"finetune_model": model})
        if not config.names_what_is_trained:
            raise ConfigError(f"{folder} names no model that could be trained; give --model FOLDER or a hub id.")
        options = config if config.output_format == "pool" else None
        if not (folder / SELECTED).is_file():
            raise ConfigError(f"{folder} holds no {SELECTED}; run 'gistselect select --output {folder}' first.")
        rows = read_records(folder / SELECTED, options)
    if broken := [row for row in rows if isinstance(row, Rejected)]:
        raise DataError(f"{folder / SELECTED}: {broken[0].reason}; run 'gistselect select' again.")
    job = ExportJob(
        records=[row for row in rows if isinstance(row, Record)],
        output=output,
        model=config.finetuned,
        config=config.finetune,
        max_length=config.max_length,
        template=config.template,
        seed=config.seed,
    )
    return export(tool, job)
