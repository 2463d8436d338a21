"""Matrix products of narrow numbers with a precise result."""

from __future__ import annotations

import torch
from torch import Tensor


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left @ right for two matrices, or two stacks of them, accumulated in `dtype` and returned in it."""
    if left.dtype == right.dtype == dtype:
        return left @ right
    if left.dtype == right.dtype and left.device.type == "cuda":
        return (torch.mm if left.dim() == 2 else torch.bmm)(left, right, out_dtype=dtype)
    return left.to(dtype) @ right.to(dtype)
