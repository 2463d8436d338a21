"""A model whose layers lie on several devices gives the numbers of one, and nothing meets what lies elsewhere.

The devices are pretended (`pretended.py`): there is no card, but what a card would refuse raises. Placement itself is
accelerate's, as in a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gistselect.errors import ConfigError, ModelError
from gistselect.linalg import products
from gistselect.model import attention, batches
from gistselect.model.adapters import adapter_parameters
from gistselect.model.curvature import MomentSink
from gistselect.model.directions import DirectionSink
from gistselect.model.engine_config import EngineConfig, ProjectionConfig, SketchConfig
from gistselect.model.forward import Forward
from gistselect.model.gradients import GradientEngine
from gistselect.model.hidden import AdaptedLoss, ExampleLoss, PositionWeightedMean, collect_hidden
from gistselect.model.loading import LanguageModel, ModelConfig, load_model
from gistselect.model.sinks import DenseSink, ProjectionSink, SketchSink
from gistselect.model.updates import LoraUpdate
from gistselect.run.local import devices, environment
from pretended import WrongDeviceError, pretended_devices
from tiny_models import FAMILIES, adapted_model, bare_model, examples

ROWS = examples((7, 21, 12, 5, 30, 9, 21, 14, 3, 26, 17, 8))
KINDS = ("cpu", "cuda")
"""Kinds of device: each has arithmetic of its own, for instance in how packed rows are cut up."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A kind of device to pretend; of a GPU, what asks the driver is left out."""
    monkeypatch.setattr(products, "MIXED_DEVICES", set())
    monkeypatch.setattr(attention, "_flash_runs", lambda query: False)
    monkeypatch.setattr(batches.Batch, "pinned", lambda batch: batch)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    with pretended_devices():
        yield request.param


def spread(family: str, kind: str, cards: int) -> LanguageModel:
    """A model with an adapter on so many devices: embeddings on the first, its two layers, and the head on the last."""
    from accelerate import dispatch_model

    language_model = bare_model(FAMILIES[family])
    causal: Any = language_model.model
    (layers,) = [name for name, module in causal.named_modules() if isinstance(module, torch.nn.ModuleList)]
    decoder = layers.rpartition(".")[0]
    names = [f"{decoder}.{name}" for name, _ in causal.get_submodule(decoder).named_children()]
    head = next(name for name, module in causal.named_modules() if module is causal.get_output_embeddings())
    tied = causal.get_output_embeddings().weight is causal.get_input_embeddings().weight
    last = f"{kind}:{cards - 1}"
    places = dict.fromkeys([*names, head], last)
    del places[layers]
    embedding = next(name for name, module in causal.named_modules() if module is causal.get_input_embeddings())
    places |= {embedding: f"{kind}:0", f"{layers}.0": f"{kind}:0", f"{layers}.1": f"{kind}:{min(1, cards - 1)}"}
    if tied:
        places[head] = f"{kind}:0"
    placed = dispatch_model(causal, device_map=places, force_hooks=True)
    return adapted_model(
        LanguageModel(model=placed, tokenizer=None, device=torch.device(f"{kind}:0"), dtype=torch.float32)
    )


def everything(adapted: LanguageModel, **options: Any) -> dict[str, np.ndarray]:
    """What every part of the engine makes of the rows."""
    with GradientEngine(adapted, EngineConfig(**{"batch_tokens": 60, **options})) as engine:
        basis = engine.basis(ROWS[:7], np.random.default_rng(0).standard_normal((7, 5)))
        shaped = {block.name: torch.full(block.shape, 0.5) for block in engine.parameters}
        moments = SimpleNamespace(exp_avg=shaped, exp_avg_sq=shaped, step=1)
        sinks = {
            "coordinates": ProjectionSink(basis),
            "sketches": SketchSink(SketchConfig(dimension=3, seed=0)),
            "directions": DirectionSink(ProjectionConfig(dimension=16, seed=0), moments),
            "gradients": DenseSink(),
        }
        measured = engine.collect(ROWS, list(sinks.values()))
        found = {name: sink.result() for name, sink in sinks.items()} | vars(measured)
        found |= {"gram": engine.gram(ROWS), "basis": basis.dense().cpu().numpy()}
        curvature = MomentSink(range(len(engine.parameters)))
        engine.stream(ROWS, [curvature])
        found["moments"] = np.concatenate([one.flatten().cpu().numpy() for p in curvature.values.values() for one in p])
        found["mode"] = np.array(engine.mode)
    return found


def hidden(adapted: LanguageModel) -> dict[str, np.ndarray]:
    """What forward passes over the model without its adapter find, and one that has it on for a moment."""
    weights = {
        name.removeprefix("base_model.model."): value for name, value in adapter_parameters(adapted.model).items()
    }
    layers = [name.removesuffix(".lora_A.default.weight") for name in weights if ".lora_A." in name]
    update = LoraUpdate(
        factors={
            layer: (
                weights[f"{layer}.lora_A.default.weight"].cpu(),
                2 * weights[f"{layer}.lora_B.default.weight"].cpu(),
            )
            for layer in layers
        }
    )
    adapted.model.unload()
    bare = LanguageModel(model=adapted.causal, tokenizer=None, device=adapted.device, dtype=adapted.dtype)
    forward = Forward(bare, batch_tokens=60)
    collectors = {"mean": PositionWeightedMean(), "loss": ExampleLoss(), "adapted": AdaptedLoss([update])}
    collect_hidden(forward, ROWS, list(collectors.values()))
    return {name: one.result() for name, one in collectors.items()} | {"losses": forward.losses(ROWS)}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-neox"])
