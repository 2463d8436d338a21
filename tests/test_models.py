"""Models of every kind, as they are or refused in a sentence; see the table in docs/reliability.md."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    Cohere2Config,
    FalconH1Config,
    Gemma3TextConfig,
    GptOssConfig,
    JambaConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    T5Config,
)

from gistselect.errors import ConfigError, ModelError
from gistselect.model import attention
from gistselect.model.adapters import AdapterConfig, attach_adapter, load_adapter
from gistselect.model.engine_config import EngineConfig
from gistselect.model.forward import Forward
from gistselect.model.gradients import GradientEngine
from gistselect.model.loading import LanguageModel, ModelConfig, load_model
from gistselect.types import Example
from tiny_models import (
    GROUPED,
    VOCABULARY,
    adapted_model,
    bare_model,
    examples,
    language_model,
    looped,
    relative_error,
)
from tiny_runs import adapter_of, ids, run

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED = {"shared_expert_intermediate_size": 24}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MAMBA: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
QWEN_MOE = {**GROUPED, **EXPERTS, **SHARED}
PACKED: dict[str, tuple[PreTrainedConfig, dict[str, Any]]] = {
    # Mixtures of experts: tokens go to experts one by one, so that the mates of an example change nothing.
    "mixtral": (MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2), {}),
    "olmoe": (OlmoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2), {}),
    "qwen2-moe": (Qwen2MoeConfig(**QWEN_MOE), {}),
    # Windows shorter than the examples, in all layers or in some.
    "qwen2, a sliding layer": (
        Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=6, max_window_layers=1),
        {},
    ),
    "gemma3": (Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=6), {}),
    "cohere2": (Cohere2Config(**GROUPED, sliding_window=6), {}),
}
UNPACKED: dict[str, tuple[PreTrainedConfig, dict[str, Any]]] = {
    # A state runs through the row: packed examples would leak into each other.
    "mamba": (MambaConfig(**MAMBA), {"target_modules": ("in_proj", "x_proj")}),
    "mamba2": (
        Mamba2Config(**MAMBA, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
        {"target_modules": ("in_proj",)},
    ),
    "qwen3-next": (Qwen3NextConfig(**{**QWEN_MOE, "num_hidden_layers": 4}, head_dim=8, **LINEAR), {}),
    "recurrent-gemma": (
        RecurrentGemmaConfig(**{**GROUPED, "num_hidden_layers": 3}, head_dim=8, lru_width=32, attention_window_size=8),
        {"target_modules": ("q_proj", "linear_x")},
    ),
    "jamba": (
        JambaConfig(
            **GROUPED, num_experts=2, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4, use_mamba_kernels=False
        ),
        {},
    ),
    # Attention that our function does not do: sinks, and biases by distance.
    "gpt-oss": (GptOssConfig(**GROUPED, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=8), {}),
    "bloom": (
        BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
        {"target_modules": ("self_attention.query_key_value",)},
    ),
}


@pytest.mark.parametrize("name", [*PACKED, *UNPACKED])
def test_gradients_equal_plain_backward_passes_in_every_layout(name: str) -> None:
    config, adapter = {**PACKED, **UNPACKED}[name]
    adapted = language_model(config, **adapter)
    losses, expected = looped(adapted, examples())
    for packing in ("auto", "packed", "padded"):
        with GradientEngine(adapted, EngineConfig(packing=packing)) as engine:
            found = engine.features(examples(), engine.basis(examples(), np.eye(7)))
            assert relative_error(engine.gradients(examples()), expected) < 1e-4
            np.testing.assert_allclose(found.loss, losses, rtol=1e-5)
            np.testing.assert_allclose(found.gradient_norm, np.linalg.norm(expected, axis=1), rtol=1e-4)
            assert ("packed rows by" in engine.mode) == (name in PACKED and packing != "padded")


@pytest.mark.parametrize(
    "targets", [("q_proj", "shared_expert.up_proj", "shared_expert.down_proj"), ("q_proj", "shared_expert_gate")]
)
def test_layers_that_do_not_see_each_token_at_its_place_are_left_to_autograd(targets: tuple[str, ...]) -> None:
    """A shared expert gets all tokens of the batch in one list, without its rows."""
    adapted = language_model(Qwen2MoeConfig(**QWEN_MOE), target_modules=targets)
    expected = looped(adapted, examples())[1]
    engine = GradientEngine(adapted)
    assert "autograd" in engine.mode
    assert "does not see each token once" in engine.mode
    assert relative_error(engine.gradients(examples()), expected) < 1e-5
    with pytest.raises(ModelError, match="use capture='auto'"):
        GradientEngine(adapted, EngineConfig(capture="hooks"))


def by_autograd(adapted: LanguageModel, rows: Sequence[Example]) -> np.ndarray:
    """Gradients (n, p) of one example after the other, without a cache; zero for what an example does not reach."""
    model = copy.deepcopy(adapted.model).eval()
    weights = [value.requires_grad_(True) for name, value in model.named_parameters() if "lora_" in name]
    gradients = []
    for one in rows:
        tokens = torch.from_numpy(one.input_ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(one.supervised)[None], tokens, -100)
        loss = model(tokens, labels=labels, use_cache=False).loss
        found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        gradients.append(torch.cat([value.flatten() for value in found]).numpy())
    return np.stack(gradients)


def test_a_layer_that_stands_twice_in_a_model_is_left_to_autograd() -> None:
    """Its gradient is a sum over both places; each of them alone is no gradient."""
    bare = bare_model(LlamaConfig(**GROUPED))
    bare.model.model.layers[1] = bare.model.model.layers[0]
    adapted = adapted_model(bare)
    engine = GradientEngine(adapted)
    assert "a shared layer, or an expert" in engine.mode
    assert relative_error(engine.gradients(examples()), by_autograd(adapted, examples())) < 1e-5


class Experts(torch.nn.Module):
    """Two experts of which each token goes to one, by a plain loop; the second gets a part that is not in order."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(width, width, bias=False)
        self.second = torch.nn.Linear(width, width, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.flatten(0, -2)
        chosen = flat[:, 0] > (0 if len(flat) > 6 else float("inf"))
        places = [torch.nonzero(~chosen)[:, 0], torch.nonzero(chosen)[:, 0].flip(0)]
        out = torch.zeros_like(flat)
        for expert, place in zip((self.first, self.second), places, strict=True):
            if len(place):
                out = out.index_add(0, place, expert(flat[place]))
        return out.view_as(hidden)


def test_routed_experts_of_ones_own_also_where_no_token_goes() -> None:
    bare = bare_model(LlamaConfig(**GROUPED))
    torch.manual_seed(1)
    for layer in bare.model.model.layers:
        layer.mlp = Experts(32)
    adapted = adapted_model(bare, target_modules=("q_proj", "first", "second"))
    rows = examples((5, 30, 9))
    engine = GradientEngine(adapted)
    assert "autograd" in engine.mode
    assert relative_error(engine.gradients(rows), by_autograd(adapted, rows)) < 1e-5


def test_the_loss_of_a_router_is_no_loss_of_a_row() -> None:
    """`output_router_logits` adds it to the model's own loss in training."""
    config = MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2)
    expected = looped(language_model(config), examples())[1]
    config.output_router_logits = True
    adapted = language_model(config)
    with GradientEngine(adapted) as engine:
        assert relative_error(engine.gradients(examples()), expected) < 1e-5
    assert adapted.causal.config.output_router_logits


