"""Cosines, checkpoint weights and the null level against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from gistselect.errors import ConfigError, DataError
from gistselect.linalg.similarity import (
    checkpoint_weights,
    cosine_scores,
    null_products,
    null_scores,
    overlap,
    share_in_span,
    spearman,
)


def test_cosines_equal_the_definition() -> None:
    rng = np.random.default_rng(0)
    pool, targets = rng.standard_normal((9, 5)), rng.standard_normal((3, 5))
    expected = [[p @ t / np.sqrt((p @ p) * (t @ t)) for t in targets] for p in pool]
    assert_allclose(cosine_scores(pool, targets), expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e12])
def test_cosines_do_not_depend_on_scale(scale: float) -> None:
    rng = np.random.default_rng(0)
    pool, targets = rng.standard_normal((9, 5)), rng.standard_normal((3, 5))
    assert_allclose(cosine_scores(scale * pool, targets), cosine_scores(pool, targets), rtol=1e-12)


def test_row_outside_the_subspace_is_orthogonal() -> None:
    assert_allclose(cosine_scores(np.zeros((1, 2)), np.eye(2)), [[0, 0]])


def test_nan_and_cancelled_targets_stop() -> None:
    with pytest.raises(DataError, match="non-finite"):
        cosine_scores(np.array([[np.nan, 1.0]]), np.eye(2))
    with pytest.raises(DataError, match="length zero"):
        cosine_scores(np.eye(2), np.zeros((1, 2)))


def test_checkpoint_weights() -> None:
    assert_allclose(checkpoint_weights([1e-5, 3e-5], 2), [0.25, 0.75])
    assert_allclose(checkpoint_weights(None, 4), 0.25)
    for weights in ([1.0], [0.0, 0.0], [1.0, -1.0], [np.nan, 1.0]):
        with pytest.raises(ConfigError, match="weights"):
            checkpoint_weights(weights, 2)


def test_null_level_in_high_dimension_shrinks_like_the_square_root() -> None:
    rng = np.random.default_rng(0)
    spread = [null_scores([np.eye(1, r)], np.ones(1), rng).std() for r in (10, 1000)]
    assert_allclose(spread, [10**-0.5, 1000**-0.5], rtol=0.05)


@pytest.mark.parametrize("shape", [(3, 40), (5, 3), (1, 2)])
def test_null_products_are_those_of_random_unit_directions(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal(shape)
    vectors[-1] = vectors[0]
    drawn = rng.standard_normal((100_000, shape[1]))
    expected = drawn / np.linalg.norm(drawn, axis=1, keepdims=True) @ vectors.T
    found = null_products(vectors, rng, 100_000)
    assert_allclose(np.cov(found.T), np.cov(expected.T), atol=0.03 * expected.var())
    for level in (0.05, 0.5, 0.99):
        assert_allclose(
            np.quantile(found.max(1), level), np.quantile(expected.max(1), level), atol=0.03 * expected.std()
        )


def test_share_in_span_equals_a_projection_and_collinear_directions_change_nothing() -> None:
    rng = np.random.default_rng(0)
    vectors, directions = rng.standard_normal((9, 12)), 1e-4 * rng.standard_normal((12, 3))
    expected = ((vectors @ np.linalg.qr(directions)[0]) ** 2).sum(axis=1) / (vectors**2).sum(axis=1)
    for V in (directions, np.column_stack([directions, 3 * directions[:, 0], directions @ [1, 2, 3]])):
        shares = share_in_span(vectors @ V, V.T @ V, np.linalg.norm(vectors, axis=1))
        assert_allclose(shares, expected, rtol=1e-6)


def test_spearman_and_overlap() -> None:
    first = np.array([3.0, 1.0, 2.0, 2.0, 9.0])
    assert spearman(first, np.exp(first)) == pytest.approx(1)
    assert spearman(first, -first) == pytest.approx(-1)
    # Ranks 4 1 2.5 2.5 5 and 1 2 3 4 5: sum of products of deviations 3.5 over sqrt(9.5 * 10).
    assert spearman(first, np.arange(5.0)) == pytest.approx(3.5 / np.sqrt(9.5 * 10))
    assert overlap(first, -first, 2) == 0
    assert overlap(first, first + 1, 2) == 1
