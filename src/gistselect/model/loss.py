"""Cross-entropy of supervised tokens, without ever holding the logits of all tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 512 << 20}
"""Logits held at a time, in bytes; on a CPU they should stay in the cache."""


@dataclass(frozen=True, kw_only=True)
class OutputHead:
    """What a model does to its last hidden states: softcap(scale · (hidden Wᵀ + bias))."""

    weight: Tensor
    """(n_vocabulary, hidden)"""
    bias: Tensor | None
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, model: Any) -> OutputHead | None:
        """The head of a causal language model, or None if it is not a plain linear map."""
        linear = model.get_output_embeddings()
        if type(linear) is not torch.nn.Linear:
            return None
        config = model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(weight=linear.weight, bias=linear.bias, scale=scale, softcap=softcap)


def supervised_cross_entropy(hidden: Tensor, labels: Tensor, head: OutputHead) -> Tensor:
    """Loss (m,) of each label (m,) from its predictor's last hidden state (m, hidden), in at least float32.

    The gradient for the hidden states is formed chunk by chunk next to the loss, so the peak memory is one
    chunk of logits and does not grow with m.
    """
    return _SupervisedCrossEntropy.apply(hidden, labels, head)  # pyright: ignore[reportReturnType]


class _SupervisedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: OutputHead) -> Tensor:
        precise = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(len(hidden), dtype=precise, device=hidden.device)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        limit = CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cuda"])
        size = max(1, limit // (len(head.weight) * precise.itemsize))
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = _logits(hidden[part], head).to(precise)
            log_total = torch.logsumexp(logits, dim=-1)
            losses[part] = log_total - logits.gather(1, labels[part, None])[:, 0]
            if gradient is not None:
                gradient[part] = _hidden_gradient(logits, log_total, labels[part], head)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0][:, None].to(gradient.dtype), None, None


def _logits(hidden: Tensor, head: OutputHead) -> Tensor:
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias)
    if head.scale != 1:
        logits *= head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits


def _hidden_gradient(logits: Tensor, log_total: Tensor, labels: Tensor, head: OutputHead) -> Tensor:
    """d loss / d hidden (m, hidden); overwrites the logits (m, n_vocabulary)."""
    slope = None if head.softcap is None else head.scale * (1 - (logits / head.softcap).square_())
    residual = logits.sub_(log_total[:, None]).exp_()
    residual[torch.arange(len(labels), device=labels.device), labels] -= 1
    if slope is not None:
        residual *= slope
    elif head.scale != 1:
        residual *= head.scale
    return residual.to(head.weight.dtype) @ head.weight