def test_packing_that_leaks_is_found_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention function that forgets where one example ends gives every loss of the first row right."""
    adapted = language_model(LlamaConfig(**GROUPED))
    expected = looped(adapted, examples())[1]

    def across(function: Any, module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = (side.repeat_interleave(groups, dim=1) for side in (key, value))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return out.transpose(1, 2), None

    monkeypatch.setattr(attention.SegmentAttention, "__call__", across)
    engine = GradientEngine(adapted)
    assert "padded rows (packed rows do not give this model's loss)" in engine.mode
    assert relative_error(engine.gradients(examples()), expected) < 1e-5
    found = Forward(adapted, "packed")
    assert "by segments" not in found.mode


def test_a_faint_leak_is_found_where_every_loss_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one example hands to the next is within the tolerance of the losses, but moves when that one changes."""
    adapted = language_model(LlamaConfig(**GROUPED))
    whole = attention.SegmentAttention.__call__

    def faint(function: Any, module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
        out, nothing = whole(function, module, query, key, value, mask, **more)
        return out + 3e-3 * value.mean(), nothing

    monkeypatch.setattr(attention.SegmentAttention, "__call__", faint)
    assert "packed rows by" not in GradientEngine(adapted).mode


# --- what a file says -------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Callable[[str], ModelConfig]:
    """Copies of the tiny model, to be changed."""

    def copy_of(name: str) -> ModelConfig:
        return ModelConfig(path=str(shutil.copytree(tiny_model, tmp_path / "models" / name)), device="cpu")

    return copy_of


def change(path: Path, **values: Any) -> None:
    """Change entries of a JSON file; None takes one away."""
    settings = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


def test_the_pad_token_does_not_matter(
    config: dict[str, Any], copied: Callable[[str], ModelConfig], tmp_path: Path
) -> None:
    """None, that of the end (whose labels count) and another: the same training, scores and selection."""
    found = {}
    for name, pad in {"none": None, "end": "</s>", "start": "<s>"}.items():
        model = copied(name)
        change(Path(model.path) / "tokenizer_config.json", pad_token=pad)
        warmup = {**config["warmup"], "device_batch_size": 4}
        output = run(config, model=model.path, output=tmp_path / name, engine={"packing": "padded"}, warmup=warmup)
        found[name] = pq.read_table(output / "scores.parquet").to_pydict()
        assert load_model(model).tokenizer.pad_token == (pad or "</s>")
    assert found["none"] == found["end"] == found["start"]


def test_a_tokenizer_without_an_end_is_refused_and_without_all_else_used(
    config: dict[str, Any], copied: Callable[[str], ModelConfig]
) -> None:
    model = copied("plain")
    change(Path(model.path) / "tokenizer_config.json", pad_token=None, bos_token=None)
    output = run(config, model=model.path, engine={"packing": "padded"})
    assert len(ids(output / "selected.jsonl")) == 10
    change(Path(model.path) / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ConfigError, match="has no eos_token to close answers with; set it"):
        run(config, model=model.path)


def test_a_vocabulary_that_ends_before_the_tokenizers_last_id_is_refused(
    copied: Callable[[str], ModelConfig],
) -> None:
    """Also where it has as many entries as the tokenizer, which leaves numbers out."""
    model = copied("gap")
    path = Path(model.path) / "tokenizer.json"
    rules = json.loads(path.read_text())
    vocabulary = rules["model"]["vocab"]
    last = max(vocabulary, key=lambda token: vocabulary[token])
    vocabulary[last] += 7
    path.write_text(json.dumps(rules))
    with pytest.raises(ModelError, match="do not belong together"):
        load_model(model)


def test_a_sharded_checkpoint_is_the_same_model_and_a_lost_shard_is_named(
    copied: Callable[[str], ModelConfig], tmp_path: Path
) -> None:
    whole = load_model(copied("whole"))
    sharded = copied("sharded")
    (Path(sharded.path) / "model.safetensors").unlink()
    whole.model.save_pretrained(sharded.path, max_shard_size="30KB")
    shards = sorted(Path(sharded.path).glob("model-*.safetensors"))
    assert len(shards) > 2
    for one, other in zip(whole.model.parameters(), load_model(sharded).model.parameters(), strict=True):
        assert torch.equal(one, other)
    shards[1].unlink()
    with pytest.raises(ModelError, match=shards[1].name):
        load_model(sharded)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("before rank-stabilised scales, DoRA and patterns", {}),
        ("of the first releases", {"merge_weights": False, "enable_lora": None}),
        ("without the name of its base", {"base_model_name_or_path": None, "task_type": None}),
        ("of a later release", {"peft_version": "99.0", "an_option_of_tomorrow": None, "another": False}),
    ],
)
def test_adapters_of_other_releases_of_peft(
    copied: Callable[[str], ModelConfig], tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    first = ("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "fan_in_fan_out")
    base = load_model(copied("model"))
    adapted = adapted_model(base)
    expected = GradientEngine(adapted).gradients(examples())
    folder = tmp_path / "adapter"
    adapted.model.save_pretrained(folder)
    path = folder / "adapter_config.json"
    written = json.loads(path.read_text())
    old = {key: written[key] for key in (*first, "base_model_name_or_path", "inference_mode", "modules_to_save")}
    path.write_text(json.dumps({**old, **settings}))
    loaded = load_adapter(load_model(copied("again")), folder)
    np.testing.assert_array_equal(GradientEngine(loaded).gradients(examples()), expected)


@pytest.mark.parametrize("missing", ["r", "lora_alpha"])
def test_an_adapter_that_does_not_say_its_size_is_refused(
    copied: Callable[[str], ModelConfig], tmp_path: Path, missing: str
) -> None:
    """PEFT would take its own default, and with it another step."""
    model = load_model(copied("model"))
    adapted_model(model).model.save_pretrained(tmp_path / "adapter")
    change(tmp_path / "adapter" / "adapter_config.json", **{missing: None})
    with pytest.raises(ModelError, match=f"does not say {missing}"):
        load_adapter(load_model(copied("again")), tmp_path / "adapter")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_before_the_work(
    config: dict[str, Any], copied: Callable[[str], ModelConfig], tmp_path: Path, value: float
) -> None:
    model = copied("broken")
    path, name = Path(model.path) / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    weights = load_file(path)
    weights[name][3, 2] = value
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name}' holds 1 of 2,048 values that are not finite.*damaged"):
        run(config, model=model.path)
    assert not list(config["output"].glob("artifacts/*/training/checkpoint-*"))


def test_an_adapter_that_is_not_finite_is_named(copied: Callable[[str], ModelConfig], tmp_path: Path) -> None:
    adapted = attach_adapter(load_model(copied("model")), AdapterConfig(rank=2), seed=0)
    adapted.model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight.data[0, 0] = float("nan")
    adapted.model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"q_proj\.lora_A.* not finite"):
        load_adapter(load_model(copied("again")), tmp_path / "adapter")


