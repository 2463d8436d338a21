"""The last layer's feed-forward network, computed only where a label will read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from gistselect.model.batches import Batch
from gistselect.model.capture import lora_layers, replaced_forward


class LastFeedForward:
    """Nothing attends to the last layer's output, so its prompt positions feed no loss and need no arithmetic.

    Attention before it still runs everywhere: its keys and values are read by later tokens. The positions left out
    are zero instead, which no label's predictor sees.
    """

    def __init__(self, mlp: Any) -> None:
        self.mlp = mlp
        self.batch: Batch | None = None
        """The batch at hand; set before each forward pass."""

    @classmethod
    def of(cls, model: Any) -> LastFeedForward | None:
        """The feed-forward network of the last decoder layer, or None if there is none by the usual name, or
        if it is adapted: its gradients are then taken per token."""
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        mlp = getattr(layers[-1], "mlp", None) if layers else None
        return None if mlp is None or next(lora_layers(mlp), None) else cls(mlp)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within this context the network leaves out what no label reads; after it as before."""
        compute = self.mlp.forward

        def forward(hidden: Tensor) -> Tensor:
            assert self.batch is not None
            flat = hidden.flatten(0, 1)
            outputs = compute(flat[self.batch.predictors][None])[0]
            return flat.new_zeros(flat.shape).index_copy(0, self.batch.predictors, outputs).view_as(hidden)

        with replaced_forward(self.mlp, forward):
            yield
