"""Optimizer steps and their random projections, against torch.optim.Adam, dense matrices and a dense LESS."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gistselect.errors import ArtifactMismatchError, ConfigError, DataError
from gistselect.linalg import projection as module
from gistselect.linalg.preconditioner import adam_direction, less_direction
from gistselect.linalg.projection import DenseSigns, Projection, SparseSigns
from gistselect.model import sinks
from gistselect.model.basis import Basis
from gistselect.model.directions import DirectionSink
from gistselect.model.engine_config import AdamConfig, EngineConfig, ProjectionConfig, SketchConfig
from gistselect.model.gradients import GradientEngine
from gistselect.model.sinks import ProjectionSink, SketchSink
from gistselect.types import Example
from reference_errors import assert_like_reference
from tiny_models import FAMILIES, examples, language_model, reference

CONSTANTS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
ROWS = examples((7, 21, 12, 5, 30, 9, 21, 14, 3, 26, 17, 8))
WIDE = ProjectionConfig(dimension=96, seed=3)


# --- the step -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 7, 4000])
def test_the_adam_direction_is_the_next_step_of_torch(step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    gradients = torch.randn(4, 50, generator=generator, dtype=torch.float64)
    exp_avg = 0.1 * torch.randn(50, generator=generator, dtype=torch.float64)
    exp_avg_sq = torch.rand(50, generator=generator, dtype=torch.float64) * 1e-3
    found = adam_direction(gradients, exp_avg, exp_avg_sq, step=step, **CONSTANTS)
    for gradient, direction in zip(gradients, found, strict=True):
        parameter = torch.nn.Parameter(torch.zeros(50, dtype=torch.float64))
        optimizer = torch.optim.Adam([parameter], lr=0.5, betas=(0.9, 0.999), eps=1e-8)
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": exp_avg.clone(),
            "exp_avg_sq": exp_avg_sq.clone(),
        }
        parameter.grad = gradient
        optimizer.step()
        what = "Adam's step", "torch.optim.Adam, float64"
        assert_like_reference(*what, direction, -parameter.detach() / 0.5, rtol=1e-10, atol=1e-12)


def test_the_published_direction_is_another() -> None:
    gradients, exp_avg = torch.tensor([[2e-4, 0.0]]), torch.tensor([1e-4, 1e-4])
    exp_avg_sq = torch.tensor([1e-8, 4e-8])
    found = less_direction(gradients, exp_avg, exp_avg_sq, **CONSTANTS)
    first = 0.9 * 1e-4 + 0.1 * 2e-4, 0.9 * 1e-4
    second = 0.999 * 1e-8 + 0.001 * 4e-8, 0.999 * 4e-8
    expected = [m / (v + 1e-8) ** 0.5 for m, v in zip(first, second, strict=True)]
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-5)
    adam = adam_direction(gradients, exp_avg, exp_avg_sq, step=100, **CONSTANTS)
    assert (found / adam - 1).abs().min() > 0.1


# --- the projection -----------------------------------------------------------------------------------------


def matrix(projection: Projection, n_parameters: int, key: int, step: int) -> torch.Tensor:
    """P (n_parameters, dimension), `step` rows at a time."""
    total, unit = torch.zeros(n_parameters, projection.dimension), torch.eye(n_parameters)
    for first in range(0, n_parameters, step):
        projection.add(total, unit[:, first : first + step], first, key)
    return total


@pytest.mark.parametrize("projection", [DenseSigns(dimension=70), SparseSigns(dimension=70, nonzeros=7)])
def test_a_projection_does_not_depend_on_how_it_is_made_and_keeps_inner_products(projection: Projection) -> None:
    whole = matrix(projection, 400, 5, 400)
    for step in (1, 3, 128):
        torch.testing.assert_close(matrix(projection, 400, 5, step), whole, rtol=0, atol=1e-7)
    torch.testing.assert_close(whole.square().sum(dim=1), torch.ones(400))
    assert not torch.equal(matrix(projection, 400, 6, 400), whole)
    first, second = np.random.default_rng(0).standard_normal((2, 400)) / 20
    products = []
    for key in range(60):
        one = matrix(projection, 400, 10**18 * key + 1, 400).double().numpy()
        products.append((first @ one) @ (second @ one))
    spread = np.std(products) / np.sqrt(len(products))
    assert abs(np.mean(products) - first @ second) < 4 * spread
    assert 0.5 < np.std(products) / np.sqrt(1 / 70) < 2


def test_dense_signs_are_signs_and_sparse_ones_one_a_range() -> None:
    dense = matrix(DenseSigns(dimension=100), 300, 1, 300) * 10
    assert set(dense.unique().tolist()) == {-1.0, 1.0}
    assert abs(dense.mean()) < 0.03
    off_diagonal = (dense.T @ dense / 300).fill_diagonal_(0)
    assert off_diagonal.square().mean().sqrt() * 300**0.5 == pytest.approx(1, abs=0.1)
    sparse = matrix(SparseSigns(dimension=100, nonzeros=4), 300, 1, 300)
    assert (sparse.view(300, 4, 25) != 0).sum(dim=2).unique().tolist() == [1]
    used = (sparse != 0).sum(dim=0)
    assert used.min() > 0
    assert used.max() < 40
    with pytest.raises(ConfigError, match="3 nonzeros do not divide"):
        SparseSigns(dimension=100, nonzeros=3)


# --- the sink -----------------------------------------------------------------------------------------------


def moments_for(engine: GradientEngine, scale: float = 1e-2) -> SimpleNamespace:
    """As a training saves them, in another order than the engine's."""
    generator = torch.Generator().manual_seed(0)
    blocks = engine.parameters[::-1]
    return SimpleNamespace(
        exp_avg={block.name: scale * torch.randn(block.shape, generator=generator) for block in blocks},
        exp_avg_sq={block.name: scale**2 * torch.rand(block.shape, generator=generator) for block in blocks},
        step=12,
    )


