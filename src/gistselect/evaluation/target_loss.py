"""The loss of reference answers under a model: what fine-tuning on a selection is to lower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gistselect.errors import DataError
from gistselect.types import Example

if TYPE_CHECKING:
    from gistselect.model.loading import LanguageModel

BATCH_TOKENS = 8192
"""Tokens in one forward pass of the target loss, padding included."""

Progress = Callable[[int, int, str], None]
"""Called with the items done, the items in all, and what is being measured."""


@dataclass(frozen=True, kw_only=True)
class ItemLoss:
    """Mean loss of an item's supervised tokens, in nats."""

    id: str
    group: str
    loss: float
    n_supervised: int


def target_losses(
    language_model: LanguageModel,
    examples: Sequence[Example],
    groups: Sequence[str],
    progress: Progress | None = None,
) -> list[ItemLoss]:
    """Mean cross-entropy of the supervised tokens of each example, in the order given.

    Batches are sorted by length, and only supervised positions meet the vocabulary.
    Raises `DataError` for an example without a supervised token or a loss that is not finite.
    """
    import torch

    from gistselect.model.batches import build_batch, plan_batches, trimmed_lengths
    from gistselect.model.loss import OutputHead, label_losses

    model = language_model.model
    head = OutputHead.of(language_model.causal)
    losses = np.empty(len(examples))
    lengths = trimmed_lengths(examples)
    was_training, done = model.training, 0
    model.eval()
    try:
        with torch.no_grad():
            for rows in plan_batches(lengths, BATCH_TOKENS, "padded"):
                batch = build_batch(examples, rows, lengths, "padded", language_model.tokenizer.pad_token_id or 0)
                token_losses = label_losses(language_model.causal, head, batch.to(language_model.device))
                totals = np.bincount(batch.owners.numpy(), weights=token_losses.double().cpu().numpy())
                losses[rows] = totals / batch.n_supervised.numpy()
                done += len(rows)
                if progress:
                    progress(done, len(examples), "target loss")
    finally:
        model.train(was_training)
    if len(bad := np.flatnonzero(~np.isfinite(losses))):
        raise DataError(f"the loss of {len(bad)} items is not finite, e.g. {examples[bad[0]].id!r}; use float32.")
    return [
        ItemLoss(id=example.id, group=group, loss=float(loss), n_supervised=example.n_supervised)
        for example, group, loss in zip(examples, groups, losses, strict=True)
    ]
