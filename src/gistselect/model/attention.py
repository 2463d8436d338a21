"""Causal attention over packed examples, each attending to itself alone: no padding, no mask."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

from gistselect.model.batches import Batch

NAME = "gistselect_segments"


class SegmentAttention:
    """Attention function of a transformers model whose row of tokens is a packed batch."""

    def __init__(self) -> None:
        self.batch: Batch | None = None
        """The batch at hand; set before each forward pass."""

    @contextmanager
    def installed(self, model: Any) -> Iterator[None]:
        """Within this context the model attends by this function; after it as before."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        before = model.config._attn_implementation
        ALL_ATTENTION_FUNCTIONS[NAME] = self
        model.config._attn_implementation = NAME
        try:
            yield
        finally:
            model.config._attn_implementation = before
            del ALL_ATTENTION_FUNCTIONS[NAME]

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Outputs (1, t, heads, d) from queries (1, heads, t, d), keys and values (1, key heads, t, d).

        Raises `NotImplementedError` for attention sinks.
        """
        if s_aux is not None:
            raise NotImplementedError("attention sinks")
        assert self.batch is not None
        batch = self.batch.on(query.device)
        if _flash_runs(query) and softcap is None:
            return _flash(query, key, value, batch, scaling, sliding_window), None
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        queries, keys, values = (side.split(batch.lengths.tolist(), dim=2) for side in (query, key, value))
        outputs = [
            _attend(q, k, v, scaling, sliding_window, softcap).transpose(1, 2)
            for q, k, v in zip(queries, keys, values, strict=True)
        ]
        return torch.cat(outputs, dim=1), None


def _flash_runs(query: Tensor) -> bool:
    return query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, batch: Batch, scaling: float | None, sliding_window: int | None
) -> Tensor:
    """All examples in one kernel, (1, t, heads, d)."""
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    query, key, value = (side[0].transpose(0, 1) for side in (query, key, value))
    attend: Any = varlen.varlen_attn
    ends, longest = batch.ends, batch.longest
    grouped = {"enable_gqa": True} if _asks_for_grouped_heads(attend) else {}
    return attend(query, key, value, ends, ends, longest, longest, scale=scaling, window_size=window, **grouped)[None]


@cache
def _asks_for_grouped_heads(attend: Any) -> bool:
    """Whether fewer key heads than query heads must be allowed; torch 2.11 takes them as they come."""
    return "enable_gqa" in inspect.signature(attend).parameters


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    """Causal attention (1, heads, t, d) within one example."""
    length = query.shape[2]
    window = length if sliding_window is None else sliding_window
    if softcap is None and window >= length:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    visible = torch.ones(length, length, dtype=torch.bool, device=query.device).tril_().triu_(1 - window)
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scaling)
    scale = scaling or query.shape[3] ** -0.5
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1, dtype=torch.float32)
    return weights.to(value.dtype) @ value
