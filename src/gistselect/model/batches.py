"""Examples to batches: length-sorted under a token budget, padded or packed, labels only where supervised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gistselect.errors import DataError
from gistselect.types import Example

Layout = Literal["packed", "padded", "single"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples laid out in one rectangle of tokens; flat positions count row by row through it.

    Arrays are read by the host and stay there; tensors are read by the device, which `to` sends them to.
    """

    lengths: NDArray[np.int64]
    """(n,) tokens of each example."""
    starts: NDArray[np.int64]
    """(n,) flat position of the first token of each example."""
    rows: Tensor
    """(n,) positions of the examples in the sequence they came from."""
    input_ids: Tensor
    """(n_rows, width) token ids; n_rows is 1 if packed, n otherwise."""
    position_ids: Tensor | None
    """(1, width) positions that restart with every packed example."""
    ends: Tensor
    """(n + 1,) cumulative lengths from 0, int32: where packed examples end."""
    places: Tensor | None
    """(width,) flat position of each packed token if the examples were padded to `longest`."""
    predictors: Tensor
    """(m,) flat positions whose output predicts a supervised token."""
    labels: Tensor
    """(m,) the supervised tokens."""
    owners: Tensor
    """(m,) which example of the batch each label belongs to."""
    n_supervised: Tensor
    """(n,) supervised tokens of each example."""

    @property
    def packed(self) -> bool:
        return self.position_ids is not None

    @cached_property
    def longest(self) -> int:
        return int(self.lengths.max())

    def on(self, device: torch.device) -> Batch:
        """This batch as a layer on that device reads it; sent there once."""
        if device == self.rows.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = self.to(device)
        return self._elsewhere[device]

    @cached_property
    def _elsewhere(self) -> dict[torch.device, Batch]:
        return {}

    def to(self, device: torch.device) -> Batch:
        """This batch with its tensors on the device; from pinned memory without waiting for them."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """This batch with its tensors in page-locked memory."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Any) -> Batch:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return replace(self, **{name: change(value) for name, value in values if isinstance(value, Tensor)})


def trimmed_lengths(examples: Sequence[Example]) -> NDArray[np.int64]:
    """(n,) tokens that the model has to read: everything before the last supervised token.

    Raises `DataError` if an example has no supervised token after its first.
    """
    lengths = np.empty(len(examples), dtype=np.int64)
    for row, example in enumerate(examples):
        labels = np.flatnonzero(example.supervised[1:])
        if not len(labels):
            raise DataError(f"example {example.id!r} has no supervised token, hence no gradient; quarantine it first.")
        lengths[row] = labels[-1] + 1
    return lengths


def whole_lengths(examples: Sequence[Example]) -> NDArray[np.int64]:
    """(n,) all tokens of each example."""
    return np.array([example.n_tokens for example in examples], dtype=np.int64)


def plan_batches(lengths: NDArray[np.int64], batch_tokens: int, layout: Layout) -> Iterator[NDArray[np.int64]]:
    """Rows of each batch, longest first, so that running out of memory shows at once.

    A batch holds as many rows as `batch_tokens` allows, padding included, and at least one.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        if layout == "single":
            count = 1
        elif layout == "padded":
            count = batch_tokens // int(lengths[order[start]])
        else:
            totals = np.cumsum(lengths[order[start : start + batch_tokens]])
            count = int(np.searchsorted(totals, batch_tokens, side="right"))
        yield order[start : start + max(count, 1)]
        start += max(count, 1)


def build_batch(
    examples: Sequence[Example],
    rows: NDArray[np.int64],
    lengths: NDArray[np.int64],
    layout: Layout,
    pad_id: int,
) -> Batch:
    """Lay out the examples at `rows`, cut to `lengths`: one packed row, or one each, padded on the right."""
    sizes = lengths[rows]
    packed = layout == "packed"
    width = int(sizes.sum() if packed else sizes.max())
    starts = np.cumsum(sizes) - sizes if packed else np.arange(len(rows)) * width
    flat = np.full(width if packed else width * len(rows), pad_id, dtype=np.int64)
    predictors = []
    for row, start, size in zip(rows, starts, sizes, strict=True):
        flat[start : start + size] = examples[row].input_ids[:size]
        predictors.append(start + np.flatnonzero(examples[row].supervised[1 : size + 1]))
    counts = np.array([len(positions) for positions in predictors], dtype=np.int64)
    labels = [examples[row].input_ids[1:][at - start] for row, start, at in zip(rows, starts, predictors, strict=True)]
    longest = int(sizes.max())
    tensors = {
        "rows": rows,
        "input_ids": flat.reshape(-1, width),
        "position_ids": np.concatenate([np.arange(size) for size in sizes])[None] if packed else None,
        "ends": np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32),
        "places": np.concatenate([row * longest + np.arange(size) for row, size in enumerate(sizes)])
        if packed
        else None,
        "predictors": np.concatenate(predictors),
        "labels": np.concatenate(labels).astype(np.int64),
        "owners": np.repeat(np.arange(len(rows)), counts),
        "n_supervised": counts,
    }
    on_host: dict[str, Any] = {
        name: value if value is None else torch.from_numpy(value) for name, value in tensors.items()
    }
    return Batch(lengths=sizes, starts=starts, **on_host)
