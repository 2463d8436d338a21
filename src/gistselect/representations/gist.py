"""GIST: a task subspace from the query gradients, and cosines in it (arXiv 2602.18584, section 4).

The pool's gradients are never stored. Only their coordinates in the subspaces of all targets are, which one
backward pass over the pool gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gistselect.errors import DataError
from gistselect.linalg.similarity import cosine_scores
from gistselect.linalg.subspace import Subspace, factor_gram, group_means
from gistselect.model.gradients import GradientEngine
from gistselect.model.sketch import SketchedEngine
from gistselect.types import Example


@dataclass(frozen=True, kw_only=True)
class TaskSubspace:
    """What one task's queries determine at one checkpoint; its basis `V = G' W` has `subspace.basis_weights` W."""

    subspace: Subspace
    groups: tuple[str, ...]
    target_features: NDArray[np.float64]
    """(n_group, r) mean raw query feature of each group."""


def fit(
    engine: GradientEngine | SketchedEngine,
    queries: Sequence[Example],
    groups: Sequence[str],
    *,
    rank: int | float,
    rtol: float,
) -> TaskSubspace:
    """The task subspace of `queries`, whose groups are given row by row (GIST section 4).

    Raises `DataError` naming the query whose gradient is not finite.
    """
    gram = engine.gram(queries)
    if len(bad := np.flatnonzero(~np.isfinite(np.diag(gram)))):
        raise DataError(
            f"the gradient of query {queries[bad[0]].id!r} is not finite; check its text, or use --dtype float32."
        )
    subspace = factor_gram(gram, rank=rank, rtol=rtol)
    names, target_features = group_means(subspace.query_features, list(groups))
    return TaskSubspace(subspace=subspace, groups=names, target_features=target_features)


def exact_scores(
    engine: GradientEngine,
    queries: Sequence[Example],
    groups: Sequence[str],
    sample: Sequence[Example],
    *,
    rank: int | float,
    rtol: float,
) -> NDArray[np.float64]:
    """Scores (n_sample, n_group) of a few rows without a basis, from the inner products of all gradients alone.

    With the Gram matrix of queries and sample, the sample's features are `S V = (S G') W`: nothing of size p x r is
    formed, so this is the reference for a sketch where the exact basis would not fit.
    """
    n_query = len(queries)
    gram = engine.gram([*queries, *sample])
    subspace = factor_gram(gram[:n_query, :n_query], rank=rank, rtol=rtol)
    _, target_features = group_means(subspace.query_features, list(groups))
    return cosine_scores(gram[n_query:, :n_query] @ subspace.basis_weights, target_features)


def scores(
    features: Sequence[NDArray[np.floating]],
    target_features: Sequence[NDArray[np.floating]],
    weights: NDArray[np.float64],
    captured_energy: Sequence[NDArray[np.floating]] | None = None,
) -> NDArray[np.float64]:
    """Scores (n, n_group) `sum_c w_c cos(f_c, target_c)` over checkpoints c.

    `features` holds (n, r_c) and `target_features` (n_group, r_c) for each checkpoint. With `captured_energy`,
    (n,) for each checkpoint, the cosine is scaled by its square root, which is the cosine with the full gradient.
    """
    total = np.zeros((len(features[0]), len(target_features[0])))
    for index, weight in enumerate(weights):
        cosines = cosine_scores(features[index], target_features[index])
        if captured_energy is not None:
            cosines *= np.sqrt(np.asarray(captured_energy[index], dtype=np.float64))[:, None]
        total += weight * cosines
    return total
