"""The engine against a loop of single-example backward passes, and against everything that must not matter."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Literal
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from gistselect.errors import ArtifactMismatchError, DataError, ModelError
from gistselect.linalg import products
from gistselect.model import attention, capture, factors, forward
from gistselect.model.adapters import prepare_for_gradients
from gistselect.model.batches import build_batch, trimmed_lengths
from gistselect.model.directions import DirectionSink
from gistselect.model.engine_config import EngineConfig, ProjectionConfig, SketchConfig
from gistselect.model.gradients import Basis, GradientEngine
from gistselect.model.loading import LanguageModel, ModelConfig, load_model
from gistselect.model.loss import OutputHead
from gistselect.model.sinks import BasisSink, DenseSink, GramSink, NormSink, ProjectionSink, SketchSink
from gistselect.types import Example
from reference_errors import assert_like_reference, note
from tiny_models import (
    FAMILIES,
    GROUPED,
    VOCABULARY,
    adapted_model,
    bare_model,
    examples,
    language_model,
    looped,
    reference,
    relative_error,
)

MODES: dict[str, EngineConfig] = {
    "padded": EngineConfig(packing="padded"),
    "packed": EngineConfig(packing="packed"),
    "single": EngineConfig(packing="single"),
    "padded-checkpointed": EngineConfig(packing="padded", activation_checkpointing=True),
    "packed-checkpointed": EngineConfig(packing="packed", activation_checkpointing=True),
    "autograd": EngineConfig(capture="autograd"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_a_loop_of_backward_passes(family: str, mode: str) -> None:
    adapted, losses, expected = reference(family)
    engine = GradientEngine(adapted, MODES[mode])
    error = relative_error(engine.gradients(examples()), expected)
    assert note("Gradient of an example", "loop of single backward passes", error) < 1e-5
    assert mode.split("-")[0] in engine.mode
    assert "labels only" in engine.mode

    weights = np.random.default_rng(0).standard_normal((len(expected), 3))
    basis = engine.basis(examples(), weights)
    assert relative_error(basis.dense().numpy().T, (expected.T @ weights).T) < 1e-5
    np.testing.assert_allclose(
        engine.gram(examples()), expected @ expected.T, rtol=1e-5, atol=1e-5 * np.square(expected).sum(1).max()
    )
    found = engine.features(examples(), basis)
    assert relative_error(found.features, expected @ (expected.T @ weights)) < 1e-5
    np.testing.assert_allclose(found.loss, losses, rtol=1e-5)
    np.testing.assert_allclose(found.gradient_norm, np.linalg.norm(expected, axis=1), rtol=1e-5)
    assert found.n_supervised.tolist() == [row.n_supervised for row in examples()]


@pytest.mark.parametrize("way", ["positions", "mask"])
@pytest.mark.parametrize("family", ["llama", "gemma", "gpt-neox"])
def test_the_other_ways_to_keep_packed_examples_apart(monkeypatch: pytest.MonkeyPatch, family: str, way: str) -> None:
    adapted, _, expected = reference(family)
    monkeypatch.setattr(forward, "candidates", lambda packing, attention: [("packed", way)])
    engine = GradientEngine(adapted)
    assert f"packed rows by {way}" in engine.mode
    assert relative_error(engine.gradients(examples()), expected) < 1e-5


def varlen_reference(q, k, v, ends_q, ends_k, max_q, max_k, *, scale, window_size) -> torch.Tensor:
    """Variable-length attention by its definition: (t, heads, d) queries, fewer key heads, one example at a time."""
    assert ends_q.dtype == torch.int32
    assert max_q == max_k == int(ends_q.diff().max())
    left, right = window_size
    assert right == 0
    outputs = []
    for start, end in zip(ends_q[:-1].tolist(), ends_k[1:].tolist(), strict=True):
        one_k, one_v = (side[start:end].repeat_interleave(q.shape[1] // k.shape[1], dim=1) for side in (k, v))
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        visible = (distance >= 0) & ((distance <= left) if left >= 0 else torch.tensor(True))
        scores = torch.einsum("qhd,khd->hqk", q[start:end], one_k) * (scale or q.shape[2] ** -0.5)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, float("-inf")).softmax(dim=-1), one_v))
    return torch.cat(outputs)


def varlen_reference_that_asks(*args, enable_gqa: bool = False, **kwargs) -> torch.Tensor:
    """As torch 2.12 and later: grouped heads have to be allowed."""
    assert enable_gqa
    return varlen_reference(*args, **kwargs)


@pytest.mark.parametrize("attend", [varlen_reference, varlen_reference_that_asks])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt-neox"])
def test_what_the_variable_length_kernel_is_asked_for(monkeypatch: pytest.MonkeyPatch, family: str, attend) -> None:
    """Our half of the CUDA path: the kernel itself is replaced by its definition."""
    adapted, _, expected = reference(family)
    kernel = create_autospec(attend, side_effect=attend)
    monkeypatch.setattr(attention, "_flash_runs", lambda query: True)
    monkeypatch.setattr(attention.varlen, "varlen_attn", kernel)
    engine = GradientEngine(adapted, EngineConfig(packing="packed"))
    assert "by segments" in engine.mode
    assert relative_error(engine.gradients(examples()), expected) < 1e-5
    assert kernel.called


def test_outer_products_by_one_batched_product() -> None:
    """What CUDA runs for a packed row, against a loop over the examples."""
    rows = examples()
    batch = build_batch(rows, np.arange(len(rows)), trimmed_lengths(rows), "packed", 0)
    left, right = torch.randn(int(batch.ends[-1]), 3), torch.randn(int(batch.ends[-1]), 4)
    found = torch.bmm(factors.unpacked(left, batch).transpose(1, 2), factors.unpacked(right, batch))
    for one, start, length in zip(found, batch.starts, batch.lengths, strict=True):
        torch.testing.assert_close(one, left[start : start + length].T @ right[start : start + length])


@pytest.mark.parametrize("packing", ["padded", "packed"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_update_beside_the_base_weight(monkeypatch: pytest.MonkeyPatch, packing: str, checkpointing: bool) -> None:
    """What a quantized or bfloat16 base runs, here in float32."""
    monkeypatch.setattr(capture, "_is_mergeable", lambda layer: False)
    adapted, _, expected = reference("qwen2")
    engine = GradientEngine(adapted, EngineConfig(packing=packing, activation_checkpointing=checkpointing))
    assert relative_error(engine.gradients(examples()), expected) < 1e-5


@pytest.mark.parametrize("packing", ["padded", "packed"])
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_base_weights(
    tiny_model: Path, tmp_path: Path, quantization: Literal["8bit", "4bit"], packing: str
) -> None:
    """Wider than the other models: four bits go in blocks of 64 weights."""
    pytest.importorskip("bitsandbytes")
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    wide = LlamaConfig(**{**GROUPED, "hidden_size": 128, "intermediate_size": 128, "vocab_size": 320})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path)
    bare = load_model(ModelConfig(path=str(tmp_path), quantization=quantization, device="cpu", dtype="float32"))
    adapted = adapted_model(bare)
    losses, expected = looped(adapted, examples())
    engine = GradientEngine(adapted, EngineConfig(packing=packing))
    assert type(adapted.causal.model.layers[0].mlp.up_proj).__module__.startswith("bitsandbytes")
    assert packing in engine.mode
    assert "hooks on plain LoRA" in engine.mode
    assert relative_error(engine.gradients(examples()), expected) < 1e-5
    np.testing.assert_allclose(engine.features(examples(), engine.basis(examples(), np.eye(7))).loss, losses, rtol=1e-5)


def test_a_four_bit_layer_that_was_repacked_for_inference_is_refused(tiny_model: Path) -> None:
    """As bitsandbytes leaves it on some CPUs after one forward pass in evaluation mode; stood for by its marks."""
    bare = load_model(ModelConfig(path=str(tiny_model), device="cpu"))
    layer = bare.causal.model.layers[0].mlp.up_proj
    layer.support_avx512bf16_for_cpu = True
    layer.weight.quant_state = SimpleNamespace(packing_format_for_cpu=False)
    prepare_for_gradients(bare)
    assert not layer.support_avx512bf16_for_cpu
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ModelError, match=r"mlp\.up_proj' was repacked"):
        prepare_for_gradients(bare)


def test_the_number_of_gradients_held_does_not_matter() -> None:
    adapted, *_ = reference("llama")
    engine = GradientEngine(adapted, EngineConfig(batch_tokens=30))
    basis = engine.basis(examples(), np.eye(7))
    held = engine.features(examples(), basis)
    engine.config = EngineConfig(gradient_memory_gb=1e-9)
    at_once = engine.features(examples(), basis)
    np.testing.assert_allclose(held.features, at_once.features, rtol=1e-5, atol=1e-5 * held.features.max())
    np.testing.assert_array_equal(held.gradient_norm, at_once.gradient_norm)


@pytest.mark.parametrize(
    "adapter",
    [
        {"rslora": True},
        {"target_modules": ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj")},
        {"dropout": 0.5},
    ],
    ids=["rslora", "mlp", "dropout"],
)
def test_other_plain_adapters(adapter: dict[str, object]) -> None:
    adapted = language_model(FAMILIES["llama"], **adapter)
    engine = GradientEngine(adapted, EngineConfig(capture="hooks"))
    assert relative_error(engine.gradients(examples()), looped(adapted, examples())[1]) < 1e-5


@pytest.mark.parametrize("adapter", [{"dora": True}, {"target_modules": ("q_proj", "lm_head")}], ids=["dora", "head"])
def test_what_hooks_cannot_do_is_done_another_way_and_said(adapter: dict[str, object]) -> None:
    adapted = language_model(FAMILIES["llama"], **adapter)
    engine = GradientEngine(adapted)
    assert ("autograd" in engine.mode) == ("dora" in adapter)
    assert ("model's own head" in engine.mode) == ("target_modules" in adapter)
    assert relative_error(engine.gradients(examples()), looped(adapted, examples())[1]) < 1e-5
    if "dora" in adapter:
        with pytest.raises(ModelError, match="DoraLinearVariant"):
            GradientEngine(adapted, EngineConfig(capture="hooks"))


def test_a_float32_adapter_on_a_bfloat16_model_is_read_in_the_models_format() -> None:
    narrow, mixed = (language_model(FAMILIES["llama"], torch.bfloat16) for _ in range(2))
    for parameter in mixed.model.parameters():
        if parameter.dim() == 2 and min(parameter.shape) == 4:
            parameter.data = parameter.data.float()
    found = GradientEngine(mixed).gradients(examples())
    np.testing.assert_array_equal(found, GradientEngine(narrow).gradients(examples()))


def float64_losses(adapted: LanguageModel, rows: Sequence[Example]) -> np.ndarray:
    """The model's own labels argument would round the logits to float32."""
    losses = []
    for row in rows:
        ids = torch.tensor(row.input_ids.astype(np.int64))
        logits = adapted.model(input_ids=ids[None]).logits[0, :-1]
        supervised = torch.tensor(row.supervised)[1:]
        losses.append(torch.nn.functional.cross_entropy(logits[supervised], ids[1:][supervised]).item())
    return np.array(losses)


