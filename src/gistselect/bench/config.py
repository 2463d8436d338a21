"""What is measured, apart from the measuring, so that reading it loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gistselect.bench.shapes import Shape


class BenchConfig(BaseModel):
    """What `gistselect bench` measures."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    shape: Shape = "llama-17m"
    """Shape of the model; its weights are random."""
    rows: int = Field(default=128, ge=1)
    """Examples in each measurement."""
    repeats: int = Field(default=5, ge=1)
    """Interleaved repeats; the table shows medians."""
    adapter_rank: int = Field(default=16, ge=1)
    """LoRA rank on the attention projections."""
    subspace_rank: int = Field(default=32, ge=1)
    """Directions per target."""
    lengths: Path | None = None
    """Where token lengths come from: a text file of `tokens supervised` lines, or a pool; by default the demo pool."""
    max_length: int = Field(default=2048, ge=2)
    """Longer examples are cut."""
    device: str = "auto"
    """`cpu`, `cuda`, …; `auto` takes CUDA if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the model; `auto` is bfloat16 on CUDA and float32 on CPU."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens per batch of our arms and floor (iii), by default the engine's own choice; floor (ii) takes its best."""
    packing: Literal["auto", "packed", "padded", "single"] = "auto"
    """Batch layout of our arms."""
    seed: int = 0
    """Decides weights, rows and tokens."""