def test_a_live_model_with_a_broken_weight_is_named() -> None:
    adapted = language_model(LlamaConfig(**GROUPED))
    adapted.causal.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.up_proj\.weight"):
        GradientEngine(adapted)


def test_weights_beyond_float16_say_so(copied: Callable[[str], ModelConfig]) -> None:
    model = copied("wide")
    path = Path(model.path) / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(weights, path, metadata={"format": "pt"})
    load_model(model)
    with pytest.raises(ModelError, match="use --dtype bfloat16 or float32"):
        load_model(model.model_copy(update={"dtype": "float16"}))


def hot(model: ModelConfig, token: int) -> None:
    """Activations of one token leave the range of float16, those of all others do not."""
    path = Path(model.path) / "model.safetensors"
    weights = load_file(path)
    weights["model.embed_tokens.weight"][:, 0] = 0
    weights["model.embed_tokens.weight"][token] = 0
    weights["model.embed_tokens.weight"][token, 0] = 1
    weights["model.layers.0.self_attn.o_proj.weight"][0] = 0
    for name in ("gate", "up"):
        weights[f"model.layers.0.mlp.{name}_proj.weight"][:, 0] = 4e3
    weights["model.layers.0.mlp.down_proj.weight"][0] = 0
    save_file(weights, path, metadata={"format": "pt"})


