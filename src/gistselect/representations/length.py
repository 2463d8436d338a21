"""Length: a control for what longer or shorter rows teach anyhow, whatever they say.

By default random rows whose lengths are distributed as the target's queries: the importance weight of a row's length
plus Gumbel noise, whose k largest are k draws without replacement in proportion to the weights (Efraimidis & Spirakis
2006; Vieira 2014). `order=longest` and `order=shortest` take lengths as they are. A length is a number of words, so
that no tokenizer is needed. Loads no model. Cost of a row: reading its text twice (once for `longest` and `shortest`);
4 bytes stored for each group of a target, and 4 more for each draw of its queries if those are to be told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gistselect.data.words import text_of, words
from gistselect.linalg.hashing import fingerprints
from gistselect.representations.interface import Fitted, FloatArray, KeptApart, Prepared, ScoredText, TextSource
from gistselect.representations.queries import Queries
from gistselect.streams import Stream, uniforms
from gistselect.types import Example, Record

BINS_PER_DOUBLING = 2
N_BINS = 64
"""Bins of a histogram; the last holds everything from 2 ** 31.5 words on."""


class Length(ScoredText):
    """How well a row's length fits a group's queries, with chance."""

    order: Literal["matched", "longest", "shortest"] = "matched"
    """Random rows of the lengths of the queries, or the longest or the shortest rows first."""
    seed: int = Field(default=0, ge=0)
    """Seed of the noise."""

    name: ClassVar[str] = "length"
    title: ClassVar[str] = "Length"
    definition: ClassVar[str] = (
        "log importance weight of the row's length for a group's queries plus Gumbel noise (nats, higher is chosen "
        "first); with order=longest the number of words, with order=shortest its negative"
    )
    unscored: ClassVar[str] = "its score is not finite; this is a defect of gistselect"
    not_resampled: ClassVar[str] = "with order=longest and order=shortest its score is the same whatever the queries"

    @property
    def apart(self) -> KeptApart | None:
        """The lengths of other queries have other bins; longest and shortest ask none."""
        return "draws" if self.order == "matched" else None

    @property
    def prepare_inputs(self) -> dict[str, Any] | None:
        return {} if self.order == "matched" else None

    def prepare(self, sample: Sequence[Example], at: TextSource, folder: Path) -> Prepared:
        """Rows (n_bins,) of the pool in each bin."""
        of_pool = np.zeros(N_BINS)
        for records in at.shards():
            of_pool += np.bincount(_bins(_lengths(records)), minlength=N_BINS)
        return Prepared(arrays={"of_pool": of_pool})

    def fit(self, queries: Queries, at: TextSource, folder: Path, prepared: Prepared | None) -> Fitted:
        """Log importance weights (n_group, n_bins) of lengths.

        With q queries of a group, `w_b = (q_b / p_b + 1) / (q + 1)` for the share p_b of the pool in bin b: the
        queries' distribution with that of the pool beside it, as one query more. So no row is ruled out, and a group
        of a few queries is not taken for more than it says.
        """
        sizes = np.bincount(queries.group_of)
        weights = np.zeros((len(sizes), N_BINS))
        if self.order == "matched":
            assert prepared is not None
            of_pool = prepared.arrays["of_pool"]
            share = of_pool / max(of_pool.sum(), 1)
            asked = np.zeros_like(weights)
            np.add.at(asked, (queries.group_of, _bins(_lengths(queries.records))), 1)
            # A bin without a row of the pool has no weight to give.
            ratio = np.divide(asked, share, out=np.zeros_like(asked), where=share > 0)
            weights = np.log((ratio + 1) / (sizes[:, None] + 1))
        arrays = {"weights": weights, "names": queries.column_numbers}
        return Fitted(groups=queries.group_names, arrays=arrays)

    def collector(self, fitted: Fitted | None, at: TextSource) -> _Collector:
        """Scores (n, n_group) of the rows; they are their own features."""
        assert fitted is not None
        return _Collector(self, fitted.arrays["weights"], fitted.arrays["names"])


class _Collector:
    def __init__(self, length: Length, weights: FloatArray, names: NDArray[np.int64]) -> None:
        self._length, self._weights, self._names = length, weights, names

    def take(self, records: Sequence[Record]) -> NDArray[np.float64]:
        """Scores (n, n_group) of the records."""
        lengths = _lengths(records)
        if self._length.order != "matched":
            sign = 1.0 if self._length.order == "longest" else -1.0
            return np.repeat(sign * lengths[:, None], len(self._weights), axis=1)
        rows = fingerprints(f"{record.id}\0{text_of(record)}" for record in records)
        scores = self._weights[:, _bins(lengths)].T.copy()
        for column, name in enumerate(self._names.view(np.uint64).tolist()):
            draws = uniforms(rows, self._length.seed, Stream.GUMBEL, name)
            scores[:, column] -= np.log(-np.log(draws))
        return scores


def _lengths(records: Iterable[Record]) -> FloatArray:
    """(n,) words of each record."""
    return np.array([sum(1 for _ in words(text_of(record))) for record in records], dtype=np.float64)


def _bins(lengths: FloatArray) -> NDArray[np.intp]:
    """(n,) bin of each length: equal steps of its logarithm."""
    return np.minimum(BINS_PER_DOUBLING * np.log2(1 + lengths), N_BINS - 1).astype(np.intp)
