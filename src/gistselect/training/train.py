"""Examples to adapter: the warm-up before gradients are taken, and fine-tuning on a selection."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gistselect.errors import ArtifactMismatchError, ConfigError, DataError, ModelError
from gistselect.files import FORBIDDEN, replacing_folder, writable
from gistselect.model.config import ModelConfig
from gistselect.model.live import restored
from gistselect.training.checkpoints import (
    MOMENTS,
    TrainingResult,
    finish,
    last_checkpoint,
    order_names,
    record,
    resume_state,
    save_moments,
    step_of,
)
from gistselect.training.recipe import TrainingConfig, epoch_order, steps_per_epoch
from gistselect.types import Example

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from gistselect.model.loading import LanguageModel

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after each optimizer step: steps done, steps in all, and loss, learning_rate and epoch."""


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
    weights are trained in place, in float32.
    Raises `ConfigError`, `DataError` (no row, or one without a supervised token), `ArtifactMismatchError`
    (the folder holds another training), `ModelError` (the loss is not a number) and `GistSelectError` (no room).
    """
    _check(examples, config, stop_after_epoch)
    last_epoch = stop_after_epoch or config.epochs
    per_epoch = steps_per_epoch(len(examples), config.global_batch_size)
    digest = _training_digest(model, examples, config, seed, last_epoch)
    if finished := resume_state(output, digest):
        return finished
    resume_from = last_checkpoint(output)
    if resume_from is None or step_of(resume_from) < last_epoch * per_epoch:
        language_model = _language_model(model, config)
        with restored(language_model.model), _trainable(language_model, config, seed) as trainable:
            trainer = _trainer(trainable, examples, config, output, seed, last_epoch, progress)
            try:
                with writable(output, also=FORBIDDEN):
                    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
            except pickle.UnpicklingError as error:  # it reads tensors and plain data alone
                raise ArtifactMismatchError(
                    f"{resume_from} holds more than a training state ({str(error).splitlines()[0]}); remove "
                    f"{output} and run again."
                ) from error
    return finish(output, digest, per_epoch)


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
    with replacing_folder(output) as part:
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


def _trainer(
    language_model: LanguageModel,
    examples: Sequence[Example],
    config: TrainingConfig,
    output: Path,
    seed: int,
    last_epoch: int,
    progress: Progress | None,
) -> Trainer:
    from transformers import PrinterCallback, Trainer
    from transformers.trainer_utils import set_seed

    set_seed(seed)
    lengths = [example.n_tokens for example in examples]
    total_steps = last_epoch * steps_per_epoch(len(examples), config.global_batch_size)

    class SeededOrderTrainer(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return _EpochSampler(lengths, config.global_batch_size, seed)

    trainer = SeededOrderTrainer(
        model=language_model.model,
        args=_arguments(language_model, len(examples), config, output, seed),
        train_dataset=_Rows(examples),  # pyright: ignore[reportArgumentType]
        data_collator=_collator(language_model.tokenizer),
        callbacks=[_callback(last_epoch, total_steps, progress)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


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


def _arguments(
    language_model: LanguageModel, n_examples: int, config: TrainingConfig, output: Path, seed: int
) -> TrainingArguments:
    """Accumulation from the global batch and the number of devices; warm-up steps from the ratio."""
    import torch
    from transformers import TrainingArguments

    total_steps = config.epochs * steps_per_epoch(n_examples, config.global_batch_size)
    checkpointing: dict[str, Any] = {}
    if config.gradient_checkpointing:
        checkpointing = {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        }
    arguments = TrainingArguments(
        output_dir=str(output),
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=math.ceil(config.warmup_ratio * total_steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=config.optimizer,
        bf16=language_model.dtype == torch.bfloat16,
        fp16=language_model.dtype == torch.float16,
        use_cpu=torch.device(language_model.device).type == "cpu",
        seed=seed,
        save_strategy="epoch",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        **checkpointing,
    )
    # Several visible GPUs in one process would make Trainer split batches among them behind our back.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    share, rest = divmod(config.global_batch_size, arguments.world_size)
    if rest:
        raise ConfigError(
            f"global_batch_size={config.global_batch_size} cannot be shared by {arguments.world_size} devices; use "
            "a multiple."
        )
    arguments.per_device_train_batch_size = max(
        size for size in range(1, min(config.device_batch_size, share) + 1) if share % size == 0
    )
    arguments.gradient_accumulation_steps = share // arguments.per_device_train_batch_size
    return arguments


class _EpochSampler:
    """Positions of the rows in `epoch_order`; the training loop sets the epoch."""

    def __init__(self, lengths: Sequence[int], global_batch_size: int, seed: int) -> None:
        self.lengths, self.global_batch_size, self.seed = lengths, global_batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(
            epoch_order(self.lengths, global_batch_size=self.global_batch_size, seed=self.seed, epoch=self.epoch)
        )


class _Rows:
    """Token ids (t,) and labels (t,) of each row, -100 where the token is not supervised; made when asked for."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        example = self.examples[row]
        labels = np.where(example.supervised, example.input_ids, -100)
        return {"input_ids": example.input_ids.tolist(), "labels": labels.tolist()}


def _collator(tokenizer: Any) -> Any:
    """Pads on the right, whatever side the tokenizer pads on for generation."""
    from transformers import DataCollatorForSeq2Seq

    padding = copy.copy(tokenizer)
    padding.padding_side = "right"
    return DataCollatorForSeq2Seq(padding)


def _callback(last_epoch: int, total_steps: int, progress: Progress | None) -> TrainerCallback:
    from accelerate import PartialState
    from transformers import TrainerCallback

    class EpochCheckpoints(TrainerCallback):
        """Keeps the moments beside each checkpoint, stops at the last epoch, and reports."""

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if not logs or "loss" not in logs:
                return
            if not math.isfinite(logs["loss"]):
                raise ModelError(
                    f"the training loss is {logs['loss']} at step {state.global_step}; use float32 or bfloat16, "
                    "or a lower learning rate."
                )
            if progress:
                facts = {key: logs[key] for key in ("loss", "learning_rate", "epoch")}
                progress(state.global_step, total_steps, facts)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = round(state.epoch) >= last_epoch

        def on_save(self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **_: Any) -> None:
            PartialState().wait_for_everyone()  # each process writes its own random state
            if state.is_world_process_zero:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                save_moments(folder / MOMENTS, model, optimizer.state, state.global_step)
                order_names(folder)
                record(folder)

    return EpochCheckpoints()