def test_what_overflows_in_float16_is_quarantined_with_the_remedy_and_never_ranked(
    config: dict[str, Any], copied: Callable[[str], ModelConfig], tmp_path: Path
) -> None:
    adapter = adapter_of(run(config, output=tmp_path / "warm-up", until="warmup"))
    model = copied("hot")
    token = load_model(model).tokenizer("größer")["input_ids"][2]
    hot(model, token)
    narrow, wide = (
        run(config, model=model.path, dtype=dtype, adapter=adapter, budget=5, output=tmp_path / dtype)
        for dtype in ("float16", "float32")
    )
    lost = [json.loads(line) for line in (narrow / "quarantine.jsonl").read_text().splitlines()]
    overflown = [one for one in lost if "gradient" in one["reason"]]
    assert len(overflown) == 17
    assert all("not finite" in one["reason"] and "--dtype float32" in one["reason"] for one in overflown)
    scores = pq.read_table(narrow / "scores.parquet")
    assert np.isfinite(scores["score"].to_numpy()).all()
    assert not set(scores["id"].to_pylist()) & {one["id"] for one in overflown}
    assert pq.read_table(wide / "scores.parquet").num_rows == scores.num_rows + len(overflown)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_is_refused_in_a_sentence(
    copied: Callable[[str], ModelConfig], config: dict[str, Any], kind: str
) -> None:
    """transformers would load the decoder of a BART as a causal model."""
    small = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    widths = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    settings = {
        "t5": T5Config(vocab_size=320, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8),
        "bart": BartConfig(vocab_size=320, **small, **widths),
    }[kind]
    model = copied(kind)
    AutoModelForSeq2SeqLM.from_config(settings).save_pretrained(model.path)
    with pytest.raises(ModelError, match=r"is an encoder-decoder .* use a causal language model"):
        run(config, model=model.path)


