"""Models, tokenizers and adapters from folders: what is read, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gistselect.errors import ModelError
from gistselect.model.adapters import AdapterConfig, adapter_digest, adapter_parameters, attach_adapter, load_adapter
from gistselect.model.loading import ModelConfig, load_model, load_tokenizer, model_digest, tokenizer_digest

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
    namesake = save_model(tmp_path / "namesake")
    with pytest.raises(ModelError, match="was trained on"):
        load_adapter(load_model(namesake), folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "peft_type": "IA3"}))
    with pytest.raises(ModelError, match="IA3"):
        load_adapter(load_model(config), folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="not a PEFT adapter folder"):
        load_adapter(load_model(config), folder)


def test_a_torn_adapter_is_refused(config: ModelConfig, tmp_path: Path) -> None:
    stored_adapter(config, tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError, match="cannot be read"):
        load_adapter(load_model(config), tmp_path / "adapter")
