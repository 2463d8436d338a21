"""What becomes of per-example gradients as they appear: rows, Gram matrix, basis, norms, features or sketches.

A sink is made once from its options and serves any number of passes; `start` makes it ready for one. So a basis is
sent to its device once, and a pass that ran out of memory can start again.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gistselect.errors import ModelError
from gistselect.linalg.products import product
from gistselect.model.basis import Basis
from gistselect.model.engine_config import SketchConfig
from gistselect.model.factors import Factors, ParameterBlock
from gistselect.model.sketch_size import sketch_numbers
from gistselect.streams import Stream, generator

CONVERT_ELEMENTS = 1 << 24
HELD_ROWS = 64
"""Gradients projected together: fewer would cost reading the basis more often than the arithmetic."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where sinks work: an adapter's parameters on a device."""

    blocks: tuple[ParameterBlock, ...]
    dtype: torch.dtype
    """Number format of sums and results."""
    gradient_dtype: torch.dtype
    """Number format in which whole gradients are formed and wait for each other."""
    device: torch.device
    """Where what is collected of every example is summed up, block after block as they appear."""
    devices: tuple[torch.device, ...]
    """Of each block: its gradients appear there, and what meets them lies there."""
    gradient_bytes: float
    """Memory in which gradients may wait."""
    basis_bytes: float | None
    """Memory that bases may take together; None: without limit."""
    piece_bytes: float | None
    """Memory that they may take on any one device."""

    @property
    def n_parameters(self) -> int:
        return sum(block.size for block in self.blocks)

    @property
    def held_rows(self) -> int:
        """Examples whose gradients wait to be projected together."""
        return max(1, int(min(HELD_ROWS, self.gradient_bytes / (self.n_parameters * self.dtype.itemsize))))


class Sink:
    """Takes the gradients of one batch after the other, block by block in any order."""

    blocks: Container[int]
    """The blocks that are wanted; known once `start` was called."""

    def start(self, n: int, site: Site) -> None:
        """A pass over n examples begins, or begins again."""
        raise NotImplementedError

    def begin(self, rows: Tensor) -> None:
        """A batch with the examples at `rows` (n_batch,) begins; what is known of them is to be replaced."""
        self.rows = rows

    def add(self, block: int, factors: Factors) -> None:
        """The gradients of a block for the examples of this batch."""
        raise NotImplementedError

    def finish(self) -> None:
        """No more batches for now."""

    def broken(self) -> Tensor | None:
        """Which examples (n,) hold NaN or infinity; None if examples are not kept apart."""
        return None


class Collector(Sink):
    """A sink with one row of numbers for each example."""

    values: Tensor
    """(n, width) on the device; NaN or infinity in the rows of broken examples."""

    def broken(self) -> Tensor | None:
        return ~self.values.isfinite().all(dim=1)

    def result(self) -> NDArray[Any]:
        """(n, width) after a pass."""
        return self.values.cpu().numpy()


class GatheringCollector(Collector):
    """A collector whose work is cheaper for many examples at once: their gradients wait, and it gets them together."""

    dtype: torch.dtype
    """Number format in which it wants gradients; known once `start` was called."""
    rows_wanted: int
    """It gets so many examples at a time, fewer where memory is short; known once `start` was called."""

    def begin(self, rows: Tensor) -> None:
        self.values[rows] = 0

    def take(self, block: int, gradients: Tensor, rows: Tensor) -> None:
        """Gradients (k, out · in) of a block, not to be changed, for the examples at `rows` (k,)."""
        raise NotImplementedError


class DenseSink(Collector):
    """All gradients (n, p), side by side."""

    def start(self, n: int, site: Site) -> None:
        self.blocks, self.dtype = range(len(site.blocks)), site.dtype
        self.offsets = np.cumsum([0, *(block.size for block in site.blocks)])
        self.values = torch.zeros(n, self.offsets[-1], dtype=site.dtype, device=site.device)

    def add(self, block: int, factors: Factors) -> None:
        place = slice(self.offsets[block], self.offsets[block + 1])
        self.values[self.rows, place] = factors.gradients(self.dtype).flatten(1).to(self.values.device)


