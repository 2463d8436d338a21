"""The bootstrap over queries: had other queries been drawn from the same groups, what would the scores have been?

Efron, "Bootstrap Methods" (1979), within strata. A score that is an inner product of a row with a mixture of queries
needs nothing but another mixture, so that all draws share what is read of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gistselect.linalg.similarity import units

FloatArray = NDArray[np.float64]


def drawn_counts(
    groups: NDArray[np.integer], n_draws: int, generators: Sequence[np.random.Generator]
) -> NDArray[np.intp]:
    """How often each query is drawn (n_draws, n_query), with replacement from its own group and as often as that is
    large; `groups` (n_query,) counts from 0. A group has a generator of its own, and its first draws are the same
    however many follow."""
    counts = np.zeros((n_draws, len(groups)), dtype=np.intp)
    for group, rng in enumerate(generators):
        members = np.flatnonzero(groups == group)
        drawn = members[rng.integers(len(members), size=(n_draws, len(members)))]
        for draw, queries in enumerate(drawn):
            counts[draw] += np.bincount(queries, minlength=len(groups))
    return counts


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What stands for each group in each draw: a mixture of its queries, with which rows have inner products."""

    queries: FloatArray
    """(n_query, d)"""
    groups: NDArray[np.integer]
    """(n_query,) group of each query, counting from 0."""
    shares: FloatArray
    """(n_draws, n_query) weight of each query in the mixture of its group."""

    def of(self, draws: slice) -> Mixture:
        """These draws alone."""
        return replace(self, shares=self.shares[draws])

    @cached_property
    def _members(self) -> list[NDArray[np.intp]]:
        return [np.flatnonzero(self.groups == group) for group in range(int(self.groups.max()) + 1)]

    @cached_property
    def _through_queries(self) -> bool:
        """Whether a row is multiplied with the queries first, and those products are mixed: where that is less work
        than its products with the mixtures of all draws."""
        (n_draws, n_query), d = self.shares.shape, self.queries.shape[1]
        return n_query * (d + n_draws) < len(self._members) * n_draws * d

    @cached_property
    def _by_group(self) -> FloatArray:
        """(d, n_query) the queries, group after group."""
        return np.ascontiguousarray(self.queries[np.concatenate(self._members)].T)

    @cached_property
    def _factors(self) -> list[FloatArray]:
        """Of each group what `prepared` is multiplied with: (m, n_draws) for its m queries, or (d, n_draws)."""
        parts = [np.ascontiguousarray(self.shares[:, members].T) for members in self._members]
        if self._through_queries:
            return parts
        return [self.queries[members].T @ part for members, part in zip(self._members, parts, strict=True)]

    def prepared(self, rows: FloatArray) -> list[FloatArray]:
        """What `scores` needs of rows (n, d), group by group: computed once for all draws."""
        if self._through_queries:
            return np.split(rows @ self._by_group, np.cumsum([len(one) for one in self._members])[:-1], axis=1)
        return [rows] * len(self._members)

    def scores(self, prepared: Sequence[FloatArray], group: int) -> FloatArray:
        """(n, n_draws) scores of the rows for one group."""
        return prepared[group] @ self._factors[group]


def cosine_of_means(queries: NDArray[np.floating], groups: NDArray[np.integer], counts: NDArray[np.intp]) -> Mixture:
    """Cosines with the mean of the queries (n_query, d) drawn, as GIST has them; 0 where they cancel out."""
    queries = np.asarray(queries, dtype=np.float64)
    shares = np.zeros(counts.shape)
    for group in range(int(groups.max()) + 1):
        members = groups == group
        part = counts[:, members]
        lengths = np.linalg.norm(part @ queries[members], axis=1, keepdims=True)
        shares[:, members] = np.divide(part, lengths, out=np.zeros(part.shape), where=lengths > 0)
    return Mixture(queries=queries, groups=groups, shares=shares)


def mean_of_cosines(queries: NDArray[np.floating], groups: NDArray[np.integer], counts: NDArray[np.intp]) -> Mixture:
    """Means of the cosines with the queries (n_query, d) drawn, as LESS has them."""
    return Mixture(queries=units(queries), groups=groups, shares=counts / np.bincount(groups)[groups])
