"""How transformers' Trainer is set up, so that a training is what `TrainingConfig` says and nothing else."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gistselect.errors import ConfigError, ModelError
from gistselect.streams import Stream, generator
from gistselect.training.checkpoints import MOMENTS, order_names, record, save_moments
from gistselect.training.ranks import Ranks, filled
from gistselect.training.recipe import TrainingConfig, epoch_order, rows_at_once, steps_per_epoch, warmup_steps
from gistselect.types import Example

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from gistselect.model.loading import LanguageModel

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after each optimizer step: steps done, steps in all, and loss, learning_rate and epoch."""


def make_trainer(
    language_model: LanguageModel,
    examples: Sequence[Example],
    config: TrainingConfig,
    output: Path,
    seed: int,
    last_epoch: int,
    progress: Progress | None,
    among: Ranks | None = None,
) -> Trainer:
    """A trainer for the trainable model up to the end of an epoch, alone or among several processes.

    Raises `ConfigError` if these cannot share the global batch, or the model cannot be told how many tokens it has.
    """
    import torch
    from transformers import PrinterCallback, Trainer
    from transformers.trainer_utils import set_seed

    set_seed(seed)
    lengths = [example.n_tokens for example in examples]
    total_steps = last_epoch * steps_per_epoch(len(examples), config.global_batch_size)
    arguments = _arguments(language_model, len(examples), config, output, seed)
    multiple = arguments.per_device_train_batch_size * arguments.world_size if among else 1

    class SeededOrderTrainer(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return _EpochSampler(lengths, config.global_batch_size, seed, multiple)

    trainer = SeededOrderTrainer(
        model=language_model.model,
        args=arguments,
        train_dataset=_Rows(examples),  # pyright: ignore[reportArgumentType]
        data_collator=_collator(language_model.tokenizer),
        callbacks=[_callback(last_epoch, total_steps, progress)],
    )
    trainer.remove_callback(PrinterCallback)
    if among:
        if not trainer.model_accepts_loss_kwargs:
            raise ConfigError(
                f"{type(language_model.causal).__name__} takes no count of tokens, so that the loss of a step would "
                "depend on how many processes share it; train in one process."
            )
        # Weights are the same in all; what dropout leaves out of each one's rows is not.
        torch.manual_seed(int(generator(seed, Stream.RANK_DROPOUT, among.rank).integers(2**63)))
    return trainer


def _arguments(
    language_model: LanguageModel, n_examples: int, config: TrainingConfig, output: Path, seed: int
) -> TrainingArguments:
    """Accumulation from the global batch and the number of devices; warm-up steps from the ratio."""
    import torch
    from transformers import TrainingArguments

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
        warmup_steps=warmup_steps(config, n_examples),
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
    arguments.per_device_train_batch_size = rows_at_once(config, share)
    arguments.gradient_accumulation_steps = share // arguments.per_device_train_batch_size
    return arguments


class _EpochSampler:
    """Positions of the rows in `epoch_order`, filled to a multiple; the training loop sets the epoch."""

    def __init__(self, lengths: Sequence[int], global_batch_size: int, seed: int, multiple: int) -> None:
        self.lengths, self.global_batch_size, self.seed, self.multiple = lengths, global_batch_size, seed, multiple
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + -len(self.lengths) % self.multiple

    def __iter__(self) -> Iterator[int]:
        order = epoch_order(self.lengths, global_batch_size=self.global_batch_size, seed=self.seed, epoch=self.epoch)
        return iter(filled(order, self.multiple, len(self.lengths)))


class _Rows:
    """Token ids (t,) and labels (t,) of each row, -100 where the token is not supervised; made when asked for.

    The position after the last is a row that teaches nothing, of two tokens.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        if row == len(self.examples):
            return {"input_ids": self.examples[0].input_ids[:2].tolist(), "labels": [-100, -100]}
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
