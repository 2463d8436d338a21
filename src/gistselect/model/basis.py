"""Directions in parameter space, block by block, in memory and on the disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gistselect.errors import ArtifactMismatchError
from gistselect.model.factors import ParameterBlock


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Directions in parameter space, block by block; columns of several targets may stand side by side."""

    names: tuple[str, ...]
    blocks: tuple[Tensor, ...]
    """One (p_b, r) tensor per parameter block."""

    @property
    def rank(self) -> int:
        return self.blocks[0].shape[1]

    @property
    def n_bytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)

    @property
    def largest_column(self) -> int:
        """Bytes of one column of the largest block."""
        return max(block.shape[0] * block.itemsize for block in self.blocks)

    def dense(self) -> Tensor:
        """The whole basis (p, r), in float32, where its first block is."""
        return torch.cat([block.float().to(self.blocks[0].device) for block in self.blocks])

    def to(self, devices: Sequence[torch.device]) -> Basis:
        """This basis with each block on its device; nothing is copied that is there."""
        placed = zip(self.blocks, devices, strict=True)
        return Basis(names=self.names, blocks=tuple(block.to(device) for block, device in placed))

    def columns(self, part: slice) -> Basis:
        """Some of the directions; a view."""
        return Basis(names=self.names, blocks=tuple(block[:, part] for block in self.blocks))

    def check(self, blocks: Sequence[ParameterBlock]) -> None:
        """Raise `ArtifactMismatchError` unless this basis belongs to an adapter with these blocks."""
        names, sizes = tuple(block.name for block in blocks), tuple(block.size for block in blocks)
        if self.names != names or tuple(len(block) for block in self.blocks) != sizes:
            raise ArtifactMismatchError("the basis was fitted on another adapter; fit it again on this one.")

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


@dataclass(frozen=True, kw_only=True)
class Room:
    """Memory that bases may take, in bytes."""

    together: float
    """All their blocks, wherever they lie."""
    piece: float
    """What visits any one device at a time."""


def room_for_bases(
    memory_gb: float | None,
    blocks: Sequence[ParameterBlock],
    devices: Sequence[torch.device],
    coming: Mapping[torch.device, float] | None = None,
) -> Room | None:
    """Room for bases of which each block lies on its device; None: without limit.

    A device gives `memory_gb` or, on a GPU, half of what is free now, before there are any bases: the other half is
    left to activations. `coming` says which bytes of it a model will take that is not there yet. With several devices
    the one that has the least for its share of the parameters decides.
    """
    shares: dict[torch.device, int] = {}
    for block, device in zip(blocks, devices, strict=True):
        shares[device] = shares.get(device, 0) + block.size
    limits = {device: _free_half(device, coming or {}) if memory_gb is None else memory_gb * 1e9 for device in shares}
    known = {device: limit for device, limit in limits.items() if limit is not None}
    if not known:
        return None
    total = sum(shares.values())
    together = min(limit * total / shares[device] for device, limit in known.items())
    return Room(together=together, piece=min(known.values()))


def _free_half(device: torch.device, coming: Mapping[torch.device, float]) -> float | None:
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0.0, torch.cuda.mem_get_info(device)[0] + unused - coming.get(device, 0.0)) / 2
