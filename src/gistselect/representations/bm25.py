"""BM25: how much of a query's wording a row shares, weighted by how rare the words are in the pool.

Robertson & Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), with the idf of Lucene, which
is never negative. Loads no model. Cost of a row: reading its text twice; 4 bytes stored for each group of a target,
and 4 for each of its queries if their draws are to be told. Use it as the rival that every dearer method has to beat.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gistselect.data.words import text_of, words
from gistselect.errors import DataError
from gistselect.representations.interface import Fitted, FloatArray, KeptApart, Prepared, ScoredText, TextSource
from gistselect.representations.queries import Queries
from gistselect.types import Record


class BM25(ScoredText):
    """Mean over a group's queries of the BM25 score of a row."""

    k1: float = Field(default=1.2, ge=0)
    """How soon a repeated word stops counting."""
    b: float = Field(default=0.75, ge=0, le=1)
    """How much long rows are held back: 0 not at all, 1 in full."""

    name: ClassVar[str] = "bm25"
    title: ClassVar[str] = "BM25"
    definition: ClassVar[str] = (
        "mean over a group's queries of the summed weights of the words that the row shares with the query (0 or more, "
        "no unit, higher is nearer)"
    )
    unscored: ClassVar[str] = "its score is not finite; check the row's text"

    @property
    def apart(self) -> KeptApart:
        """A group's score is the mean of its queries' scores; idf and mean length are the pool's."""
        return "queries"

    def fit(self, queries: Queries, at: TextSource, folder: Path, prepared: Prepared | None) -> Fitted:
        """Weights of the queries' words, from one pass over the pool's text.

        Raises `DataError` if no query has a word.
        """
        asked = [Counter(words(text_of(record))) for record in queries.records]
        terms = {term: index for index, term in enumerate(sorted(set().union(*asked)))}
        if not terms:
            raise DataError(f"no query of target {queries.target!r} has a word; bm25 cannot rank for it.")
        holding = np.zeros(len(terms), dtype=np.int64)
        n_rows = n_words = 0
        for records in at.shards():
            for record in records:
                found = Counter(words(text_of(record)))
                n_rows, n_words = n_rows + 1, n_words + found.total()
                for term in found.keys() & terms.keys():
                    holding[terms[term]] += 1
        idf = np.log1p((n_rows - holding + 0.5) / (holding + 0.5))
        weights = np.zeros((len(queries.group_names), len(terms)))
        sizes = Counter(queries.groups)
        for row, group, counts in zip(queries.group_of, queries.groups, asked, strict=True):
            for term, count in counts.items():
                weights[row, terms[term]] += count * idf[terms[term]] / sizes[group]
        vocabulary = np.frombuffer("\n".join(terms).encode(), dtype=np.uint8)
        facts = {"rows": n_rows, "mean_length": n_words / max(n_rows, 1)}
        return Fitted(groups=queries.group_names, arrays={"weights": weights, "vocabulary": vocabulary}, facts=facts)

    def collector(self, fitted: Fitted | None, at: TextSource) -> _Collector:
        """Scores (n, n_group) of the rows; they are their own features."""
        assert fitted is not None
        vocabulary = fitted.arrays["vocabulary"].tobytes().decode().split("\n")
        terms = {term: index for index, term in enumerate(vocabulary)}
        return _Collector(
            terms=terms,
            weights=fitted.arrays["weights"],
            k1=self.k1,
            b=self.b,
            mean_length=fitted.facts["mean_length"],
        )


class _Collector:
    def __init__(
        self, *, terms: Mapping[str, int], weights: FloatArray, k1: float, b: float, mean_length: float
    ) -> None:
        self._terms, self._weights = terms, weights
        self._k1, self._b, self._mean_length = k1, b, mean_length

    def take(self, records: Sequence[Record]) -> NDArray[np.float64]:
        """Scores (n, n_group) of the records."""
        scores = np.zeros((len(records), len(self._weights)))
        for row, record in enumerate(records):
            counts = Counter(words(text_of(record)))
            length = counts.total()
            shared = [term for term in counts if term in self._terms]
            if not shared:
                continue
            # Summed in the order of the vocabulary, so that no order of words decides a last digit.
            columns = np.sort([self._terms[term] for term in shared])
            by_column = {self._terms[term]: counts[term] for term in shared}
            frequency = np.array([by_column[column] for column in columns.tolist()], dtype=np.float64)
            damped = self._k1 * (1 - self._b + self._b * length / self._mean_length)
            scores[row] = self._weights[:, columns] @ (frequency * (self._k1 + 1) / (frequency + damped))
        return scores
