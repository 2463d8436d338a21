"""Models, tokenizers and adapters from folders: what is read, and what is refused with which words."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from gistselect.errors import ModelError
from gistselect.model.adapters import AdapterConfig, adapter_digest, adapter_parameters, attach_adapter, load_adapter
from gistselect.model.gradients import GradientEngine
from gistselect.model.live import live_adapter_digest, restored
from gistselect.model.loading import (
    ModelConfig,
    load_model,
    load_tokenizer,
    model_digest,
    resolved_precision,
    tokenizer_digest,
)
from gistselect.training.checkpoints import load_moments
from gistselect.training.recipe import TrainingConfig
from gistselect.training.train import merge_adapter, train
from gistselect.types import Example

WORDS = ["<s>", "</s>", *"abcdefgh"]
ROWS = 24
"""The embedding is larger than the vocabulary, as padded vocabularies are."""


def save_model(folder: Path, hidden: int = 16, seed: int = 0) -> ModelConfig:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=ROWS, hidden_size=hidden, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return ModelConfig(path=str(folder), device="cpu")


def save_tokenizer(folder: Path, words: list[str] = WORDS) -> None:
    backend = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    return save_model(tmp_path / "model")


def test_a_model_is_loaded_as_it_is(config: ModelConfig) -> None:
    loaded = load_model(config)
    assert loaded.dtype == torch.float32 == loaded.model.dtype
    assert not loaded.model.training
    assert loaded.model.get_input_embeddings().num_embeddings == ROWS
    assert loaded.tokenizer.pad_token == "</s>"
    assert len(loaded.tokenizer) == len(WORDS)
    narrow = load_model(config.model_copy(update={"dtype": "bfloat16"}))
    assert narrow.model.get_input_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.json", "lacks config.json"),
        ("model.safetensors", "lacks weights"),
        ("tokenizer.json", "lacks a tokenizer"),
    ],
)
def test_an_incomplete_folder_is_named_with_what_it_lacks(config: ModelConfig, missing: str, words: str) -> None:
    (Path(config.path) / missing).unlink()
    with pytest.raises(ModelError, match=words):
        load_model(config)


def test_what_is_no_model_is_refused(config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        load_tokenizer(ModelConfig(path=str(tmp_path / "absent")))
    with pytest.raises(ModelError, match="is a file"):
        load_tokenizer(ModelConfig(path=str(Path(config.path) / "config.json")))
    with pytest.raises(ModelError, match="device"):
        load_model(config.model_copy(update={"device": "toaster"}))
    save_tokenizer(Path(config.path), [str(word) for word in range(ROWS + 5)])
    with pytest.raises(ModelError, match="do not belong together"):
        load_model(config)


def test_a_hub_id_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="nobody/nothing"):
        load_tokenizer(ModelConfig(path="nobody/nothing"))
    with pytest.raises(ModelError, match="nobody/nothing"):
        model_digest(ModelConfig(path="nobody/nothing"))


def test_digests_follow_content(config: ModelConfig, tmp_path: Path) -> None:
    again = save_model(tmp_path / "again")
    other = save_model(tmp_path / "other", seed=1)
    assert model_digest(config) == model_digest(again) != model_digest(other)
    first, second = load_tokenizer(config), load_tokenizer(again)
    before = tokenizer_digest(first)
    first(["a b c", "a"], padding=True, truncation=True, max_length=2)
    assert tokenizer_digest(first) == before == tokenizer_digest(second)
    second.chat_template = "{{ messages }}"
    assert tokenizer_digest(second) != before


def test_a_fresh_adapter_is_seeded_and_takes_the_attention_projections(config: ModelConfig) -> None:
    def parameters(seed: int) -> dict[str, torch.Tensor]:
        return adapter_parameters(attach_adapter(load_model(config), AdapterConfig(rank=2), seed).model)

    first, same, other = parameters(1), parameters(1), parameters(2)
    assert len(first) == 2 * 4 * 2
    assert {name.split(".")[-4] for name in first} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_attention_projections_of_another_family() -> None:
    from gistselect.model.adapters import attention_projections

    config = GPTNeoXConfig(
        vocab_size=ROWS, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    assert attention_projections(GPTNeoXForCausalLM(config)) == ("attention.query_key_value", "attention.dense")
    with pytest.raises(ModelError, match="target_modules"):
        attention_projections(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_adapters_are_in_the_models_format_unless_they_are_trained(config: ModelConfig) -> None:
    narrow = config.model_copy(update={"dtype": "bfloat16"})
    for dtype, expected in (("model", torch.bfloat16), ("float32", torch.float32)):
        adapted = attach_adapter(load_model(narrow), AdapterConfig(rank=2), 0, dtype=dtype)
        assert {value.dtype for value in adapter_parameters(adapted.model).values()} == {expected}


def stored_adapter(config: ModelConfig, folder: Path) -> dict[str, torch.Tensor]:
    adapted = attach_adapter(load_model(config), AdapterConfig(rank=2), seed=0)
    for value in adapter_parameters(adapted.model).values():
        torch.nn.init.normal_(value)
    adapted.model.save_pretrained(folder)
    return adapter_parameters(adapted.model)


def test_a_stored_adapter_comes_back(config: ModelConfig, tmp_path: Path) -> None:
    saved = stored_adapter(config, tmp_path / "adapter")
    loaded = adapter_parameters(load_adapter(load_model(config), tmp_path / "adapter").model)
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert len(adapter_digest(tmp_path / "adapter")) == 64


def test_an_adapter_of_another_model_is_refused(config: ModelConfig, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    stored_adapter(config, folder)
    wider = save_model(tmp_path / "wider" / "model", hidden=24)
    with pytest.raises(ModelError, match="belongs to another model"):
        load_adapter(load_model(wider), folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "peft_type": "IA3"}))
    with pytest.raises(ModelError, match="IA3"):
        load_adapter(load_model(config), folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="not a PEFT adapter folder"):
        load_adapter(load_model(config), folder)


def test_another_base_name_is_advice(config: ModelConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored_adapter(config, tmp_path / "adapter")
    load_adapter(load_model(config), tmp_path / "adapter")
    assert not caplog.records
    load_adapter(load_model(save_model(tmp_path / "namesake")), tmp_path / "adapter")
    assert "was trained on" in caplog.text


def test_where_an_adapter_is_looked_for(config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored_adapter(config, tmp_path / "run" / "checkpoint-10")
    with pytest.raises(ModelError, match=r"name one, such as .*checkpoint-10"):
        load_adapter(load_model(config), tmp_path / "run")
    with pytest.raises(ModelError, match="--adapter"):
        load_model(config.model_copy(update={"path": str(tmp_path / "run" / "checkpoint-10")}))
    with pytest.raises(ModelError, match="give it with --model"):
        adapter_digest(config.path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="nobody/nothing"):
        adapter_digest("nobody/nothing")


def test_a_model_folder_with_an_adapter_in_it_is_refused(config: ModelConfig) -> None:
    """transformers would load the adapter, on another base than these weights."""
    (Path(config.path) / "adapter_config.json").write_text('{"base_model_name_or_path": "other"}')
    with pytest.raises(ModelError, match="holds a model and an adapter_config"):
        load_model(config)


def test_pickled_weights_are_refused_with_the_conversion(
    config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "adapter"
    saved = stored_adapter(config, folder)
    stored = folder / "adapter_model.safetensors"
    torch.save(load_file(stored), folder / "adapter_model.bin")
    stored.unlink()
    with pytest.raises(ModelError, match="convert it once") as refused:
        load_adapter(load_model(config), folder)
    (command,) = re.findall(r'python -c "(.*)"', str(refused.value))
    monkeypatch.chdir(folder)
    exec(command)
    assert adapter_parameters(load_adapter(load_model(config), folder).model).keys() == saved.keys()
    (Path(config.path) / "model.safetensors").rename(Path(config.path) / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled"):
        load_model(config)


@pytest.mark.parametrize("saved", [["embed_tokens", "lm_head"], None])
def test_an_adapter_with_added_tokens_brings_its_tokenizer(
    config: ModelConfig, tmp_path: Path, saved: list[str] | None
) -> None:
    base = load_model(config)
    base.model.resize_token_embeddings(ROWS + 3, mean_resizing=False)
    adapted = get_peft_model(base.model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=saved is None)
    save_tokenizer(tmp_path / "adapter", [*WORDS, "<|im_start|>", "<|im_end|>"])
    loaded = load_adapter(load_model(config), tmp_path / "adapter")
    ids = torch.tensor([[1, 2, ROWS + 2]])
    torch.testing.assert_close(loaded.model(ids).logits, adapted(ids).logits)
    assert len(loaded.tokenizer) == len(WORDS) + 2
    assert tokenizer_digest(load_tokenizer(config, tmp_path / "adapter")) == tokenizer_digest(loaded.tokenizer)
    GradientEngine(loaded).close()
    save_tokenizer(tmp_path / "adapter", [str(word) for word in range(ROWS + 9)])
    with pytest.raises(ModelError, match="brings no embeddings for the rest"):
        load_adapter(load_model(config), tmp_path / "adapter")


def tied_with_adapted_head(tmp_path: Path) -> tuple[ModelConfig, Path, dict[str, torch.Tensor]]:
    """A model whose head is its embedding, and an adapter on that head."""
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=ROWS,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(llama).save_pretrained(tmp_path / "tied")
    save_tokenizer(tmp_path / "tied")
    config = ModelConfig(path=str(tmp_path / "tied"), device="cpu")
    adapted = attach_adapter(load_model(config), AdapterConfig(rank=2, target_modules=("q_proj", "lm_head")), seed=0)
    for value in adapter_parameters(adapted.model).values():
        torch.nn.init.normal_(value, std=0.3)
    adapted.model.save_pretrained(tmp_path / "adapter")
    return config, tmp_path / "adapter", adapter_parameters(adapted.model)


def test_an_adapter_on_a_tied_head_leaves_the_embedding_alone(tmp_path: Path) -> None:
    config, folder, _ = tied_with_adapted_head(tmp_path)
    base = load_model(config)
    adapted = load_adapter(replace(base, model=base.model.double(), dtype=torch.float64), folder)
    example = Example(id="a", input_ids=np.arange(2, 9, dtype=np.int32), supervised=np.arange(7) >= 3)
    with GradientEngine(adapted) as engine:
        ours = engine.gradients([example])[0]
        names = [block.name for block in engine.parameters]
    parameters = adapter_parameters(adapted.model)
    for value in parameters.values():
        value.requires_grad_(True)
    ids = torch.arange(2, 9)[None]
    loss = adapted.model(ids, labels=torch.where(torch.arange(7) >= 3, ids, -100)).loss
    theirs = torch.autograd.grad(loss, [parameters[name] for name in names])
    expected = torch.cat([one.flatten() for one in theirs])
    torch.testing.assert_close(torch.from_numpy(ours).double(), expected, rtol=1e-3, atol=1e-6)  # norms are in float32


def test_merging_an_adapter_on_a_tied_head_unties_it(tmp_path: Path) -> None:
    config, folder, _ = tied_with_adapted_head(tmp_path)
    adapted = load_adapter(load_model(config), folder).model
    merge_adapter(config, folder, tmp_path / "merged")
    merged = load_model(config.model_copy(update={"path": str(tmp_path / "merged")})).model
    ids = torch.arange(2, 9)[None]
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (("all-linear",), {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ((r".*mlp\.(gate|up)_proj",), {"gate_proj", "up_proj"}),
        ((r".*mlp\.(gate|up)_proj", "q_proj"), {"gate_proj", "up_proj", "q_proj"}),
        (("self_attn.q_proj", "down_proj"), {"q_proj", "down_proj"}),
    ],
)
def test_target_modules(config: ModelConfig, targets: tuple[str, ...], layers: set[str]) -> None:
    adapted = attach_adapter(load_model(config), AdapterConfig(rank=2, target_modules=targets), seed=0)
    assert {name.split(".")[-4] for name in adapter_parameters(adapted.model)} == layers


def test_a_target_that_is_not_there_is_named(config: ModelConfig) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        attach_adapter(load_model(config), AdapterConfig(rank=2, target_modules=("nowhere",)), seed=0)


def test_a_vision_language_checkpoint_is_used_as_its_language_model(tmp_path: Path) -> None:
    text = {
        "vocab_size": ROWS,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    tower = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    special = {"image_token_index": 20, "boi_token_index": 21, "eoi_token_index": 22}
    gemma = Gemma3Config(text_config=text, vision_config=tower, mm_tokens_per_image=1, **special)
    Gemma3ForConditionalGeneration(gemma).save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    config = ModelConfig(path=str(tmp_path / "model"), device="cpu")
    examples = [Example(id="a", input_ids=np.arange(2, 9, dtype=np.int32), supervised=np.arange(7) >= 3)] * 4
    recipe = TrainingConfig(
        epochs=1,
        learning_rate=1e-2,
        global_batch_size=2,
        adapter=AdapterConfig(rank=2, target_modules=("all-linear",)),
    )
    result = train(config, examples, recipe, output=tmp_path / "training", seed=0)
    with GradientEngine(load_adapter(load_model(config), result.adapter)) as engine:
        assert np.isfinite(engine.gradients(examples)).all()
    attention = attach_adapter(load_model(config), AdapterConfig(rank=2), seed=0).model
    for names in (load_moments(result.checkpoints[-1].moments).exp_avg, adapter_parameters(attention)):
        assert names
        assert all(".language_model." in name for name in names)


def test_a_model_that_speaks_no_language_is_named(config: ModelConfig) -> None:
    settings = json.loads((Path(config.path) / "config.json").read_text())
    (Path(config.path) / "config.json").write_text(json.dumps({**settings, "model_type": "vit"}))
    with pytest.raises(ModelError, match="'vit' model"):
        load_model(config)


def test_precision_is_known_without_a_model() -> None:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    auto = resolved_precision(ModelConfig(path="nowhere"))
    assert auto == {"dtype": {"cpu": "float32", "cuda": "bfloat16"}[kind], "device": kind}
    asked = resolved_precision(ModelConfig(path="nowhere", dtype="float16", device="cpu"))
    assert asked == {"dtype": "float16", "device": "cpu"}


def test_a_digest_reads_every_shard_once_and_sees_every_change(config: ModelConfig, tmp_path: Path) -> None:
    sharded = config.model_copy(update={"path": str(tmp_path / "sharded")})
    load_model(config).model.save_pretrained(sharded.path, max_shard_size="4KB")
    save_tokenizer(Path(sharded.path))
    shards = sorted(Path(sharded.path).glob("model-*.safetensors"))
    assert len(shards) > 1
    seen = {model_digest(config), model_digest(sharded)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("a file was read again"))
        assert model_digest(sharded) in seen
    for path in shards:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        seen.add(model_digest(sharded))
    assert len(seen) == 2 + len(shards)


def test_the_digest_of_a_live_adapter_follows_what_it_computes(config: ModelConfig) -> None:
    model = attach_adapter(load_model(config), AdapterConfig(rank=2), seed=0).model
    first = live_adapter_digest(model)
    assert live_adapter_digest(attach_adapter(load_model(config), AdapterConfig(rank=2), seed=0).model) == first
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    seen = {first}
    layer.scaling["default"] *= 2
    seen.add(live_adapter_digest(model))
    layer.lora_A["default"].weight.data[0, 0] += 1
    seen.add(live_adapter_digest(model))
    layer.lora_A["default"].to(torch.float64)
    seen.add(live_adapter_digest(model))
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    model.set_adapter("second")
    seen.add(live_adapter_digest(model))
    with model.disable_adapter():
        seen.add(live_adapter_digest(model))
    assert len(seen) == 6


def test_a_live_model_is_restored(config: ModelConfig) -> None:
    model = attach_adapter(load_model(config), AdapterConfig(rank=2), seed=0).model
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    model.train()
    model.base_model.model.model.embed_tokens.eval()

    def state() -> list[Any]:
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        return [
            [(name, value.requires_grad) for name, value in model.named_parameters()],
            [(name, module.training) for name, module in model.named_modules()],
            [(layer.active_adapters, layer.disable_adapters) for layer in layers],
            model.active_adapters,
            model.config._attn_implementation,
        ]

    before = state()

    def use() -> None:
        model.set_adapter("second")
        model.base_model.disable_adapter_layers()
        model.eval().requires_grad_(False)
        model.config._attn_implementation = "eager"
        assert state() != before
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), restored(model):
        use()
    assert state() == before


def test_a_torn_adapter_is_refused(config: ModelConfig, tmp_path: Path) -> None:
    stored_adapter(config, tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError, match="cannot be read"):
        load_adapter(load_model(config), tmp_path / "adapter")
