"""Options of the gradient engine, apart from it so that reading them does not load torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

PackingChoice = Literal["auto", "packed", "padded", "single"]


class EngineConfig(BaseModel):
    """How per-example gradients are computed. Options change the numbers by rounding alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens per forward pass; by default chosen for the device, and halved whenever its memory runs out."""
    packing: PackingChoice = "auto"
    """Sequences back to back in one row, one per row padded to the longest, or one at a time; `auto` packs,
    and pads length-sorted rows where a packed row does not give the model's own loss."""
    activation_checkpointing: bool = False
    """Recompute the activations of each layer in the backward pass: less memory, a third more time."""
    capture: Literal["auto", "hooks", "autograd"] = "auto"
    """Gradients caught on the LoRA layers during one batched backward pass, or one autograd call per example;
    `auto` takes hooks wherever the adapter is plain LoRA. EK-FAC's curvature alone is another without hooks."""
    gradient_memory_gb: float = Field(default=2.0, gt=0)
    """Gradients held at a time, in GB; more queries than fit take one pass per group of parameters."""
    basis_memory_gb: float | None = Field(default=None, gt=0)
    """Bases held on the device at a time, in GB; larger ones are projected piece by piece. By default half of what
    the model leaves free on a GPU, and no limit on a CPU."""
    basis_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format in which a basis is stored; it is always accumulated in float32. `auto` is bfloat16 for a
    bfloat16 model on CUDA, where it takes half the memory and a tenth of the time, and float32 elsewhere."""

    def stored_basis_dtype(self, dtype: str, device: str) -> str:
        """What `basis_dtype` comes to for a model of that number format on that kind of device."""
        if self.basis_dtype != "auto":
            return self.basis_dtype
        return "bfloat16" if dtype == "bfloat16" and device == "cuda" else "float32"


class SketchConfig(BaseModel):
    """A seeded random projection of both sides of every gradient matrix."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    dimension: int = Field(default=32, ge=1)
    """Width that each side of a gradient matrix is projected to; a side that is no wider stays exact."""
    seed: int
    """Decides the projections; equal seeds give comparable sketches."""


class ProjectionConfig(BaseModel):
    """A seeded random projection of whole gradients, dense as LESS published it, or sparse."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    dimension: int = Field(default=8192, ge=1)
    """Width that gradients are projected to."""
    nonzeros: int | None = Field(default=None, ge=1)
    """Entries other than zero for each parameter, a divisor of the width: cheaper by width / nonzeros, a little less
    precise. By default all of them."""
    seed: int
    """Decides the projection; equal seeds give comparable projections."""


class AdamConfig(BaseModel):
    """How a gradient becomes a step of Adam; the constants are those of the warm-up."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    direction: Literal["less", "adam"] = "less"
    """As LESS published it (eps inside the root, no bias corrected), or the step that torch.optim.Adam takes."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Keeps the division finite."""