def test_the_numbers_of_one_card_to_the_bit(kind: str, family: str) -> None:
    """Of three: embeddings and a layer, a layer, the head; tied embeddings and head stay together."""
    expected = everything(spread(family, kind, 1))
    adapted = spread(family, kind, 3)
    places = {str(value.device) for value in adapter_parameters(adapted.model).values()}
    assert places == {f"{kind}:0", f"{kind}:1"}
    assert_same(everything(adapted), expected)
    assert_same(hidden(adapted), hidden(spread(family, kind, 1)))


@pytest.mark.parametrize(
    "options",
    [{"packing": "padded"}, pytest.param({"packing": "single", "capture": "autograd"}, marks=pytest.mark.slow)],
    ids=str,
)
def test_other_layouts_too(options: dict[str, Any], kind: str) -> None:
    assert_same(everything(spread("llama", kind, 3), **options), everything(spread("llama", kind, 1), **options))


def test_a_basis_larger_than_the_cards_is_split(kind: str) -> None:
    """The first card has half of the parameters, and with them the numbers of bases that lie on one."""
    adapted = spread("llama", kind, 2)
    with GradientEngine(adapted) as engine:
        basis = engine.basis(ROWS[:7], np.random.default_rng(0).standard_normal((7, 5)))
        whole = engine.features(ROWS, basis).features
        p_bytes = 4 * engine.site.n_parameters / 1e9
    for waits in (2.0, 3 * p_bytes):
        config = EngineConfig(basis_memory_gb=1.01 * p_bytes, gradient_memory_gb=waits)
        with GradientEngine(adapted, config) as engine:
            assert engine.site.basis_bytes == pytest.approx(2 * 1.01e9 * p_bytes)
            assert engine.site.piece_bytes == pytest.approx(1.01e9 * p_bytes)
            found = engine.features(ROWS, basis).features
        np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6 * np.abs(whole).max())


def test_an_operation_on_two_devices_is_an_error(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests rest on: a batch that stays on the first card fails at the second one's first layer."""
    adapted = spread("llama", kind, 2)
    monkeypatch.setattr(batches.Batch, "on", lambda batch, device: batch)
    with pytest.raises(WrongDeviceError, match=f"{kind}:1"):
        everything(adapted)


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs of a GB each, as far as torch is asked; weights are loaded in this thread, which pretends."""
    import transformers.modeling_utils

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10**9, 10**9))
    monkeypatch.setattr(transformers.modeling_utils, "caching_allocator_warmup", lambda *_, **__: None)
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")


@pytest.mark.usefixtures("two_cards")
def test_a_model_is_loaded_onto_its_cards(tiny_model: Path) -> None:
    config = ModelConfig(path=str(tiny_model), device="cuda", dtype="float32", cards=2)
    with pretended_devices():
        loaded = load_model(config)
        assert {str(value.device) for value in loaded.model.parameters()} == {"cuda:0", "cuda:1"}
        assert loaded.device == torch.device("cuda:0")
        tokens = torch.arange(5)[None]
        logits = loaded.causal(input_ids=tokens.to("cuda:0")).logits.detach().cpu().numpy()
    plain = load_model(config.model_copy(update={"device": "cpu", "cards": 1}))
    np.testing.assert_array_equal(logits, plain.causal(input_ids=tokens).logits.detach().numpy())


@pytest.mark.usefixtures("two_cards")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cards": 3}, "torch sees 2 GPUs"),
        ({"device": "cuda:1"}, "torch sees 2 GPUs"),
        ({"device": "cpu"}, "only GPUs hold parts of a model"),
        ({"quantization": "8bit"}, "a quantized model is held by one card"),
    ],
)
def test_what_cannot_be_spread_is_refused(tiny_model: Path, change: dict[str, Any], message: str) -> None:
    config = ModelConfig(**{"path": str(tiny_model), "device": "cuda", "cards": 2, **change})
    with pytest.raises(ModelError, match=message):
        load_model(config)


@pytest.mark.usefixtures("two_cards")
def test_cards_that_are_too_small_together_are_named(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**5, 10**9))
    with pytest.raises(ModelError, match=r"free on cuda:0, cuda:1 .*use more --cards"):
        load_model(ModelConfig(path=str(tiny_model), device="cuda", dtype="float32", cards=2))


def test_workers_with_several_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices("0,1,2,3", cuda=True, cards=2) == ["cuda:0+1", "cuda:2+3"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    assert devices("auto", cuda=True, cards=2) == ["cuda:0+1", "cuda:2+3"]
    for names in ("0,1,2", "cpu:2", "0"):
        with pytest.raises(ConfigError, match="name a multiple"):
            devices(names, cuda=True, cards=2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment("cuda:2+3", 2)["CUDA_VISIBLE_DEVICES"] == "2,3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert environment("cuda:1+2", 1)["CUDA_VISIBLE_DEVICES"] == "5,6"
    with pytest.raises(ConfigError, match="shows 3 devices"):
        environment("cuda:2+3", 2)
