"""Kronecker-factored curvature of one parameter matrix, with corrected eigenvalues (EK-FAC).

George et al., "Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis" (arXiv 1806.03884,
section 3.2), used for influence by Grosse et al. (arXiv 2308.03296, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BlockCurvature:
    """H = (U ⊗ W) diag(s) (U ⊗ W)ᵀ for gradients (out, in) of one matrix."""

    left: Tensor
    """U (out, out): eigenvectors of the second moment of the output gradients, in columns."""
    right: Tensor
    """W (in, in): those of the activations."""
    second: Tensor
    """s (out, in): mean squares of the gradients' coordinates Uᵀ G W."""

    def rotated(self, gradients: Tensor) -> Tensor:
        """Coordinates (n, out, in) of gradients (n, out, in): Uᵀ G W."""
        return self.left.T @ gradients @ self.right

    def restored(self, coordinates: Tensor) -> Tensor:
        """Gradients (n, out, in) of these coordinates: U C Wᵀ."""
        return self.left @ coordinates @ self.right.T

    def inverse(self, damping: float, floor: float) -> Tensor:
        """1 / (s + damping · mean(s)), (out, in); 0 where mean(s) is not above `floor`.

        A matrix that no row of the sample moves, but for rounding, has no curvature to divide by: it counts nothing.
        """
        mean = self.second.mean()
        return 1 / (self.second + damping * mean) if mean > floor else torch.zeros_like(self.second)


def eigenvectors(moment: Tensor) -> Tensor:
    """Orthonormal eigenvectors (d, d), in columns, of a symmetric second moment (d, d)."""
    return torch.linalg.eigh((moment + moment.T) / 2)[1]
