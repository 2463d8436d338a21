"""Cross-entropy of supervised tokens, without ever holding the logits of all tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gistselect.linalg.products import product
from gistselect.model.batches import Batch

BLOCK_BYTES = {"cpu": 8 << 20, "cuda": 512 << 20}
"""Logits held at a time, in bytes; on a CPU they should stay in the cache."""
BLOCK_WORDS = {"cpu": 2048, "cuda": 32768}
"""Words of the vocabulary looked at together; rows share the reading of their weights."""


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


def label_losses(causal: Any, head: OutputHead | None, batch: Batch, **inputs: Any) -> Tensor:
    """Loss (m,) of each label of a batch, in at least float32.

    Without a head it comes from the model's own logits of all tokens. The model gets `inputs` beside the token ids.
    """
    inputs |= {"input_ids": batch.input_ids, "use_cache": False}
    if head is not None:
        hidden = causal.base_model(**inputs)[0].flatten(0, 1)
        return supervised_cross_entropy(hidden[batch.on(hidden.device).predictors], batch.labels, head)
    logits = causal(**inputs).logits.flatten(0, 1)
    logits = logits[batch.on(logits.device).predictors]
    precise = logits.to(batch.labels.device, torch.promote_types(logits.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(precise, batch.labels, reduction="none")


def supervised_cross_entropy(hidden: Tensor, labels: Tensor, head: OutputHead) -> Tensor:
    """Loss (m,) of each label (m,) from its predictor's last hidden state (m, hidden), in at least float32.

    The gradient for the hidden states is formed next to the loss, one block of the vocabulary after the other
    with a running maximum, so the peak memory is one block of logits and grows neither with m nor the vocabulary.
    It is computed where the head is, and returned where the labels are.
    """
    place = head.weight.device
    losses: Any = _SupervisedCrossEntropy.apply(hidden.to(place), labels.to(place), head)
    return losses.to(labels.device)


class _SupervisedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: OutputHead) -> Tensor:
        precise = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(len(hidden), dtype=precise, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        kind = "cpu" if hidden.device.type == "cpu" else "cuda"
        words = min(BLOCK_WORDS[kind], len(head.weight))
        size = max(1, BLOCK_BYTES[kind] // (words * precise.itemsize))
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            losses[part], slope = _loss_and_slope(hidden[part], labels[part], head, words, gradient is not None)
            if gradient is not None:
                gradient[part] = slope
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0][:, None].to(gradient.dtype), None, None


def _loss_and_slope(
    hidden: Tensor, labels: Tensor, head: OutputHead, words: int, wants_slope: bool
) -> tuple[Tensor, Tensor]:
    """Loss (m,) and d loss / d hidden (m, hidden; zero unless wanted), both precise.

    The label's own word is kept out of the sums and added last with weight p - 1 = -(share of all others): where the
    model is sure, p·w - w would cancel to rounding noise.
    """
    precise = torch.promote_types(hidden.dtype, torch.float32)
    own = head.weight[labels].to(precise)
    own_bias = None if head.bias is None else head.bias[labels]
    own_logit, own_slope = _activated((hidden.to(precise) * own).sum(dim=1), own_bias, head)
    peak, others = own_logit, torch.zeros_like(own_logit)
    slope = torch.zeros(hidden.shape, dtype=precise, device=hidden.device)
    for start in range(0, len(head.weight), words):
        weight = head.weight[start : start + words]
        bias = None if head.bias is None else head.bias[start : start + words]
        logits, slopes = _activated((hidden @ weight.T).to(precise), bias, head)
        _leave_out(logits, labels - start)
        new_peak = torch.maximum(peak, logits.amax(dim=1))
        shrink = torch.exp(peak - new_peak)
        shares = logits.sub_(new_peak[:, None]).exp_()
        others, peak = others * shrink + shares.sum(dim=1), new_peak
        if wants_slope:
            shares = shares if slopes is None else shares.mul_(slopes)
            slope.mul_(shrink[:, None]).add_(product(shares.to(weight.dtype), weight, precise))
    total = torch.exp(own_logit - peak) + others
    own_share = -others if own_slope is None else -others * own_slope
    gradient = (slope + own_share[:, None] * own) / total[:, None] * head.scale
    return peak - own_logit + torch.log(total), gradient


def _activated(products: Tensor, bias: Tensor | None, head: OutputHead) -> tuple[Tensor, Tensor | None]:
    """Logits from hidden·weight, in place where it can be, and their derivative by scale · hidden·weight (None: 1)."""
    if bias is not None:
        products = products.add_(bias)
    if head.scale != 1:
        products = products.mul_(head.scale)
    if head.softcap is None:
        return products, None
    squashed = products.div_(head.softcap).tanh_()
    return head.softcap * squashed, 1 - squashed.square()


def _leave_out(logits: Tensor, columns: Tensor) -> None:
    """Set one column of each row to -inf, where it is among those at hand."""
    inside = (columns >= 0) & (columns < logits.shape[1])
    columns = columns.clamp(0, logits.shape[1] - 1)[:, None]
    kept = torch.where(inside[:, None], float("-inf"), logits.gather(1, columns))
    logits.scatter_(1, columns, kept)
