"""A model's per-example gradients against plain backward passes, on the model at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gistselect.model.adapters import AdapterConfig, adapter_parameters, attach_adapter
from gistselect.model.engine_config import EngineConfig
from gistselect.model.forward import evaluation_mode
from gistselect.model.gradients import GradientEngine
from gistselect.model.loading import LanguageModel
from gistselect.types import Example

GRADIENT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Allowed length of the difference from a plain gradient, relative to it. In 16 bits two orders of the same sums differ
by as much."""
TRIAL = AdapterConfig(rank=4, alpha=8, dropout=0.0)
SPREAD = 0.02
"""Of the second factor of the trial adapter: a fresh one is zero, and half of its gradients with it."""


@dataclass(frozen=True, kw_only=True)
class GradientTest:
    """What came out."""

    mode: str
    """Layout, attention and loss that the probe chose."""
    packed: bool
    fell_back: bool
    """Whether the fastest layout does not give this model's loss, or lets one row move another."""
    errors: NDArray[np.float64]
    """(n,) length of the difference of each gradient from a plain one, relative to it."""
    tolerance: float

    @property
    def passed(self) -> bool:
        return bool(np.isfinite(self.errors).all() and (self.errors <= self.tolerance).all())


def with_trial_adapter(language_model: LanguageModel, seed: int) -> LanguageModel:
    """The model with a small adapter that changes it a little."""
    adapted = attach_adapter(language_model, TRIAL, seed)
    drawn = torch.Generator().manual_seed(seed)
    for name, value in adapter_parameters(adapted.model).items():
        if "lora_B" in name:
            noise = torch.empty(value.shape, dtype=torch.float32).normal_(std=SPREAD, generator=drawn)
            value.data.copy_(noise)
    return adapted


def compare_gradients(adapted: LanguageModel, examples: Sequence[Example], config: EngineConfig) -> GradientTest:
    """The engine's gradients of all examples at once against one `backward` each through the model's own loss.

    Raises `ModelError` if no layout gives the model's own loss without letting one row move another.
    """
    with GradientEngine(adapted, config) as engine:
        found = engine.gradients(examples).astype(np.float64)
        names = [block.name for block in engine.parameters]
        forward = engine.forward
        mode, packed = engine.mode, forward.layout == "packed"
        fell_back = forward.fell_back
    plain = np.stack([_plain_gradient(adapted, example, names) for example in examples])
    errors = np.linalg.norm(found - plain, axis=1) / np.maximum(np.linalg.norm(plain, axis=1), 1e-30)
    return GradientTest(
        mode=mode, packed=packed, fell_back=fell_back, errors=errors, tolerance=GRADIENT_TOLERANCE[adapted.dtype]
    )


def _plain_gradient(adapted: LanguageModel, example: Example, names: Sequence[str]) -> NDArray[np.float64]:
    """(p,) gradient of the model's own loss of one example, its parameters in this order."""
    parameters = adapter_parameters(adapted.model)
    asked = {name: value.requires_grad for name, value in parameters.items()}
    ids = torch.from_numpy(example.input_ids.astype(np.int64))[None].to(adapted.device)
    labels = ids.masked_fill(~torch.from_numpy(example.supervised).to(adapted.device), -100)
    try:
        for value in parameters.values():
            value.requires_grad_(True)
        with evaluation_mode(adapted.model):
            loss = adapted.model(input_ids=ids, labels=labels, use_cache=False).loss
            gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    finally:
        for name, value in parameters.items():
            value.requires_grad_(asked[name])
    return torch.cat([gradients[name].flatten().double().cpu() for name in names]).numpy()
