"""Projected optimizer steps of single examples: what LESS compares (arXiv 2402.04333, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gistselect.errors import ArtifactMismatchError
from gistselect.linalg.preconditioner import adam_direction, less_direction
from gistselect.linalg.projection import DenseSigns, Projection, SparseSigns
from gistselect.model.engine_config import AdamConfig, ProjectionConfig
from gistselect.model.factors import ParameterBlock
from gistselect.model.sinks import GatheringCollector, Site
from gistselect.streams import Stream, generator


class Moments(Protocol):
    """AdamW's moments by the name of their parameter, shaped as the parameters."""

    @property
    def exp_avg(self) -> Mapping[str, Tensor]: ...

    @property
    def exp_avg_sq(self) -> Mapping[str, Tensor]: ...

    @property
    def step(self) -> int:
        """Optimizer steps that they have seen."""
        ...


class DirectionSink(GatheringCollector):
    """Random projections (n, d) of the steps that Adam would take along each gradient.

    Without moments the gradient itself is projected, as LESS does with queries. The projection is made piece by piece
    for as many examples as wait together. An example whose gradient is exactly zero has the direction zero, not
    that of the momentum alone.
    """

    def __init__(
        self, projection: ProjectionConfig, moments: Moments | None = None, adam: AdamConfig | None = None
    ) -> None:
        self.projection, self.moments, self.adam = projection, moments, adam or AdamConfig()
        self._map: Projection = (
            DenseSigns(dimension=projection.dimension)
            if projection.nonzeros is None
            else SparseSigns(dimension=projection.dimension, nonzeros=projection.nonzeros)
        )
        self._of: tuple[ParameterBlock, ...] = ()
        """The blocks that keys and moments belong to."""

    def start(self, n: int, site: Site) -> None:
        """Raises `ArtifactMismatchError` if moments are of another adapter."""
        if self._of != site.blocks:
            self._keys = [_key(self.projection.seed, block.name) for block in site.blocks]
            self._moments = None if self.moments is None else _by_block(self.moments, site)
            self._of = site.blocks
        self.blocks, self.precise, self.dtype = range(len(site.blocks)), site.dtype, site.gradient_dtype
        self.rows_wanted = n
        self.values = torch.zeros(n, self.projection.dimension, dtype=site.dtype, device=site.device)
        self.moving = torch.zeros(n, dtype=torch.bool, device=site.device)
        """Which examples have a gradient other than zero."""

    def begin(self, rows: Tensor) -> None:
        super().begin(rows)
        self.moving[rows] = False

    def take(self, block: int, gradients: Tensor, rows: Tensor) -> None:
        total = torch.zeros(len(rows), self.projection.dimension, dtype=self.precise, device=gradients.device)
        step = self._map.rows_at_a_time(gradients)
        for first in range(0, gradients.shape[1], step):
            directions = self._direction(block, gradients[:, first : first + step], slice(first, first + step))
            self._map.add(total, directions.to(self.dtype), first, self._keys[block])
        self.values[rows] += total.to(self.values.device)
        self.moving[rows] = self.moving[rows] | (gradients != 0).any(dim=1).to(self.moving.device)

    def result(self) -> NDArray[np.float32]:
        """(n, d) after a pass."""
        return torch.where(self.moving[:, None], self.values, 0).cpu().numpy()

    def _direction(self, block: int, gradients: Tensor, part: slice) -> Tensor:
        if self._moments is None or self.moments is None:
            return gradients
        exp_avg, exp_avg_sq = (moment[part] for moment in self._moments[block])
        constants = {"beta1": self.adam.beta1, "beta2": self.adam.beta2, "eps": self.adam.eps}
        gradients = gradients.to(self.precise)
        if self.adam.direction == "adam":
            return adam_direction(gradients, exp_avg, exp_avg_sq, step=self.moments.step, **constants)
        return less_direction(gradients, exp_avg, exp_avg_sq, **constants)


def _key(seed: int, name: str) -> int:
    """The number that names a block's part of the projection: of its name, not of its place."""
    return int(generator(seed, Stream.PROJECTION, *name.encode()).integers(2**63))


def _by_block(moments: Moments, site: Site) -> list[tuple[Tensor, Tensor]]:
    """First and second moments (p_b,) of each block, on its device."""
    for name, kept in (("exp_avg", moments.exp_avg), ("exp_avg_sq", moments.exp_avg_sq)):
        if unknown := kept.keys() - {block.name for block in site.blocks}:
            raise ArtifactMismatchError(
                f"the moments {name} are of parameters that the adapter lacks, e.g. {min(unknown)!r}; give the moments "
                "that were saved with this checkpoint."
            )
        for block in site.blocks:
            found = tuple(kept[block.name].shape) if block.name in kept else None
            if found is None or block.shape not in (found, (1, *found)):
                raise ArtifactMismatchError(
                    f"{block.name!r} of shape {block.shape} has {'no' if found is None else f'{found}'} moments "
                    f"{name}; give the moments that were saved with this checkpoint."
                )
    pairs = ((moments.exp_avg[block.name], moments.exp_avg_sq[block.name]) for block in site.blocks)
    placed = zip(pairs, site.devices, strict=True)
    return [tuple(moment.flatten().to(device, site.dtype) for moment in pair) for pair, device in placed]  # pyright: ignore[reportReturnType]
