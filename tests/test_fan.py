"""Several sinks in one pass get what each would get alone, to the bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from gistselect.errors import ArtifactMismatchError, ModelError
from gistselect.model.basis import Basis
from gistselect.model.batches import trimmed_lengths
from gistselect.model.engine_config import EngineConfig, SketchConfig
from gistselect.model.gradients import GradientEngine
from gistselect.model.sinks import Collector, DenseSink, ProjectionSink, SketchSink
from tiny_models import FAMILIES, examples, language_model, looped, reference

ROWS = examples((7, 21, 12, 5, 30, 9, 21, 14, 3, 26, 17, 8))


def bases(engine: GradientEngine) -> list[Basis]:
    rng = np.random.default_rng(0)
    return [engine.basis(ROWS[:7], rng.standard_normal((7, rank))) for rank in (2, 5, 3)]


def sinks(engine: GradientEngine) -> list[Collector]:
    return [
        *(ProjectionSink(basis) for basis in bases(engine)),
        SketchSink(SketchConfig(dimension=3, seed=0)),
        SketchSink(SketchConfig(dimension=5, seed=1)),
        DenseSink(),
    ]


@pytest.mark.parametrize("held_rows", [1, 5, 64])
@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_sinks_in_one_pass_get_what_each_gets_alone(packing: str, held_rows: int) -> None:
    adapted, *_ = reference("llama")
    memory = 1.01e-9 * held_rows * 4 * sum(block.size for block in GradientEngine(adapted).parameters)
    engine = GradientEngine(adapted, EngineConfig(packing=packing, batch_tokens=60, gradient_memory_gb=memory))
    together = sinks(engine)
    assert engine.site.held_rows == held_rows
    measured = engine.collect(ROWS, together)
    for sink in together:
        found = sink.result()
        alone = engine.collect(ROWS, [sink])
        np.testing.assert_array_equal(sink.result(), found)
        for name, values in vars(measured).items():
            np.testing.assert_array_equal(vars(alone)[name], values)


def test_what_is_measured_is_the_same_with_no_sink_at_all() -> None:
    adapted = language_model(FAMILIES["qwen2"])
    losses, gradients = looped(adapted, ROWS)
    measured = GradientEngine(adapted).collect(ROWS, [])
    np.testing.assert_allclose(measured.loss, losses, rtol=1e-5)
    np.testing.assert_allclose(measured.gradient_norm, np.linalg.norm(gradients, axis=1), rtol=1e-5)
    assert measured.n_supervised.tolist() == [row.n_supervised for row in ROWS]


def test_products_are_formed_once_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, *_ = reference("llama")
    engine = GradientEngine(adapted, EngineConfig(batch_tokens=10_000))
    formed: list[torch.Size] = []
    original = torch.mm

    def counting(left: torch.Tensor, right: torch.Tensor, **kwargs: object) -> torch.Tensor:
        if kwargs:
            formed.append(left.shape)
        return original(left, right, **kwargs)

    together = [*(ProjectionSink(basis) for basis in bases(engine)), DenseSink()]
    monkeypatch.setattr(torch, "mm", counting)
    engine.collect(ROWS, together)
    assert len(formed) == len(ROWS) * len(engine.parameters)


def test_every_sink_starts_again_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, *_ = reference("llama")
    engine = GradientEngine(adapted, EngineConfig(batch_tokens=60))
    expected = [*sinks(engine)]
    engine.collect(ROWS, expected)
    engine.forward.batch_tokens, token_losses = 240, engine.forward.token_losses
    calls: list[int] = []

    def failing(batch):
        calls.append(batch.input_ids.numel())
        if batch.input_ids.numel() > 60 or len(calls) == 5:
            raise torch.OutOfMemoryError("simulated")
        return token_losses(batch)

    monkeypatch.setattr(engine.forward, "token_losses", failing)
    found = sinks(engine)
    calls.clear()
    engine.collect(ROWS, found)
    assert engine.forward.batch_tokens <= 60
    for one, other in zip(found, expected, strict=True):
        scale = np.abs(other.result()).max()
        np.testing.assert_allclose(one.result(), other.result(), rtol=1e-5, atol=1e-5 * scale)


def test_a_broken_example_spoils_no_other_in_any_sink() -> None:
    adapted, rows = language_model(FAMILIES["llama"]), examples()
    for row in rows:
        np.putmask(row.input_ids, row.input_ids == 95, 0)
    rows[2].input_ids[:] = 95
    engine = GradientEngine(adapted, EngineConfig(packing="packed"))
    together = [ProjectionSink(engine.basis(rows[:2], np.eye(2))), SketchSink(SketchConfig(dimension=3, seed=0))]
    adapted.model.get_input_embeddings().weight.data[95] = float("nan")
    measured = engine.collect(rows, together)
    whole = [row != 2 for row in range(len(rows))]
    for values in (measured.gradient_norm[:, None], measured.loss[:, None], *(sink.result() for sink in together)):
        assert np.isfinite(values).all(axis=1).tolist() == whole


def test_a_sink_of_another_adapter_is_refused() -> None:
    engine = GradientEngine(reference("llama")[0])
    basis = engine.basis(ROWS, np.eye(len(ROWS)))
    with pytest.raises(ArtifactMismatchError, match="another adapter"):
        GradientEngine(reference("gpt-neox")[0]).collect(ROWS, [DenseSink(), ProjectionSink(basis)])


@pytest.mark.parametrize("waits", [True, False], ids=["gradients wait", "several passes"])
@pytest.mark.parametrize("columns", [1.01, 2.5, 4, 100])
def test_a_basis_larger_than_its_budget_gives_the_same_features(
    monkeypatch: pytest.MonkeyPatch, columns: float, waits: bool
) -> None:
    adapted, *_ = reference("llama")
    plain = GradientEngine(adapted)
    expected = [ProjectionSink(basis) for basis in bases(plain)]
    whole = plain.collect(ROWS, expected)
    p_bytes = 4 * sum(block.size for block in plain.parameters) / 1e9
    told: list[int] = []
    memory = {"basis_memory_gb": columns * p_bytes, "gradient_memory_gb": 2.0 if waits else 3 * p_bytes}
    engine = GradientEngine(adapted, EngineConfig.model_validate(memory), told.append)
    sent: list[int] = []
    original = Basis.columns
    monkeypatch.setattr(
        Basis, "columns", lambda basis, part: sent.append(part.stop - part.start) or original(basis, part)
    )
    found = [*(ProjectionSink(basis) for basis in bases(plain)), SketchSink(SketchConfig(dimension=3, seed=0))]
    told.clear()
    measured = engine.collect(ROWS, found)
    n_passes, rest = divmod(sum(told), int(trimmed_lengths(ROWS).sum()))
    assert rest == 0
    assert (n_passes == 1) == (waits or columns >= 10)
    assert n_passes >= 10 / columns or waits
    assert sum(sent) in (0, 10)
    for one, other in zip(found, expected, strict=False):
        np.testing.assert_allclose(one.result(), other.result(), rtol=1e-5, atol=1e-6 * np.abs(other.result()).max())
    np.testing.assert_allclose(measured.gradient_norm, whole.gradient_norm, rtol=1e-5)


def test_a_budget_for_not_even_one_direction_names_the_remedy() -> None:
    adapted, *_ = reference("llama")
    engine = GradientEngine(adapted, EngineConfig(basis_memory_gb=1e-9))
    with pytest.raises(ModelError, match="basis_memory_gb allows 1e-09; raise it"):
        engine.collect(ROWS, [ProjectionSink(bases(engine)[0])])


def test_a_basis_that_does_not_fit_beside_the_model_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(basis: Basis, devices: Sequence[torch.device]) -> Basis:
        raise torch.OutOfMemoryError("simulated")

    engine = GradientEngine(reference("llama")[0])
    basis = bases(engine)[0]
    monkeypatch.setattr(Basis, "to", full)
    with pytest.raises(ModelError, match=r"set a smaller basis_memory_gb"):
        engine.collect(ROWS, [ProjectionSink(basis)])
