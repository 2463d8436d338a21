"""Sketches seen in a task's basis, for adapters whose exact basis would not fit in memory (METHOD section 2, Memory).

A sketch is a seeded random projection of both sides of every gradient matrix, taken before the outer product, so
that Gram matrix, basis and features live in d << p dimensions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gistselect.model.engine_config import SketchConfig
from gistselect.model.sinks import SketchSink


class SketchInBasis(SketchSink):
    """Coordinates (n, r) of the sketches (n, d) in a basis (d, r)."""

    def __init__(self, config: SketchConfig, basis: NDArray[np.float32]) -> None:
        super().__init__(config)
        self._basis = basis

    def result(self) -> NDArray[np.float32]:
        """(n, r)"""
        return super().result() @ self._basis
