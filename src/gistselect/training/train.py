"""Examples to adapter: the warm-up before gradients are taken, and fine-tuning on a selection."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistselect.errors import ArtifactMismatchError, ConfigError, DataError, GistSelectError, ModelError
from gistselect.files import FORBIDDEN, replacing_folder, writable
from gistselect.model.config import ModelConfig
from gistselect.model.hush import hushed
from gistselect.model.live import restored
from gistselect.training import ranks
from gistselect.training.checkpoints import TrainingResult, finish, last_checkpoint, resume_state, step_of
from gistselect.training.ranks import Ranks
from gistselect.training.recipe import TrainingConfig, steps_per_epoch
from gistselect.training.sharding import before_sharding, check_sharding, sharded
from gistselect.training.trainer import Progress, make_trainer
from gistselect.types import Example

if TYPE_CHECKING:
    from gistselect.model.loading import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training as every process that takes part is told of it."""

    model: ModelConfig | LanguageModel
    examples: Sequence[Example]
    config: TrainingConfig
    output: Path
    seed: int
    last_epoch: int
    resume_from: Path | None


def train(
    model: ModelConfig | LanguageModel,
    examples: Sequence[Example],
    config: TrainingConfig,
    *,
    output: Path,
    seed: int,
    stop_after_epoch: int | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train on examples and keep the weights at the end of each epoch, up to `stop_after_epoch`.

    The same call on the same `output` continues an interrupted training at its last whole epoch, to the same
    bits; a finished one is returned as it stands. A live model is given back as it came; with `config.full` its
    weights are trained in place, in float32. Where torchrun has started several processes they train together, unless
    the model is a live one, which cannot leave its process.
    Raises `ConfigError`, `DataError` (no row, or one without a supervised token), `ArtifactMismatchError`
    (the folder holds another training), `ModelError` (the loss is not a number) and `GistSelectError` (no room).
    """
    _check(examples, config, stop_after_epoch)
    if config.fsdp:
        check_sharding(model, config)
    last_epoch = stop_after_epoch or config.epochs
    per_epoch = steps_per_epoch(len(examples), config.global_batch_size)
    digest = _training_digest(model, examples, config, seed, last_epoch)
    if finished := resume_state(output, digest):
        return finished
    resume_from = last_checkpoint(output)
    if resume_from is None or step_of(resume_from) < last_epoch * per_epoch:
        task = Task(
            model=model,
            examples=examples,
            config=config,
            output=output.resolve(),
            seed=seed,
            last_epoch=last_epoch,
            resume_from=resume_from.resolve() if resume_from else None,
        )
        others = ranks.current() if isinstance(model, ModelConfig) else None
        if others is None:
            carry_out(task, None, progress)
        else:
            others.lead(lambda given, among: carry_out(given, among, progress), task)
    return finish(output, digest, per_epoch)


def carry_out(task: Task, among: Ranks | None = None, progress: Progress | None = None) -> None:
    """Train from where the task's folder has come to; with others, each process on its share of every global batch.

    The first process alone writes checkpoints, but for the states of the random generators, which are each one's own.
    """
    from gistselect.model.loading import resolve_device

    language_model = _together(task, among)
    with hushed(), restored(language_model.model), _trainable(language_model, task.config, task.seed) as trainable:
        if among is not None and task.config.fsdp:
            assert isinstance(task.model, ModelConfig)
            trainable = sharded(trainable, resolve_device(among.placed(task.model).device))
        trainer = make_trainer(
            trainable, task.examples, task.config, task.output, task.seed, task.last_epoch, progress, among
        )
        try:
            with writable(task.output, also=FORBIDDEN):
                trainer.train(resume_from_checkpoint=str(task.resume_from) if task.resume_from else None)
        except pickle.UnpicklingError as error:  # it reads tensors and plain data alone
            raise ArtifactMismatchError(
                f"{task.resume_from} holds more than a training state ({str(error).splitlines()[0]}); remove "
                f"{task.output} and run again."
            ) from error


def _together(task: Task, among: Ranks | None) -> LanguageModel:
    """The model of this process, once every process has one."""
    if among is None:
        return _language_model(task.model, task.config)
    assert isinstance(task.model, ModelConfig)
    loaded, failure = None, None
    try:
        placed = among.placed(task.model)
        loaded = _language_model(before_sharding(placed) if task.config.fsdp else placed, task.config)
    except GistSelectError as error:
        failure = error
    among.agree(failure)
    assert loaded is not None
    return loaded


def merge_adapter(model_config: ModelConfig, adapter: Path, output: Path) -> None:
    """Write the model with the adapter's weights added in, and its tokenizer, as an ordinary model folder.

    Raises what `check_mergeable` raises.
    """
    from gistselect.model.adapters import load_adapter, untie_adapted
    from gistselect.model.loading import load_model

    check_mergeable(model_config)
    language_model = load_adapter(load_model(model_config), adapter)
    untie_adapted(language_model.model)
    merged: Any = language_model.model
    with replacing_folder(output) as part, hushed():
        merged.merge_and_unload().save_pretrained(part)
        language_model.tokenizer.save_pretrained(part)


def check_mergeable(model_config: ModelConfig) -> None:
    """Raises `ConfigError` for a quantized model, by option or as stored: its weights would round the sum away."""
    from gistselect.model.loading import stored_quantization

    if model_config.quantization != "none":
        raise ConfigError(
            f"quantization={model_config.quantization!r}: an adapter cannot be merged into quantized weights "
            "without rounding it away; merge with quantization='none'."
        )
    if stored_quantization(model_config):
        raise ConfigError(
            f"{model_config.path!r} is stored quantized: an adapter cannot be merged into it without rounding it away; "
            "merge into the model it was made from, or hand on base and adapter as they are."
        )


def _check(examples: Sequence[Example], config: TrainingConfig, stop_after_epoch: int | None) -> None:
    if not examples:
        raise DataError("there is no row to train on.")
    if empty := [example.id for example in examples if not example.n_supervised]:
        raise DataError(f"{len(empty)} rows have no supervised token, e.g. {empty[0]!r}; leave them out.")
    if stop_after_epoch is not None and not 1 <= stop_after_epoch <= config.epochs:
        raise ConfigError(f"stop_after_epoch={stop_after_epoch} is not one of the epochs 1 to {config.epochs}.")


def _training_digest(
    model: ModelConfig | LanguageModel, examples: Sequence[Example], config: TrainingConfig, seed: int, last_epoch: int
) -> str:
    content = hashlib.sha256(json.dumps([config.model_dump(mode="json"), seed, last_epoch, *_identity(model)]).encode())
    for example in examples:
        content.update(repr((example.id, example.n_tokens)).encode())
        content.update(example.input_ids.tobytes() + example.supervised.tobytes())
    return content.hexdigest()


def _identity(model: ModelConfig | LanguageModel) -> list[Any]:
    """What a training's numbers owe to its model: weights, and how they are held."""
    from gistselect.model.loading import model_digest, resolved_precision, weights_digest

    if isinstance(model, ModelConfig):
        return [model_digest(model), resolved_precision(model), model.quantization]
    return [weights_digest(model.model), str(model.dtype), model.device.type]


def _language_model(model: ModelConfig | LanguageModel, config: TrainingConfig) -> LanguageModel:
    from gistselect.model.loading import load_model
    from gistselect.model.quantized import is_quantized, keep_differentiable

    language_model = load_model(model) if isinstance(model, ModelConfig) else model
    if hasattr(language_model.model, "peft_config"):
        raise ModelError("the model already carries an adapter; give the base model, or merge the adapter first.")
    if config.full and is_quantized(language_model.model):
        raise ConfigError("full=true cannot train quantized weights; take the model unquantized, or train an adapter.")
    keep_differentiable(language_model.model)
    return language_model


@contextmanager
def _trainable(language_model: LanguageModel, config: TrainingConfig, seed: int) -> Iterator[LanguageModel]:
    """The model with what is to be trained in float32: AdamW steps of 1e-5 vanish in bfloat16 weights."""
    from gistselect.model.adapters import attach_adapter

    if config.full:
        yield replace(language_model, model=language_model.model.float().requires_grad_(True))
        return
    adapted = attach_adapter(language_model, config.adapter, seed, dtype="float32")
    try:
        yield adapted
    finally:
        adapted.model.unload()
