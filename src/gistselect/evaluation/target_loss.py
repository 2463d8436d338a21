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
    """Mean cross-entropy of the supervised tokens of each example, in the order given: the model's own loss.

    Batches are sorted by length, and only supervised positions meet the vocabulary where that gives the model's loss.
    Raises `DataError` for an example without a supervised token or a loss that is not finite, `ModelError` if the
    model's own loss cannot be reproduced.
    """
    from gistselect.model.forward import Forward

    n_done = 0

    def done(n: int) -> None:
        nonlocal n_done
        # A pass that ran out of memory starts again, and reports its first batches twice.
        n_done = min(n_done + n, len(examples))
        if progress:
            progress(n_done, len(examples), "target loss")

    losses = Forward(language_model).losses(examples, done)
    if len(bad := np.flatnonzero(~np.isfinite(losses))):
        raise DataError(f"the loss of {len(bad)} items is not finite, e.g. {examples[bad[0]].id!r}; use float32.")
    return [
        ItemLoss(id=example.id, group=group, loss=float(loss), n_supervised=example.n_supervised)
        for example, group, loss in zip(examples, groups, losses, strict=True)
    ]