def projected(engine: GradientEngine, dense: NDArray[np.floating], config: ProjectionConfig) -> NDArray[np.floating]:
    """Rows (n, p) through the sink's projection, which a sink without moments shows for the unit vectors."""
    sink = DirectionSink(config)
    sink.start(dense.shape[1], engine.site)
    rows, offset = torch.arange(dense.shape[1]), 0
    sink.begin(rows)
    for index, block in enumerate(engine.parameters):
        unit = torch.zeros(len(rows), block.size)
        unit[offset : offset + block.size] = torch.eye(block.size)
        sink.take(index, unit, rows)
        offset += block.size
    return dense @ sink.result().astype(np.float64)


@pytest.mark.parametrize("direction", ["less", "adam"])
@pytest.mark.parametrize("config", [WIDE, ProjectionConfig(dimension=96, nonzeros=8, seed=3)], ids=["dense", "sparse"])
def test_the_sink_equals_a_dense_less(config: ProjectionConfig, direction: str) -> None:
    adapted, _, gradients = reference("llama")
    engine = GradientEngine(adapted)
    moments = moments_for(engine)
    pool = DirectionSink(config, moments, AdamConfig.model_validate({"direction": direction}))
    query = DirectionSink(config)
    engine.collect(examples(), [pool, query])

    flat = [
        np.concatenate([kept[block.name].double().numpy().ravel() for block in engine.parameters])
        for kept in (moments.exp_avg, moments.exp_avg_sq)
    ]
    first, second = 0.9 * flat[0] + 0.1 * gradients, 0.999 * flat[1] + 0.001 * gradients**2
    if direction == "less":
        dense = first / np.sqrt(second + 1e-8)
    else:
        dense = first / (1 - 0.9**13) / (np.sqrt(second / (1 - 0.999**13)) + 1e-8)
    for found, expected in ((pool.result(), dense), (query.result(), gradients)):
        expected = projected(engine, expected, config)
        error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert error.max() < 1e-4
    cosines = (pool.result() @ pool.result()[0]) / np.linalg.norm(pool.result(), axis=1)
    exact = dense @ dense[0] / np.linalg.norm(dense, axis=1)
    np.testing.assert_allclose(cosines / cosines[0], exact / exact[0], atol=0.4)


