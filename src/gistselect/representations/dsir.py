"""DSIR: how much likelier a row's words and pairs of words are among the queries than in the pool (arXiv 2302.03169).

A text is its counts of hashed single words and pairs of neighbours; the score is the log likelihood ratio of two
multinomials over the buckets, fitted on a group's queries and on the pool. Two choices of the published code
(`HashedNgramDSIR`) are kept as defaults: the sum is **not** divided by the row's length, and a share that is zero is
taken as 1e-8, without further smoothing. With a few hundred queries most buckets are empty, so
every word that no query has costs about ten nats and short rows win: `smoothing=1` (a count added to each bucket) and
`normalise=true` (the mean over the row's n-grams) are the remedies. Rows are drawn in proportion to their weights:
`noise` adds Gumbel noise, whose k largest are k draws without replacement. Ours alone are the words (those of BM25,
without punctuation; the published code has NLTK's) and the hash. The pool's multinomial is fitted on all of its rows.

Loads no model. Cost of a row: reading its text twice; 4 bytes stored for each group of a target, and 4 more for each
draw of its queries if those are to be told. Use it for large targets, a few thousand queries or more, and where the
selection should be spread as the target is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gistselect.data.words import text_of, words
from gistselect.errors import DataError
from gistselect.linalg.hashing import fingerprints, mixed
from gistselect.representations.interface import Fitted, FloatArray, Prepared, ScoredText, TextSource
from gistselect.representations.queries import Apart, Queries
from gistselect.streams import Stream, uniforms
from gistselect.types import Example, Record

NEVER_ZERO = 1e-8
"""Added to both shares before their logarithms, as published."""


class DSIR(ScoredText):
    """Log importance weight of a row's hashed n-grams."""

    buckets: int = Field(default=10_000, ge=2)
    """Buckets that words and pairs of words are hashed to."""
    smoothing: float = Field(default=0.0, ge=0)
    """Count added to each bucket of the queries; 0 as published, 1 for small targets."""
    normalise: bool = False
    """Mean over the row's n-grams instead of the published sum, so that length does not decide."""
    noise: bool = True
    """Draw rows in proportion to their weights, as published; otherwise the largest weights come first."""
    seed: int = Field(default=0, ge=0)
    """Seed of the noise."""

    name: ClassVar[str] = "dsir"
    title: ClassVar[str] = "DSIR"
    definition: ClassVar[str] = (
        "log importance weight of the row's hashed words and pairs of words for a group's queries against the pool "
        "(nats, higher is nearer), with Gumbel noise unless noise=false"
    )
    unscored: ClassVar[str] = "its score is not finite; check the row's text"

    @property
    def prepare_inputs(self) -> dict[str, Any]:
        return {"buckets": self.buckets}

    def prepare(self, sample: Sequence[Example], at: TextSource, folder: Path) -> Prepared:
        """N-grams (n_buckets,) of the pool in each bucket."""
        of_pool = np.zeros(self.buckets)
        for records in at.shards():
            for record in records:
                of_pool += np.bincount(self.ngrams(record), minlength=self.buckets)
        return Prepared(arrays={"of_pool": of_pool})

    def fit(self, queries: Queries, at: TextSource, folder: Path, prepared: Prepared | None) -> Fitted:
        """Log ratios (n_group, n_buckets).

        Raises `DataError` naming a group whose queries have no word.
        """
        of_queries = np.zeros((len(queries.group_names), self.buckets))
        for row, record in zip(queries.group_of, queries.records, strict=True):
            of_queries[row] += np.bincount(self.ngrams(record), minlength=self.buckets)
        n_words = of_queries.sum(axis=1)
        if len(empty := np.flatnonzero(n_words == 0)) and not isinstance(queries, Apart):
            group = queries.group_names[empty[0]]
            where = f"group {group!r} of target {queries.target!r}" if group else f"target {queries.target!r}"
            raise DataError(f"no query of {where} has a word; dsir cannot rank for it.")
        assert prepared is not None
        of_pool = prepared.arrays["of_pool"]
        of_queries += self.smoothing
        n_words = of_queries.sum(axis=1, keepdims=True)
        shares = np.divide(of_queries, n_words, out=np.full(of_queries.shape, np.nan), where=n_words > 0)
        pool_shares = of_pool / max(of_pool.sum(), 1)
        arrays = {
            "log_ratio": np.log(shares + NEVER_ZERO) - np.log(pool_shares + NEVER_ZERO),
            "names": queries.column_numbers,
        }
        return Fitted(groups=queries.group_names, arrays=arrays)

    def ngrams(self, record: Record) -> NDArray[np.intp]:
        """(m,) bucket of every word and every pair of neighbouring words."""
        singles = np.fromiter(map(_hash, words(text_of(record))), dtype=np.uint64)
        pairs = mixed(singles[:-1], singles[1:])
        return (np.concatenate([singles, pairs]) % np.uint64(self.buckets)).astype(np.intp)

    def collector(self, fitted: Fitted | None, at: TextSource) -> _Collector:
        """Scores (n, n_group) of the rows; they are their own features."""
        assert fitted is not None
        return _Collector(self, fitted.arrays["log_ratio"], fitted.arrays["names"])


class _Collector:
    def __init__(self, dsir: DSIR, log_ratio: FloatArray, names: NDArray[np.int64]) -> None:
        self._dsir, self._log_ratio, self._names = dsir, log_ratio, names

    def take(self, records: Sequence[Record]) -> NDArray[np.float64]:
        """Scores (n, n_group) of the records; a row without a word weighs 1, whose logarithm is 0."""
        scores = np.zeros((len(records), len(self._log_ratio)))
        for row, record in enumerate(records):
            # Counted by bucket, so that the order of the words decides no last digit.
            buckets, counts = np.unique(self._dsir.ngrams(record), return_counts=True)
            if len(buckets):
                scores[row] = self._log_ratio[:, buckets] @ counts / (counts.sum() if self._dsir.normalise else 1)
        if self._dsir.noise:
            rows = fingerprints(f"{record.id}\0{text_of(record)}" for record in records)
            for column, name in enumerate(self._names.view(np.uint64).tolist()):
                scores[:, column] -= np.log(-np.log(uniforms(rows, self._dsir.seed, Stream.GUMBEL, name)))
        return scores


@lru_cache(maxsize=1 << 18)
def _hash(word: str) -> int:
    return int(fingerprints([word])[0])
