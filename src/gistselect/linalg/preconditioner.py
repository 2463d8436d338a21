"""Gradients to the steps that Adam would take along them.

Two formulas differ, and so do their names: what LESS published, and what `torch.optim.Adam` does.
"""

from __future__ import annotations

from torch import Tensor


def less_direction(
    gradients: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, beta1: float, beta2: float, eps: float
) -> Tensor:
    """m' / sqrt(v' + eps), shaped as `gradients` (n, p), from the moments (p,) before the step (LESS, section 3.2).

    m' = β1 m + (1 - β1) g and v' = β2 v + (1 - β2) g²; eps is inside the root and no bias is corrected, as published.
    A gradient of zero still has a direction, that of the momentum.
    """
    first, second = _updated(gradients, exp_avg, exp_avg_sq, beta1, beta2)
    return first.div_(second.add_(eps).sqrt_())


def adam_direction(
    gradients: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, step: int, beta1: float, beta2: float, eps: float
) -> Tensor:
    """m̂ / (sqrt(v̂) + eps), shaped as `gradients` (n, p): minus this times the learning rate is the next step of
    `torch.optim.Adam` after `step` steps.

    m̂ = m' / (1 - β1^(step+1)) and v̂ = v' / (1 - β2^(step+1)), m' and v' as in `less_direction`.
    """
    first, second = _updated(gradients, exp_avg, exp_avg_sq, beta1, beta2)
    first.div_(1 - beta1 ** (step + 1))
    return first.div_(second.div_(1 - beta2 ** (step + 1)).sqrt_().add_(eps))


def _updated(
    gradients: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, beta1: float, beta2: float
) -> tuple[Tensor, Tensor]:
    first = (gradients * (1 - beta1)).add_(exp_avg, alpha=beta1)
    second = gradients.square().mul_(1 - beta2).add_(exp_avg_sq, alpha=beta2)
    return first, second
