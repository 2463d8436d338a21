"""Random projections that are never held: each piece of the matrix is a function of its seed and its place.

Rows belong to parameters, columns to coordinates. Entries come from a hash of a counter, not from the state of a
generator, so that a projection does not depend on how many rows are made at a time, nor on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from gistselect.errors import ConfigError
from gistselect.linalg.products import product

MADE_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
"""Signs of a dense projection made at a time, in bytes; on a CPU they should not outgrow the cache by far."""
SPARSE_ROWS = 1 << 14
"""Parameters that a sparse projection reads at a time."""
WORD = 64
"""Signs in one hash."""


class Projection(Protocol):
    """A random matrix P with E[P Pᵀ] = 1: inner products survive it on average."""

    @property
    def dimension(self) -> int:
        """Coordinates."""
        ...

    def rows_at_a_time(self, vectors: Tensor) -> int:
        """How many parameters `add` should be given at once."""
        ...

    def add(self, total: Tensor, vectors: Tensor, first: int, key: int) -> None:
        """total (n, dimension) += vectors (n, k) P, for rows `first` to `first + k` of the P that `key` names."""
        ...


@dataclass(frozen=True, kw_only=True)
class DenseSigns:
    """±1/sqrt(dimension) everywhere (Rademacher), as LESS published."""

    dimension: int

    def rows_at_a_time(self, vectors: Tensor) -> int:
        """As many as fit in `MADE_BYTES`."""
        kind = "cpu" if vectors.device.type == "cpu" else "cuda"
        return max(1, MADE_BYTES[kind] // (self.dimension * vectors.dtype.itemsize))

    def add(self, total: Tensor, vectors: Tensor, first: int, key: int) -> None:
        """As `Projection.add`; the product is taken in the vectors' number format, the sum in that of `total`."""
        signs = dense_signs(key, first, vectors.shape[1], self.dimension, vectors)
        total.add_(product(vectors, signs, total.dtype), alpha=self.dimension**-0.5)


@dataclass(frozen=True, kw_only=True)
class SparseSigns:
    """±1/sqrt(nonzeros) in one random column of each of `nonzeros` equal ranges of columns, 0 elsewhere.

    A sparse Johnson-Lindenstrauss map (Kane and Nelson, arXiv 1012.1577, block construction): `nonzeros` additions a
    parameter where the dense one takes `dimension`. Raises `ConfigError` unless the ranges are equal.
    """

    dimension: int
    nonzeros: int

    def __post_init__(self) -> None:
        if self.dimension % self.nonzeros:
            raise ConfigError(
                f"{self.nonzeros} nonzeros do not divide a projection to {self.dimension}; use a divisor, such as 1, "
                "2, 4 or 8."
            )

    def rows_at_a_time(self, vectors: Tensor) -> int:
        """A constant."""
        return SPARSE_ROWS

    def add(self, total: Tensor, vectors: Tensor, first: int, key: int) -> None:
        """As `Projection.add`; columns are summed in the order of their parameters, so the result is reproducible."""
        width, count = self.dimension // self.nonzeros, vectors.shape[1]
        places = torch.arange(first, first + count, device=vectors.device)
        flat = vectors.T.to(total.dtype)
        for part in range(self.nonzeros):
            hashed = _hash(places * self.nonzeros + part, key)
            columns, signs = ((hashed >> 1) & 0x7FFFFFFF) % width, 1 - 2 * (hashed & 1)
            order = torch.argsort(columns, stable=True)
            signed = (flat * (signs * self.nonzeros**-0.5).to(flat.dtype)[:, None])[order]
            lengths = torch.bincount(columns, minlength=width)
            sums = torch.segment_reduce(signed, "sum", lengths=lengths, axis=0, unsafe=True)
            total[:, part * width : (part + 1) * width] += sums.T


def dense_signs(key: int, first: int, count: int, width: int, like: Tensor) -> Tensor:
    """Signs ±1 (count, width) of rows `first` and following, on the device and in the number format of `like`."""
    words = -(-width // WORD)
    hashed = _hash(torch.arange(first * words, (first + count) * words, device=like.device), key)
    table = _signs_of_bytes().to(like.device, like.dtype)
    signs = torch.nn.functional.embedding(hashed.view(torch.uint8).int(), table)
    return signs.view(count, words * WORD)[:, :width]


@cache
def _signs_of_bytes() -> Tensor:
    """(256, 8)"""
    return torch.tensor([[1 - 2 * (byte >> bit & 1) for bit in range(8)] for byte in range(256)])


def _hash(counters: Tensor, key: int) -> Tensor:
    """64 random bits (k,) for each counter (k,): SplitMix64 (Steele, Lea and Flood 2014) started at `key`."""
    state = (counters + 1) * _signed(0x9E3779B97F4A7C15) + _signed(key)
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def _signed(value: int) -> int:
    """The 64-bit integer with the same bits."""
    return (value + 2**63) % 2**64 - 2**63


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Shift to the right, filling with zeros."""
    return (state >> bits) & (2 ** (64 - bits) - 1)