class NormSink(Collector):
    """Squared lengths (n, 1) of the gradients."""

    def start(self, n: int, site: Site) -> None:
        self.blocks, self.precise, self.dtype = range(len(site.blocks)), site.dtype, site.gradient_dtype
        self.values = torch.zeros(n, 1, dtype=site.dtype, device=site.device)

    def begin(self, rows: Tensor) -> None:
        self.rows = rows
        self.values[rows] = 0

    def add(self, block: int, factors: Factors) -> None:
        gradients = factors.gradients(self.dtype).flatten(1)
        norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True, dtype=self.precise)
        self.values[self.rows] += norms.square_().to(self.values.device)


class GramSink(Sink):
    """Gradients of some blocks, kept until their inner products (n, n) can be taken in float64."""

    def __init__(self, group: Sequence[int]) -> None:
        self.blocks = self.group = tuple(group)

    def start(self, n: int, site: Site) -> None:
        self.dtype, self.device = site.dtype, site.device
        self.values = {
            block: torch.zeros(n, site.blocks[block].size, dtype=site.dtype, device=site.devices[block])
            for block in self.group
        }

    def add(self, block: int, factors: Factors) -> None:
        self.values[block][factors.batch.rows] = factors.gradients(self.dtype).flatten(1)

    def broken(self) -> Tensor:
        whole = [values.isfinite().all(dim=1).to(self.device) for values in self.values.values()]
        return ~torch.stack(whole).all(dim=0)

    def gram(self) -> Tensor:
        """Inner products (n, n) over this group's parameters."""
        return sum((_gram(values) for values in self.values.values()), start=torch.zeros((), dtype=torch.float64))


class BasisSink(Sink):
    """V = Gᵀ W, summed over examples as their gradients appear."""

    def __init__(self, weights: Tensor, group: Sequence[int]) -> None:
        self.weights = weights
        self.blocks = self.group = tuple(group)

    def start(self, n: int, site: Site) -> None:
        self.dtype = site.dtype
        self.weights = self.weights.to(site.device, site.dtype)
        self.values = {
            block: torch.zeros(
                site.blocks[block].size, self.weights.shape[1], dtype=site.dtype, device=site.devices[block]
            )
            for block in self.group
        }

    def begin(self, rows: Tensor) -> None:
        self.batch_weights = self.weights[rows]

    def add(self, block: int, factors: Factors) -> None:
        total = self.values[block]
        total.addmm_(factors.gradients(self.dtype).flatten(1).T, self.batch_weights.to(total.device))


