"""What becomes of per-example gradients as they appear: rows, Gram matrix, basis, features or sketches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gistselect.errors import ArtifactMismatchError
from gistselect.model.capture import ParameterBlock, Sink
from gistselect.model.engine_config import SketchConfig
from gistselect.model.products import product

CONVERT_ELEMENTS = 1 << 24
SKETCH_STREAM = 7


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Directions in parameter space, block by block; columns of several targets may stand side by side."""

    names: tuple[str, ...]
    blocks: tuple[Tensor, ...]
    """One (p_b, r) tensor per parameter block."""

    @property
    def rank(self) -> int:
        return self.blocks[0].shape[1]

    def dense(self) -> Tensor:
        """The whole basis (p, r), in float32."""
        return torch.cat([block.float() for block in self.blocks])

    def to(self, device: torch.device) -> Basis:
        """This basis on the device; itself if it is there."""
        return Basis(names=self.names, blocks=tuple(block.to(device) for block in self.blocks))

    @classmethod
    def concatenate(cls, bases: Sequence[Basis]) -> Basis:
        """[V_a | V_b | …]: one basis for all targets. Raises `ArtifactMismatchError` if adapters differ."""
        if len({basis.names for basis in bases}) != 1:
            raise ArtifactMismatchError("bases of different adapters cannot be joined; fit them on the same adapter.")
        if len(bases) == 1:
            return bases[0]
        blocks = zip(*(basis.blocks for basis in bases), strict=True)
        return cls(names=bases[0].names, blocks=tuple(torch.cat(parts, dim=1) for parts in blocks))

    @classmethod
    def join(cls, parts: Iterable[Basis]) -> Basis:
        """The blocks of all parts, one part after the other."""
        parts = list(parts)
        return cls(
            names=tuple(name for part in parts for name in part.names),
            blocks=tuple(block for part in parts for block in part.blocks),
        )

    @staticmethod
    def save_parts(parts: Iterable[Basis], folder: Path) -> None:
        """Write each part to a safetensors file of an empty folder as it comes."""
        from safetensors.torch import save_file

        for index, part in enumerate(parts):
            tensors = {name: block.contiguous() for name, block in zip(part.names, part.blocks, strict=True)}
            save_file(tensors, folder / f"part-{index:05d}.safetensors", metadata={"order": "\n".join(part.names)})

    @classmethod
    def load_parts(cls, folder: Path) -> Basis:
        """What `save_parts` wrote, which stays on the disk until it is read.

        Raises `ArtifactMismatchError` if a part is damaged or there is none.
        """
        paths = sorted(folder.glob("part-*.safetensors"))
        if not paths:
            raise ArtifactMismatchError(f"{folder} holds no basis; fit it again.")
        return cls.join(map(_load_part, paths))


def _load_part(path: Path) -> Basis:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            names = tuple((file.metadata() or {}).get("order", "").split("\n"))
            return Basis(names=names, blocks=tuple(file.get_tensor(name) for name in names))
    except (SafetensorError, OSError) as error:
        raise ArtifactMismatchError(f"{path} is not part of a stored basis ({error}); fit it again.") from error


class DenseSink(Sink):
    """All gradients (n, p), side by side."""

    def __init__(self, n: int, blocks: Sequence[ParameterBlock], dtype: torch.dtype, device: torch.device) -> None:
        self.blocks, self.dtype = range(len(blocks)), dtype
        self.offsets = np.cumsum([0, *(block.size for block in blocks)])
        self.values = torch.zeros(n, self.offsets[-1], dtype=dtype, device=device)

    def begin(self, rows: Tensor) -> None:
        self.rows = rows

    def add(self, block: int, gradients: Tensor) -> None:
        self.values[self.rows, self.offsets[block] : self.offsets[block + 1]] = gradients.flatten(1)

    def broken(self) -> Tensor:
        return ~self.values.isfinite().all(dim=1)