def test_a_masked_language_model_is_refused(copied: Callable[[str], ModelConfig]) -> None:
    """transformers loads it as a causal one, and its loss would be that of a model that sees the answer."""
    model = copied("masked")
    torch.manual_seed(0)
    BertForMaskedLM(
        BertConfig(vocab_size=320, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    ).save_pretrained(model.path)
    with pytest.raises(ModelError, match="predicts tokens from those that follow them"):
        Forward(load_model(model))


def test_tied_or_not_the_weights_are_what_they_were(tiny_model: Path, tmp_path: Path) -> None:
    """A checkpoint with tied weights holds them once; loading it ties them, and untied ones stay apart."""
    for tied in (True, False):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(LlamaConfig(**{**GROUPED, "vocab_size": 320}, tie_word_embeddings=tied))
        folder = tmp_path / f"tied-{tied}"
        shutil.copytree(tiny_model, folder)
        made.save_pretrained(folder)
        loaded = load_model(ModelConfig(path=str(folder), device="cpu"))
        embedding, head = loaded.model.get_input_embeddings().weight, loaded.model.get_output_embeddings().weight
        assert (embedding is head) == tied
        assert torch.equal(head, made.get_output_embeddings().weight)
        adapted = adapted_model(loaded)
        assert relative_error(GradientEngine(adapted).gradients(examples()), looped(adapted, examples())[1]) < 1e-5


def test_falcon_h1_has_both_kinds_of_layers() -> None:
    """Attention and state side by side: packed rows would be right for half of each layer."""
    config = FalconH1Config(
        **GROUPED, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8
    )
    adapted = language_model(config)
    engine = GradientEngine(adapted, EngineConfig(packing="packed"))
    assert "single rows" in engine.mode
    assert relative_error(engine.gradients(examples()), looped(adapted, examples())[1]) < 1e-5