class ProjectionSink(GatheringCollector):
    """Coordinates (n, r) of the gradients in a basis.

    A product with few rows costs reading the whole basis, so gradients of small batches wait for each other.
    """

    def __init__(self, basis: Basis) -> None:
        self.basis = basis
        self.piece_bytes: float | None = None
        """If the basis stays where it is and visits the device in pieces, how large they may be."""

    def start(self, n: int, site: Site) -> None:
        """Raises `ArtifactMismatchError` for a basis of another adapter, `ModelError` for one that is too large."""
        self.basis.check(site.blocks)
        if self.piece_bytes is None:
            self.basis = self._sent(site.devices)
        self.blocks, self.precise = range(len(site.blocks)), site.dtype
        self.dtype = torch.bfloat16 if self.basis.blocks[0].dtype == torch.bfloat16 else site.dtype
        self.rows_wanted = site.held_rows if self.piece_bytes is None else n
        self.reserve(n, site)

    def reserve(self, n: int, site: Site) -> None:
        """Make room for the result."""
        self.values = torch.zeros(n, self.basis.rank, dtype=site.dtype, device=site.device)

    def take(self, block: int, gradients: Tensor, rows: Tensor) -> None:
        basis = self.basis.blocks[block]
        if self.piece_bytes is None:
            self.values[rows] += product(gradients, basis, self.precise).to(self.values.device)
            return
        width = max(1, int(self.piece_bytes // (basis.shape[0] * basis.itemsize)))
        pieces = [product(gradients, part.to(gradients.device), self.precise) for part in basis.split(width, dim=1)]
        self.values[rows] += torch.cat(pieces, dim=1).to(self.values.device)

    def _sent(self, devices: Sequence[torch.device]) -> Basis:
        try:
            return self.basis.to(devices)
        except torch.OutOfMemoryError as error:
            where = ", ".join(dict.fromkeys(map(str, devices)))
            raise ModelError(
                f"a basis of {self.basis.n_bytes / 1e9:.1f} GB does not fit on {where} beside the model; set a "
                "smaller basis_memory_gb, and it is projected piece by piece."
            ) from error


class SketchSink(Collector):
    """Gradients (n, d) seen through a random projection of both sides of every matrix.

    The entries of a projection (width, k) are ±1/sqrt(k), so inner products of sketches estimate inner
    products of gradients without bias.
    """

    def __init__(self, config: SketchConfig) -> None:
        self.config = config
        self._of: tuple[ParameterBlock, ...] = ()
        """The blocks that `_sides` belong to."""
        self._sides: list[tuple[Tensor | None, Tensor | None]] = []

    def start(self, n: int, site: Site) -> None:
        blocks, dimension = site.blocks, self.config.dimension
        self.blocks, self.dtype = range(len(blocks)), site.dtype
        if self._of != blocks:
            self._of, self._sides = blocks, [self._pair(index, block, site) for index, block in enumerate(blocks)]
        widths = [int(sketch_numbers([block.shape], dimension)) for block in blocks]
        self.offsets = np.cumsum([0, *widths])
        self.values = torch.zeros(n, self.offsets[-1], dtype=site.dtype, device=site.device)

    def add(self, block: int, factors: Factors) -> None:
        sketched = factors.compressed(*self._sides[block]).gradients(self.dtype)
        place = slice(self.offsets[block], self.offsets[block + 1])
        self.values[self.rows, place] = sketched.flatten(1).to(self.values.device)

    def _pair(self, index: int, block: ParameterBlock, site: Site) -> tuple[Tensor | None, Tensor | None]:
        out, inner = (_sketch_side(self.config, index, side, block.shape[side]) for side in (0, 1))
        place = site.devices[index]
        return tuple(side if side is None else side.to(place, site.dtype) for side in (out, inner))  # pyright: ignore[reportReturnType]


def parameter_groups(
    blocks: Sequence[ParameterBlock], limit: float, size: Callable[[ParameterBlock], float] = lambda block: block.size
) -> list[list[int]]:
    """Consecutive blocks that together have at most `limit` parameters, or another size (or one block alone)."""
    groups: list[list[int]] = [[]]
    total = 0.0
    for index, block in enumerate(blocks):
        if groups[-1] and total + size(block) > limit:
            groups.append([])
            total = 0.0
        groups[-1].append(index)
        total += size(block)
    return groups


def _gram(values: Tensor) -> Tensor:
    """G Gᵀ (n, n) in float64 on the CPU, from G (n, p_b), converted a piece at a time."""
    result = torch.zeros(len(values), len(values), dtype=torch.float64, device=values.device)
    for piece in values.split(max(1, CONVERT_ELEMENTS // len(values)), dim=1):
        piece = piece.double()
        result.addmm_(piece, piece.T)
    return result.cpu()


def _sketch_side(config: SketchConfig, block: int, side: int, width: int) -> Tensor | None:
    """Random signs (width, k) / sqrt(k), or None where the side is narrow enough to stay exact."""
    if width <= config.dimension:
        return None
    rng = generator(config.seed, Stream.SKETCH, block, side)
    signs = rng.integers(0, 2, size=(width, config.dimension), dtype=np.int8) * 2 - 1
    return torch.from_numpy(signs).to(torch.float32) / config.dimension**0.5
