"""Matrix products of narrow numbers with a precise result."""

from __future__ import annotations

import torch
from torch import Tensor

MIXED_DEVICES = {"cuda"}
"""Where a product may be more precise than its factors."""


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left @ right for two matrices, or two stacks of them, accumulated in `dtype` and returned in it."""
    if left.dtype == right.dtype == dtype:
        return left @ right
    if left.dtype == right.dtype and left.device.type in MIXED_DEVICES:
        return (torch.mm if left.dim() == 2 else torch.bmm)(left, right, out_dtype=dtype)
    return left.to(dtype) @ right.to(dtype)
