"""Shapes of an adapter's matrices, known before any weight of the model is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from gistselect.model.adapter_files import locate_adapter, stored_shapes
from gistselect.model.config import ModelConfig

if TYPE_CHECKING:
    from gistselect.model.adapters import AdapterConfig
    from gistselect.model.loading import LanguageModel

NamedShapes = Mapping[str, tuple[int, int]]
"""Rows and columns of each matrix, by the name of its parameter."""


def shapes_stored(reference: str | Path) -> NamedShapes:
    """Those of a stored adapter. Raises `ModelError` if it is missing or damaged."""
    return _matrices((name, shape) for name, shape in stored_shapes(locate_adapter(reference)).items())


def shapes_live(model: LanguageModel) -> NamedShapes:
    """Those of a model that has its adapter."""
    return _matrices((name, tuple(value.shape)) for name, value in model.model.named_parameters())


def shapes_planned(model: ModelConfig, adapter: AdapterConfig) -> NamedShapes:
    """Those that a fresh adapter will have on a model. Raises `ModelError` as attaching it would."""
    import torch

    from gistselect.model.adapters import attach_adapter
    from gistselect.model.loading import LanguageModel, model_skeleton

    bare = LanguageModel(model=model_skeleton(model), tokenizer=None, device=torch.device("cpu"), dtype=torch.float32)
    with torch.device("meta"):
        return shapes_live(attach_adapter(bare, adapter, seed=0))


def _matrices(parameters: Iterable[tuple[str, tuple[int, ...]]]) -> NamedShapes:
    """As gradients are taken of them: a vector is one row."""
    return {
        name: (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))
        for name, shape in parameters
        if "lora_" in name
    }