@pytest.mark.parametrize("nonzeros", [None, 8])
def test_batches_packing_waiting_and_pieces_do_not_matter(
    monkeypatch: pytest.MonkeyPatch, nonzeros: int | None
) -> None:
    adapted, *_ = reference("llama")
    config = ProjectionConfig(dimension=96, nonzeros=nonzeros, seed=3)
    row_bytes = 1e-9 * 4 * sum(block.size for block in GradientEngine(adapted).parameters)
    found = []
    for packing, batch_tokens, held, pieces in [
        ("packed", 10_000, 100, 1 << 14),
        ("packed", 40, 100, 50),
        ("padded", 60, 1.01, 301),
        ("single", 60, 5.01, 128),
    ]:
        monkeypatch.setitem(module.MADE_BYTES, "cpu", 4 * config.dimension * pieces)
        monkeypatch.setattr(module, "SPARSE_ROWS", pieces)
        options = {"packing": packing, "batch_tokens": batch_tokens, "gradient_memory_gb": held * row_bytes}
        engine = GradientEngine(adapted, EngineConfig.model_validate(options))
        sink = DirectionSink(config, moments_for(engine))
        engine.collect(ROWS, [sink])
        found.append(sink.result())
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-4, atol=1e-4 * np.abs(found[0]).max())


@pytest.mark.parametrize(("held_rows", "segment"), [(1, 64), (5, 64), (11, 4)])
def test_beside_other_sinks_it_gets_what_it_gets_alone(
    monkeypatch: pytest.MonkeyPatch, held_rows: int, segment: int
) -> None:
    """Eleven wait for the projection of directions, in segments of at most four for those in a basis."""
    monkeypatch.setattr(sinks, "HELD_ROWS", segment)
    adapted, *_ = reference("llama")
    row_bytes = 1e-9 * 4 * sum(block.size for block in GradientEngine(adapted).parameters)
    engine = GradientEngine(adapted, EngineConfig(batch_tokens=60, gradient_memory_gb=1.01 * held_rows * row_bytes))
    rows = ROWS * 2
    basis = engine.basis(ROWS, np.random.default_rng(0).standard_normal((len(ROWS), 4)))
    together = [
        ProjectionSink(basis),
        DirectionSink(WIDE, moments_for(engine)),
        SketchSink(SketchConfig(dimension=3, seed=0)),
        DirectionSink(WIDE),
        ProjectionSink(Basis.concatenate([basis, basis])),
    ]
    engine.collect(rows, together)
    for sink in together:
        found = sink.result()
        engine.collect(rows, [sink])
        np.testing.assert_array_equal(sink.result(), found)


def test_what_has_no_gradient_is_no_momentum() -> None:
    adapted = language_model(FAMILIES["llama"])
    for name, parameter in adapted.model.named_parameters():
        if ".lora_" in name:
            parameter.data.zero_()
    engine = GradientEngine(adapted)
    sink = DirectionSink(WIDE, moments_for(engine))
    measured = engine.collect(ROWS, [sink])
    assert not measured.gradient_norm.any()
    assert not sink.result().any()
    unsupervised = Example(id="empty", input_ids=ROWS[0].input_ids, supervised=ROWS[0].supervised & False)
    with pytest.raises(DataError, match="'empty'"):
        engine.collect([unsupervised], [sink])


def test_moments_of_another_adapter_are_refused_by_name() -> None:
    engine = GradientEngine(reference("llama")[0])
    name = engine.parameters[3].name
    for change, message in (
        (lambda kept: kept.pop(name), rf"{name}.* no moments exp_avg_sq"),
        (lambda kept: kept.update({name: torch.zeros(2, 2)}), rf"{name}.*\(2, 2\) moments exp_avg_sq"),
        (lambda kept: kept.update({"another": torch.zeros(2, 2)}), "'another'"),
    ):
        moments = moments_for(engine)
        change(moments.exp_avg_sq)
        with pytest.raises(ArtifactMismatchError, match=message):
            engine.collect(ROWS, [DirectionSink(WIDE, moments)])
