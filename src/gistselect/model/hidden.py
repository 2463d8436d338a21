"""What one forward pass says of each example: its mean hidden state, its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from gistselect.errors import DataError
from gistselect.model.batches import Batch, trimmed_lengths, whole_lengths
from gistselect.model.forward import Forward, example_means
from gistselect.model.updates import LoraUpdate
from gistselect.types import Example


class States:
    """A batch as the model left it; each part is computed when a collector first asks for it."""

    def __init__(self, forward: Forward, batch: Batch) -> None:
        self.batch = batch
        self._forward = forward

    @cached_property
    def hidden(self) -> Tensor:
        """Last hidden states (positions, width), at the batch's flat positions."""
        return self._forward.hidden(self.batch)

    @cached_property
    def token_losses(self) -> Tensor:
        """Loss (m,) of each label."""
        return self._losses(lambda: self.hidden)

    def adapted_losses(self, update: LoraUpdate) -> Tensor:
        """Loss (m,) of each label with an update on the model."""
        with update.on(self._forward.causal):
            return self._losses(lambda: self._forward.hidden(self.batch))

    def _losses(self, hidden: Callable[[], Tensor]) -> Tensor:
        return self._forward.token_losses(self.batch, hidden() if self._forward.head is not None else None)


class HiddenCollector:
    """One row of numbers for each example, from forward passes; `start` makes it ready for one."""

    values: Tensor
    """(n, width) on the device."""
    reads_losses = False
    """Whether it needs supervised tokens."""

    def start(self, n: int, forward: Forward) -> None:
        """A pass over n examples begins, or begins again."""
        raise NotImplementedError

    def add(self, states: States) -> None:
        """The examples of one batch."""
        raise NotImplementedError

    def result(self) -> NDArray[Any]:
        """(n, width) after a pass, in at least float32; NaN or infinity in the rows of broken examples."""
        return self.values.cpu().numpy()


class PositionWeightedMean(HiddenCollector):
    """Σ i·h_i / Σ i over all tokens i = 1 … t of a conversation, h the last hidden states (RDS+, arXiv 2503.01807)."""

    def start(self, n: int, forward: Forward) -> None:
        self.n, self.values = n, torch.empty(0, dtype=forward.precise)

    def add(self, states: States) -> None:
        batch, hidden, means = states.batch, states.hidden, []
        if not len(self.values):
            self.values = self.values.new_full((self.n, hidden.shape[1]), torch.nan, device=hidden.device)
        for start, length in zip(batch.starts.tolist(), batch.lengths.tolist(), strict=True):
            weights = torch.arange(1, length + 1, dtype=self.values.dtype, device=hidden.device)
            own = hidden[start : start + length].to(weights.dtype)
            means.append(weights @ own / (length * (length + 1) / 2))
        self.values[batch.rows] = torch.stack(means)


class ExampleLoss(HiddenCollector):
    """Mean loss (n, 1) of the supervised tokens."""

    reads_losses = True

    def start(self, n: int, forward: Forward) -> None:
        self.values = torch.full((n, 1), torch.nan, dtype=forward.precise, device=forward.device)

    def add(self, states: States) -> None:
        self.values[states.batch.rows, 0] = example_means(states.token_losses, states.batch).to(self.values.dtype)


class AdaptedLoss(HiddenCollector):
    """Mean loss (n, k) of the supervised tokens under each of k updates: one more forward pass for each."""

    reads_losses = True

    def __init__(self, updates: Sequence[LoraUpdate]) -> None:
        self._updates = updates

    def start(self, n: int, forward: Forward) -> None:
        self._updates = [update.to(forward.language_model) for update in self._updates]
        self.values = torch.full((n, len(self._updates)), torch.nan, dtype=forward.precise, device=forward.device)

    def add(self, states: States) -> None:
        for column, update in enumerate(self._updates):
            losses = example_means(states.adapted_losses(update), states.batch)
            self.values[states.batch.rows, column] = losses.to(self.values.dtype)


def collect_hidden(forward: Forward, examples: Sequence[Example], collectors: Sequence[HiddenCollector]) -> None:
    """One forward pass that feeds every collector; each then has its `result()` in the examples' order.

    Examples are read whole, whoever reads, so that what a collector gets does not depend on the others.
    Raises `DataError` if there are no examples, for tokens that the model does not embed and, where a collector reads
    losses, for an example without a supervised token; `ModelError` if one example does not fit in memory.
    """
    if not examples:
        raise DataError("there are no examples to read.")
    forward.check(examples)
    lengths = whole_lengths(examples)
    if any(collector.reads_losses for collector in collectors):
        trimmed_lengths(examples)

    def attempt() -> None:
        for collector in collectors:
            collector.start(len(examples), forward)
        with forward.running(), torch.no_grad():
            for batch in forward.batches(examples, lengths):
                _add(collectors, States(forward, batch))
            if forward.layout == "packed":
                # In a packed row NaN can spread to other examples; those that are broken run again, alone.
                broken = [~collector.values.isfinite().all(dim=1) for collector in collectors]
                for row in torch.stack(broken).any(dim=0).nonzero().flatten().tolist() if broken else []:
                    _add(collectors, States(forward, forward.single(examples, row, lengths)))

    forward.retried(int(lengths.max()), attempt, "a shorter max_length")


def _add(collectors: Sequence[HiddenCollector], states: States) -> None:
    for collector in collectors:
        collector.add(states)
