"""Gradients of single examples as what they are: products of two factors, formed when somebody asks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gistselect.linalg.products import product
from gistselect.model.batches import Batch


class ParameterBlock(NamedTuple):
    """One adapter parameter: a matrix, or a vector as one row."""

    name: str
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]


class Factors:
    """Σ_tokens leftᵀ right for each example of a batch: the gradients of one block, not yet multiplied out."""

    def __init__(self, left: Tensor, right: Tensor, batch: Batch) -> None:
        """From (n_rows, width, out) and (n_rows, width, in)."""
        self.left, self.right, self.batch = left, right, batch
        self._formed: dict[torch.dtype, Tensor] = {}

    def gradients(self, dtype: torch.dtype, room: Tensor | None = None) -> Tensor:
        """The gradients (n, out, in) in a number format, formed once however many ask; not to be changed.

        They are written to `room` (n, out · in), if it is given.
        """
        if dtype not in self._formed:
            self._formed[dtype] = outer_products(self.left, self.right, self.batch, dtype, room)
        elif room is not None:
            room.copy_(self._formed[dtype].flatten(1))
        return self._formed[dtype]

    def compressed(self, left: Tensor | None, right: Tensor | None) -> Factors:
        """Both factors multiplied by a matrix (None: as they are), before their product is formed."""
        return Factors(
            self.left if left is None else self.left @ left.to(self.left.dtype),
            self.right if right is None else self.right @ right.to(self.right.dtype),
            self.batch,
        )


def outer_products(left: Tensor, right: Tensor, batch: Batch, dtype: torch.dtype, room: Tensor | None = None) -> Tensor:
    """Σ_tokens leftᵀ right per example (n, out, in), from (n_rows, width, out) and (n_rows, width, in).

    They are written to `room`, if it is given.
    """
    shape = len(batch.lengths), left.shape[2], right.shape[2]
    if batch.packed and left.device.type == "cpu":
        left, right = left[0].to(dtype), right[0].to(dtype)
        products = left.new_empty(shape) if room is None else room.view(shape)
        for one, start, length in zip(products, batch.starts, batch.lengths, strict=True):
            torch.mm(left[start : start + length].T, right[start : start + length], out=one)
        return products
    if batch.packed:
        left, right = unpacked(left[0], batch), unpacked(right[0], batch)
    products = product(left.transpose(1, 2), right, dtype)
    return products if room is None else room.view(shape).copy_(products)


def unpacked(flat: Tensor, batch: Batch) -> Tensor:
    """(n, longest, width) zero-padded examples from packed tokens (t, width)."""
    padded = flat.new_zeros(len(batch.lengths) * batch.longest, flat.shape[1])
    padded[batch.places] = flat
    return padded.view(len(batch.lengths), batch.longest, -1)