class GramSink(Sink):
    """Gradients of some blocks, kept until their inner products (n, n) can be taken in float64."""

    def __init__(
        self,
        n: int,
        group: Sequence[int],
        blocks: Sequence[ParameterBlock],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.blocks, self.dtype = frozenset(group), dtype
        self.values = {block: torch.zeros(n, blocks[block].size, dtype=dtype, device=device) for block in group}

    def begin(self, rows: Tensor) -> None:
        self.rows = rows

    def add(self, block: int, gradients: Tensor) -> None:
        self.values[block][self.rows] = gradients.flatten(1)

    def broken(self) -> Tensor:
        return ~torch.stack([values.isfinite().all(dim=1) for values in self.values.values()]).all(dim=0)

    def gram(self) -> Tensor:
        """Inner products (n, n) over this group's parameters."""
        return sum((_gram(values) for values in self.values.values()), start=torch.zeros((), dtype=torch.float64))


class BasisSink(Sink):
    """V = Gᵀ W, summed over examples as their gradients appear."""

    def __init__(
        self, weights: Tensor, group: Sequence[int], blocks: Sequence[ParameterBlock], dtype: torch.dtype
    ) -> None:
        self.blocks, self.dtype = frozenset(group), dtype
        self.weights = weights.to(dtype)
        rank = weights.shape[1]
        self.values = {b: torch.zeros(blocks[b].size, rank, dtype=dtype, device=weights.device) for b in group}

    def begin(self, rows: Tensor) -> None:
        self.batch_weights = self.weights[rows]

    def add(self, block: int, gradients: Tensor) -> None:
        self.values[block].addmm_(gradients.flatten(1).T, self.batch_weights)


class ProjectionSink(Sink):
    """Coordinates (n, r) of the gradients in a basis, and their squared norms (n,).

    A product with few rows costs reading the whole basis, so gradients of small batches wait for each other.
    """

    def __init__(self, n: int, basis: Basis, held_rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.blocks = range(len(basis.blocks))
        self.basis = basis.to(device).blocks
        self.precise = dtype
        self.dtype = torch.bfloat16 if basis.blocks[0].dtype == torch.bfloat16 else dtype
        self.features = torch.zeros(n, basis.rank, dtype=dtype, device=device)
        self.squares = torch.zeros(n, dtype=dtype, device=device)
        self.held_rows = held_rows
        self.waiting: dict[int, Tensor] = {}
        """Gradients (held_rows, p_b) of each block."""
        self.waiting_rows: list[Tensor] = []
        self.place = slice(0, 0)
        """Where those of the batch at hand wait."""

    def begin(self, rows: Tensor) -> None:
        if self.place.stop + len(rows) > self.held_rows:
            self.finish()
        self.rows = rows
        self.features[rows] = 0
        self.squares[rows] = 0
        self.direct = len(rows) >= self.held_rows
        if not self.direct:
            self.place = slice(self.place.stop, self.place.stop + len(rows))
            self.waiting_rows.append(rows)

    def room(self, block: int) -> Tensor | None:
        if self.direct:
            return None
        if block not in self.waiting:
            size = self.basis[block].shape[0]
            self.waiting[block] = torch.empty(self.held_rows, size, dtype=self.dtype, device=self.squares.device)
        return self.waiting[block][self.place]

    def add(self, block: int, gradients: Tensor) -> None:
        gradients = gradients.flatten(1)
        self.squares[self.rows] += torch.linalg.vector_norm(gradients, dim=1, dtype=self.precise).square_()
        if self.direct:
            self._project(block, gradients, self.rows)

    def finish(self) -> None:
        if self.waiting_rows:
            rows = torch.cat(self.waiting_rows)
            for block, gradients in self.waiting.items():
                self._project(block, gradients[: len(rows)], rows)
            self.waiting_rows.clear()
            self.place = slice(0, 0)

    def _project(self, block: int, gradients: Tensor, rows: Tensor) -> None:
        self.features[rows] += product(gradients, self.basis[block], self.precise)

    def broken(self) -> Tensor:
        return ~(self.features.isfinite().all(dim=1) & self.squares.isfinite())


class SketchSink(Sink):
    """Gradients (n, d) seen through a random projection of both sides of every matrix.

    The entries of a projection (width, k) are ±1/sqrt(k), so inner products of sketches estimate inner
    products of gradients without bias.
    """

    def __init__(
        self,
        n: int,
        config: SketchConfig,
        blocks: Sequence[ParameterBlock],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.blocks, self.dtype = range(len(blocks)), dtype
        sides = [[_sketch_side(config, b, s, block.shape[s]) for s in (0, 1)] for b, block in enumerate(blocks)]
        self.sides = [[side if side is None else side.to(device, dtype) for side in pair] for pair in sides]
        widths = [min(out, config.dimension) * min(inner, config.dimension) for _, (out, inner) in blocks]
        self.offsets = np.cumsum([0, *widths])
        self.values = torch.zeros(n, self.offsets[-1], dtype=dtype, device=device)

    def begin(self, rows: Tensor) -> None:
        self.rows = rows

    def compress(self, block: int, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        left_side, right_side = self.sides[block]
        left = left if left_side is None else left @ left_side.to(left.dtype)
        return left, right if right_side is None else right @ right_side.to(right.dtype)

    def add(self, block: int, gradients: Tensor) -> None:
        self.values[self.rows, self.offsets[block] : self.offsets[block + 1]] = gradients.flatten(1)

    def broken(self) -> Tensor:
        return ~self.values.isfinite().all(dim=1)


def parameter_groups(blocks: Sequence[ParameterBlock], limit: float) -> list[list[int]]:
    """Consecutive blocks with at most `limit` parameters together (or one block alone)."""
    groups: list[list[int]] = [[]]
    total = 0
    for index, block in enumerate(blocks):
        if groups[-1] and total + block.size > limit:
            groups.append([])
            total = 0
        groups[-1].append(index)
        total += block.size
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
    rng = np.random.default_rng([config.seed, SKETCH_STREAM, block, side])
    signs = rng.integers(0, 2, size=(width, config.dimension), dtype=np.int8) * 2 - 1
    return torch.from_numpy(signs).to(torch.float32) / config.dimension**0.5