def test_central_differences_in_float64() -> None:
    """GPT-NeoX, because the other families round to float32 inside their norms."""
    adapted = language_model(FAMILIES["gpt-neox"], torch.float64)
    rows = examples((9, 14))
    engine = GradientEngine(adapted, EngineConfig(packing="packed"))
    gradients = engine.gradients(rows)
    weights = [parameter for name, parameter in adapted.model.named_parameters() if "lora_" in name]
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]
    losses, step = [], 1e-5
    for sign in (1, -2):
        for weight, direction in zip(weights, directions, strict=True):
            weight.data += sign * step * direction
        losses.append(float64_losses(adapted, rows))
    along = gradients @ torch.cat([direction.flatten() for direction in directions]).numpy()
    differences = (losses[0] - losses[1]) / (2 * step)
    what = "Gradient of an example (float64)", "central differences"
    assert_like_reference(*what, along, differences, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_never_waits_for_its_device_nor_mixes_devices(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of CUDA on the meta device, which holds no values: whatever asks for one, or mixes devices, raises."""
    monkeypatch.setattr(attention, "_flash_runs", lambda query: query.is_meta)
    monkeypatch.setattr(products, "MIXED_DEVICES", {"meta"})
    monkeypatch.setattr(GradientEngine, "_repeat_broken", lambda *_: None)  # looks once, when all is done
    adapted = language_model(FAMILIES[family])
    adapted.model.to(torch.bfloat16)
    narrow = dataclasses.replace(adapted, dtype=torch.bfloat16)
    engine = GradientEngine(narrow, EngineConfig(packing="packed", batch_tokens=40))
    device = torch.device("meta")
    adapted.model.to(device)
    engine.device, engine.forward.device, engine.forward.head = device, device, OutputHead.of(narrow.causal)
    engine._devices = (device,) * len(engine.parameters)
    rows, blocks, every = examples(), engine.parameters, range(len(engine.parameters))
    p_bytes = 4 * sum(block.size for block in blocks) / 1e9
    columns = tuple(torch.empty(block.size, 5, dtype=torch.bfloat16, device=device) for block in blocks)
    basis = Basis(names=tuple(block.name for block in blocks), blocks=columns)
    weights = torch.empty(len(rows), 3, device=device)
    sketch = SketchConfig(dimension=3, seed=0)
    shaped = {block.name: torch.empty(block.shape) for block in blocks}
    moments = SimpleNamespace(exp_avg=shaped, exp_avg_sq=shaped, step=1)
    passes = [
        (1.0, [GramSink(every)]),
        (1.0, [BasisSink(weights, every)]),
        *((1.01 * held * p_bytes, [ProjectionSink(basis)]) for held in (1, 3, 64)),
        (1.0, [SketchSink(sketch)]),
        (1.0, [NormSink(), ProjectionSink(basis), SketchSink(sketch), ProjectionSink(basis), DenseSink()]),
        (1.0, [DirectionSink(ProjectionConfig(dimension=70, seed=0), moments), ProjectionSink(basis)]),
    ]
    for gradient_memory_gb, sinks in passes:
        engine.config = EngineConfig(gradient_memory_gb=gradient_memory_gb)
        losses = engine._attempt(rows, trimmed_lengths(rows), sinks)
        assert losses.device == device


@pytest.mark.parametrize("packing", ["padded", "packed", "single"])
@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_budget_order_and_mates_do_not_matter(packing: str, batch_tokens: int) -> None:
    adapted, _, expected = reference("llama")
    engine = GradientEngine(adapted, EngineConfig(packing=packing, batch_tokens=batch_tokens))
    order = np.random.default_rng(batch_tokens).permutation(len(expected))[:5]
    found = engine.gradients([examples()[row] for row in order])
    assert relative_error(found, expected[order]) < 1e-5


def test_the_number_of_targets_does_not_matter() -> None:
    adapted, *_ = reference("llama")
    engine = GradientEngine(adapted)
    rng = np.random.default_rng(0)
    bases = [engine.basis(examples(), rng.standard_normal((7, r))) for r in (2, 5, 1)]
    together = engine.features(examples(), Basis.concatenate(bases)).features
    alone = np.hstack([engine.features(examples(), basis).features for basis in bases])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5 * np.abs(alone).max())


def test_bounded_memory_takes_several_passes_and_gives_the_same_gram_and_basis() -> None:
    adapted, _, expected = reference("llama")
    told: list[int] = []
    engine = GradientEngine(adapted, EngineConfig(gradient_memory_gb=1e-5), told.append)
    assert engine.gram_passes(7) > 3
    np.testing.assert_allclose(
        engine.gram(examples()), expected @ expected.T, atol=1e-5 * np.square(expected).sum(1).max()
    )
    assert sum(told) == engine.gram_passes(7) * trimmed_lengths(examples()).sum()
    weights = np.random.default_rng(0).standard_normal((7, 2))
    exact = list(engine.basis_parts(examples(), weights))
    assert len(exact) == engine.basis_passes(2) > 1
    assert relative_error(Basis.join(exact).dense().numpy().T, (expected.T @ weights).T) < 1e-5
    narrow = GradientEngine(adapted, EngineConfig(gradient_memory_gb=1e-5, basis_dtype="bfloat16"))
    basis = narrow.basis(examples(), weights)
    assert basis.blocks[0].dtype == torch.bfloat16
    assert relative_error(basis.dense().numpy().T, (expected.T @ weights).T) < 4e-3


def test_when_memory_runs_out_batches_are_halved_and_nothing_is_counted_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapted, _, expected = reference("llama")
    engine = GradientEngine(adapted, EngineConfig(batch_tokens=200))
    losses = engine.forward.token_losses

    def failing(batch):
        if batch.input_ids.numel() > 60:
            raise torch.OutOfMemoryError("simulated")
        return losses(batch)

    monkeypatch.setattr(engine.forward, "token_losses", failing)
    basis = engine.basis(examples(), np.eye(7))
    assert engine.forward.batch_tokens == 50
    assert relative_error(basis.dense().numpy().T, expected) < 1e-5

    def always_failing(batch):
        raise torch.OutOfMemoryError("simulated")

    monkeypatch.setattr(engine.forward, "token_losses", always_failing)
    with pytest.raises(ModelError, match="28 tokens"):
        engine.gradients(examples())


def test_sketches_keep_inner_products_on_average() -> None:
    adapted, losses, expected = reference("llama")
    engine = GradientEngine(adapted)
    exact = engine.sketch(examples(), SketchConfig(dimension=64, seed=0))
    np.testing.assert_allclose(
        exact.features.astype(float) @ exact.features.T, engine.gram(examples()), rtol=1e-4, atol=1e-4
    )
    grams = []
    for seed in range(40):
        sketch = engine.sketch(examples(), SketchConfig(dimension=8, seed=seed))
        grams.append(sketch.features.astype(float) @ sketch.features.T)
    np.testing.assert_allclose(sketch.loss, losses, rtol=1e-5)
    gram = expected @ expected.T
    spread = np.std(grams, axis=0) / np.sqrt(len(grams))
    assert (np.abs(np.mean(grams, axis=0) - gram) < 5 * spread).all()
    fallback = GradientEngine(adapted, EngineConfig(capture="autograd"))
    again = fallback.sketch(examples(), SketchConfig(dimension=8, seed=39))
    assert relative_error(again.features, sketch.features) < 1e-4


@pytest.mark.parametrize("packing", ["padded", "packed"])
def test_a_broken_example_is_returned_as_such_and_spoils_no_other(packing: str) -> None:
    adapted = language_model(FAMILIES["llama"])
    rows = examples()
    rows[2] = Example(id="bad", input_ids=rows[2].input_ids * 0 + 95, supervised=rows[2].supervised)
    for row in rows[:2] + rows[3:]:
        np.putmask(row.input_ids, row.input_ids == 95, 0)
    engine = GradientEngine(adapted, EngineConfig(packing=packing))
    basis = engine.basis(rows[:2], np.eye(2))
    adapted.model.get_input_embeddings().weight.data[95] = float("nan")
    found = engine.features(rows, basis)
    finite = np.isfinite(found.features).all(axis=1) & np.isfinite(found.gradient_norm)
    assert finite.tolist() == [True, True, False, True, True, True, True]
    assert np.isnan(found.loss[2])


def test_bfloat16_agrees_with_float32() -> None:
    expected = reference("qwen2")[2]
    narrow = language_model(FAMILIES["qwen2"])
    narrow.model.to(torch.bfloat16)
    narrow = LanguageModel(model=narrow.model, tokenizer=None, device=narrow.device, dtype=torch.bfloat16)
    found = GradientEngine(narrow).gradients(examples())
    assert found.dtype == np.float32
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.99


def test_a_model_that_leaks_between_packed_examples_is_not_packed() -> None:
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    )
    adapted = language_model(config)
    engine = GradientEngine(adapted, EngineConfig(packing="packed"))
    assert "packed rows of" not in engine.mode
    assert relative_error(engine.gradients(examples()), looped(adapted, examples())[1]) < 1e-5


def test_dropout_that_stays_on_is_found() -> None:
    adapted = language_model(FAMILIES["llama"], dropout=0.1)

    class Stubborn(torch.nn.Dropout):
        def train(self, mode: bool = True) -> Stubborn:
            return super().train(True)

    adapted.model.extra = Stubborn(0.1)
    with pytest.raises(ModelError, match="extra"):
        prepare_for_gradients(adapted)


def test_the_model_is_given_back_as_it_came() -> None:
    adapted = language_model(FAMILIES["llama"])
    adapted.model.train()
    before = {name: parameter.clone() for name, parameter in adapted.model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in adapted.model.parameters()]
    assert any(flags)
    with GradientEngine(adapted) as engine:
        engine.gradients(examples())
        assert not any(parameter.requires_grad for parameter in adapted.model.parameters())
    assert [parameter.requires_grad for parameter in adapted.model.parameters()] == flags
    assert adapted.model.training
    assert not any("forward" in module.__dict__ for module in adapted.model.modules())
    for name, parameter in adapted.model.state_dict().items():
        assert torch.equal(parameter, before[name]), name
    assert adapted.model.config._attn_implementation == "sdpa"


def test_what_has_no_gradient_is_refused_by_name() -> None:
    adapted, *_ = reference("llama")
    engine = GradientEngine(adapted)
    ids = np.array([1, 2, 3], dtype=np.int32)
    unsupervised = Example(id="empty", input_ids=ids, supervised=np.array([True, False, False]))
    with pytest.raises(DataError, match="'empty'"):
        engine.gradients([unsupervised])
    with pytest.raises(DataError, match=r"'wide'.*999"):
        engine.gradients([Example(id="wide", input_ids=ids + 996, supervised=ids > 0)])
    with pytest.raises(DataError, match="no examples"):
        engine.gram([])
    with pytest.raises(ModelError, match="no adapter"):
        GradientEngine(bare_model(FAMILIES["llama"]))


def test_a_basis_is_stored_whole_and_belongs_to_its_adapter(tmp_path: Path) -> None:
    adapted, *_ = reference("llama")
    engine = GradientEngine(adapted, EngineConfig(gradient_memory_gb=1e-5))
    weights = np.random.default_rng(0).standard_normal((7, 3))
    basis = engine.basis(examples(), weights)
    Basis.save_parts(engine.basis_parts(examples(), weights), tmp_path)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) > 2
    loaded = Basis.load_parts(tmp_path)
    assert loaded.names == basis.names
    assert torch.equal(loaded.dense(), basis.dense())
    with pytest.raises(ArtifactMismatchError, match="another adapter"):
        GradientEngine(reference("gpt-neox")[0]).features(examples(), loaded)
    parts[1].write_bytes(parts[1].read_bytes()[:100])
    with pytest.raises(ArtifactMismatchError, match=parts[1].name):
        Basis.load_parts(tmp_path)
    with pytest.raises(ArtifactMismatchError, match="no basis"):
        Basis.load_parts(tmp_path / "nowhere")
