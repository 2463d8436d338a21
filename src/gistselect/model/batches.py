"""Examples to batches: length-sorted under a token budget, padded or packed, labels only where supervised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gistselect.errors import DataError
from gistselect.types import Example

Layout = Literal["packed", "padded", "single"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples laid out in one rectangle of tokens; flat positions count row by row through it."""

    rows: NDArray[np.int64]
    """(n,) positions of the examples in the sequence they came from."""
    input_ids: NDArray[np.int64]
    """(n_rows, width) token ids; n_rows is 1 if packed, n otherwise."""
    position_ids: NDArray[np.int64] | None
    """(1, width) positions that restart with every packed example."""
    starts: NDArray[np.int64]
    """(n,) flat position of the first token of each example."""
    lengths: NDArray[np.int64]
    """(n,) tokens of each example."""
    predictors: NDArray[np.int64]
    """(m,) flat positions whose output predicts a supervised token."""
    labels: NDArray[np.int64]
    """(m,) the supervised tokens."""
    owners: NDArray[np.int64]
    """(m,) which example of the batch each label belongs to."""
    n_supervised: NDArray[np.int64]
    """(n,) supervised tokens of each example."""

    @property
    def packed(self) -> bool:
        return self.position_ids is not None


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
    return Batch(
        rows=rows,
        input_ids=flat.reshape(-1, width),
        position_ids=np.concatenate([np.arange(size) for size in sizes])[None] if packed else None,
        starts=starts,
        lengths=sizes,
        predictors=np.concatenate(predictors),
        labels=np.concatenate(labels).astype(np.int64),
        owners=np.repeat(np.arange(len(rows)), counts),
        n_supervised=counts,
    )
