"""Whether a model can be trusted with a row: finite weights, a finite loss, no look at tokens that come later."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gistselect.errors import ModelError


def refuse_broken_weights(named: Iterable[tuple[str, Tensor]], owner: str) -> None:
    """Raise `ModelError` that names the first tensor with a value that is not finite. Each is read once."""
    floating = [(name, value) for name, value in named if value.is_floating_point() and value.numel()]
    if not floating or any(value.is_meta for _, value in floating):
        return
    # The extremes of a tensor with a NaN are NaN, and no copy of it is made; the device is asked once for all.
    ends = [torch.stack(torch.aminmax(value.detach())).float().cpu() for _, value in floating]
    finite = torch.isfinite(torch.stack(ends)).all(dim=1).tolist()
    for (name, value), is_finite in zip(floating, finite, strict=True):
        if not is_finite:
            n_broken = int((~torch.isfinite(value)).sum())
            overflow = value.dtype == torch.float16 and not bool(torch.isnan(value).any())
            remedy = (
                "float16 ends at 65,504; use --dtype bfloat16 or float32"
                if overflow
                else "the file is damaged or its training diverged; fetch it again or use another checkpoint"
            )
            raise ModelError(
                f"{owner}: the weight {name!r} holds {n_broken:,} of {value.numel():,} values that are not finite; "
                f"{remedy}."
            )


def refuse_broken_loss(model: Any, losses: Iterable[float], dtype: torch.dtype) -> None:
    """Raise `ModelError` if a model's own losses of short texts are not finite, with the reason."""
    if all(loss == loss and abs(loss) != float("inf") for loss in losses):
        return
    refuse_broken_weights(model.named_parameters(), type(model).__name__)
    name = str(dtype).removeprefix("torch.")
    remedy = "" if dtype == torch.float32 else "; use --dtype float32" + (" or bfloat16" * (dtype == torch.float16))
    raise ModelError(
        f"the loss of {type(model).__name__} is not finite for a dozen random tokens though its weights are: {name} is "
        f"too narrow for it, or its configuration is not the one it was trained with{remedy}."
    )


def refuse_look_ahead(model: Any, ids: Tensor, tolerance: float) -> None:
    """Raise `ModelError` if predictions depend on tokens (1, t) that come after them, as those of a masked model do.

    `tolerance` is what rounding may change, in the size of the largest logit.
    """
    half = ids.shape[1] // 2
    changed = ids.clone()
    changed[:, half:] = (ids[:, half:] + 1) % int(ids.max() + 1)
    with torch.no_grad():
        first, second = (model(input_ids=one, use_cache=False).logits[0, :half].float() for one in (ids, changed))
    if (first - second).abs().max() > tolerance * first.abs().max():
        raise ModelError(
            f"{type(model).__name__} predicts tokens from those that follow them: it is not a causal language model. "
            "Give a model that writes text from left to right."
        )
