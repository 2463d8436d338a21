"""What a training is: its options, its steps and the order of its rows. Reading it loads no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from gistselect.model.adapters import AdapterConfig
from gistselect.streams import Stream, generator


class TrainingConfig(BaseModel):
    """The published recipe (LESS, section 5): LoRA, AdamW, linear decay, a stated global batch."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    epochs: int = Field(default=4, ge=1)
    """Passes over the rows; the learning-rate schedule spans all of them even if the run stops earlier."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Shape of the learning rate after its warm-up."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    optimizer: Literal["adamw_torch", "adamw_torch_fused"] = "adamw_torch"
    """Implementation of AdamW."""
    global_batch_size: int = Field(default=32, ge=1)
    """Rows in one optimizer step, whatever the number of devices; accumulation follows from it."""
    device_batch_size: int = Field(default=8, ge=1)
    """Most rows in one forward pass on one device; changes memory and speed, not the result."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    full: bool = False
    """Train all weights instead of an adapter."""
    fsdp: bool = False
    """Under torchrun: hold the frozen weights in pieces, one a process (FSDP2), where a card does not hold them all."""
    adapter: AdapterConfig = AdapterConfig()
    """The adapter to train, unless `full`."""

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `fsdp` unless it is set: keys made before there was such an option stay what they were."""
        values = plain(self)
        if not values.get("fsdp", True):
            del values["fsdp"]
        return values


def steps_per_epoch(n_examples: int, global_batch_size: int) -> int:
    """Optimizer steps in one pass; the last may have fewer rows."""
    return math.ceil(n_examples / global_batch_size)


def warmup_steps(config: TrainingConfig, n_examples: int) -> int:
    """Steps of all epochs over which the learning rate rises, rounded up."""
    total_steps = config.epochs * steps_per_epoch(n_examples, config.global_batch_size)
    return math.ceil(config.warmup_ratio * total_steps)


def rows_at_once(config: TrainingConfig, share: int) -> int:
    """Rows of one forward pass on a device whose share of the global batch is so many rows: the most that divide it."""
    return max(size for size in range(1, min(config.device_batch_size, share) + 1) if share % size == 0)


def padded_tokens(lengths: NDArray[np.integer], config: TrainingConfig, *, seed: int, epochs: int) -> int:
    """Positions that a training of so many epochs computes on one device: rows of these lengths (n,) padded to the
    longest of their forward pass."""
    known, total = lengths.tolist(), 0
    for epoch in range(epochs):
        order = epoch_order(known, global_batch_size=config.global_batch_size, seed=seed, epoch=epoch)
        total += int(padded_lengths(lengths[order], config).sum())
    return total


def padded_lengths(lengths: NDArray[np.integer], config: TrainingConfig) -> NDArray[np.integer]:
    """(n,) positions that each row takes, of rows (n,) in the order in which one device reads them."""
    size = rows_at_once(config, config.global_batch_size)
    starts = np.arange(0, len(lengths), size)
    return np.repeat(np.maximum.reduceat(lengths, starts), size)[: len(lengths)]


def training_amounts(lengths: NDArray[np.integer], epochs: int) -> dict[str, int]:
    """Rows and tokens that a training of so many epochs reads, of rows of these lengths (n,)."""
    return {"rows": epochs * len(lengths), "tokens": epochs * int(lengths.sum())}


def epoch_order(lengths: Sequence[int], *, global_batch_size: int, seed: int, epoch: int) -> list[int]:
    """Row positions (n,) of an epoch: a seeded shuffle, then by length within each global batch.

    The rows of one global batch share one optimizer step, so their order costs nothing and saves padding.
    """
    shuffled = generator(seed, Stream.EPOCH_ORDER, epoch).permutation(len(lengths))
    order: list[int] = []
    for start in range(0, len(shuffled), global_batch_size):
        batch = shuffled[start : start + global_batch_size].tolist()
        order += sorted(batch, key=lambda row: (-lengths[row], row))
    return order
