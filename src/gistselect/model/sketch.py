"""Gradients through a sketch, for adapters whose basis would not fit in memory (METHOD section 2, Memory).

A sketch is a seeded random projection of both sides of every gradient matrix, taken before the outer product, so
that Gram matrix, basis and features live in d << p dimensions. It knows nothing of the target: stored sketches of
the pool serve any target that is added later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gistselect.model.basis import Basis
from gistselect.model.engine_config import SketchConfig
from gistselect.model.gradients import GradientEngine, GradientFeatures
from gistselect.types import Example


class SketchedEngine:
    """A gradient engine with the same three operations, in sketch dimensions."""

    def __init__(self, exact: GradientEngine, config: SketchConfig) -> None:
        self.exact = exact
        self.config = config
        self.device = torch.device("cpu")
        """Where sketches are projected."""

    @property
    def mode(self) -> str:
        return f"{self.exact.mode}; sketched to {self.config.dimension} per side of each matrix"

    def sketches(self, examples: Sequence[Example]) -> GradientFeatures:
        """Sketches (n, d) of the gradients."""
        return self.exact.sketch(examples, self.config)

    def gram_passes(self, n: int) -> int:
        """Times that `gram` goes through n examples."""
        return 1

    def gram(self, examples: Sequence[Example]) -> NDArray[np.float64]:
        """Inner products (n, n) of the sketches: unbiased estimates of those of the gradients."""
        sketches = self.sketches(examples).features.astype(np.float64)
        return sketches @ sketches.T

    def basis_passes(self, rank: int) -> int:
        """Times that `basis_parts` goes through its examples."""
        return 1

    def basis_parts(self, examples: Sequence[Example], weights: NDArray[np.float64]) -> Iterator[Basis]:
        """`S' W` (d, r) for sketches S (n, d) and weights W (n, r), in one part."""
        sketches = self.sketches(examples).features.astype(np.float64)
        yield Basis(names=("sketch",), blocks=(torch.from_numpy((sketches.T @ weights).astype(np.float32)),))

    def features(self, examples: Sequence[Example], basis: Basis) -> GradientFeatures:
        """Coordinates (n, r) of the sketches in a basis."""
        return project(self.sketches(examples), basis)


def project(sketches: GradientFeatures, basis: Basis) -> GradientFeatures:
    """Coordinates (n, r) of sketches (n, d) in a basis (d, r)."""
    return dataclasses.replace(sketches, features=sketches.features @ basis.blocks[0].numpy())
