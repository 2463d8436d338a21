"""The task subspace against a dense SVD, and what must not matter to it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from gistselect.errors import ConfigError, DataError
from gistselect.linalg.subspace import factor_gram, group_means, rank_for_variance

RTOL = 1e-3


def gradients(n_query: int = 12, p: int = 400, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(7)
    return scale * rng.standard_normal((n_query, p)) * np.geomspace(1, 0.05, p)


def projector(G: np.ndarray, rank: int | float) -> np.ndarray:
    V = G.T @ factor_gram(G @ G.T, rank=rank, rtol=RTOL).basis_weights
    return V @ V.T


@pytest.mark.parametrize("rank", [1, 5, 12])
@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e5])
def test_projector_equals_dense_svd(rank: int, scale: float) -> None:
    G = gradients(scale=scale)
    _, _, vt = np.linalg.svd(G, full_matrices=False)
    assert_allclose(projector(G, rank), vt[:rank].T @ vt[:rank], atol=1e-9)


def test_basis_is_orthonormal_and_features_are_projections() -> None:
    G = gradients()
    subspace = factor_gram(G @ G.T, rank=0.9, rtol=RTOL)
    V = G.T @ subspace.basis_weights
    assert_allclose(V.T @ V, np.eye(subspace.rank), atol=1e-10)
    assert_allclose(subspace.query_features, G @ V, atol=1e-10)


@pytest.mark.parametrize("extra", ["duplicate", "zero", "collinear"])
def test_redundant_queries_change_nothing(extra: str) -> None:
    G = gradients(n_query=6)
    row = {"duplicate": G[2], "zero": np.zeros_like(G[0]), "collinear": 0.5 * G[0] - 2 * G[1]}[extra]
    more = np.vstack([G, row])
    subspace = factor_gram(more @ more.T, rank=7, rtol=RTOL)
    assert subspace.rank == 6
    assert_allclose(projector(more, 7), projector(G, 6), atol=1e-9)


def test_rank_from_variance_is_the_smallest_that_reaches_it() -> None:
    values = np.sqrt([8.0, 1.0, 0.6, 0.4])
    assert [rank_for_variance(values, share) for share in (0.5, 0.8, 0.81, 0.96, 1.0)] == [1, 1, 2, 3, 4]


def test_rank_is_no_larger_than_the_number_of_directions() -> None:
    G = gradients(n_query=4)
    assert factor_gram(G @ G.T, rank=100, rtol=RTOL).rank == 4


@pytest.mark.parametrize("rank", [0, -1, 0.0, 1.5])
def test_impossible_rank(rank: int | float) -> None:
    with pytest.raises(ConfigError, match="rank="):
        factor_gram(np.eye(3), rank=rank, rtol=RTOL)


def test_all_zero_and_non_finite_queries_stop() -> None:
    with pytest.raises(DataError, match="warm-up"):
        factor_gram(np.zeros((3, 3)), rank=2, rtol=RTOL)
    gram = np.eye(3)
    gram[1, :] = gram[:, 1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        factor_gram(gram, rank=2, rtol=RTOL)


def test_group_means_keep_raw_lengths_and_uneven_groups() -> None:
    features = np.array([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    names, means = group_means(features, ["b", "a", "b"])
    assert names == ("b", "a")
    assert_allclose(means, [[2.0, 0.0], [0.0, 1.0]])
