"""The loss of reference answers: the model's own, adapted or not, whatever the model does to its logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
    PreTrainedModel,
)

from gistselect.errors import ConfigError, DataError
from gistselect.evaluation.target_loss import target_losses
from gistselect.model.adapters import AdapterConfig, attach_adapter
from gistselect.model.loading import LanguageModel, ModelConfig, load_model
from gistselect.training.train import merge_adapter
from gistselect.types import Example


@pytest.fixture(scope="module")
def language_model(tiny_model: Path) -> LanguageModel:
    return load_model(ModelConfig(path=str(tiny_model), device="cpu"))


def make_examples(n: int = 12) -> list[Example]:
    rng = np.random.default_rng(0)
    examples = []
    for number in range(n):
        length = int(rng.integers(4, 40))
        supervised = rng.random(length) < 0.4
        supervised[-1] = True
        ids = rng.integers(2, 250, length).astype(np.int32)
        examples.append(Example(id=f"item {number}", input_ids=ids, supervised=supervised))
    return examples


@pytest.mark.parametrize("adapted", [False, True])
def test_target_loss_equals_a_loop_over_single_items(language_model: LanguageModel, adapted: bool) -> None:
    if adapted:
        language_model = attach_adapter(language_model, AdapterConfig(rank=2, dropout=0.5), seed=0)
        for name, parameter in language_model.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    examples = make_examples()
    measured = target_losses(language_model, examples, ["g"] * len(examples))
    language_model.model.eval()
    for item, example in zip(measured, examples, strict=True):
        with torch.no_grad():
            logits = language_model.model(torch.from_numpy(example.input_ids.astype("int64"))[None]).logits[0]
        losses = [
            torch.nn.functional.cross_entropy(logits[i - 1], torch.tensor(int(example.input_ids[i])))
            for i in range(1, example.n_tokens)
            if example.supervised[i]
        ]
        assert item.loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
        assert (item.id, item.group, item.n_supervised) == (example.id, "g", len(losses))
    backwards = target_losses(language_model, examples[::-1], ["g"] * len(examples))[::-1]
    assert [one.loss for one in backwards] == pytest.approx([one.loss for one in measured], rel=1e-6)
    if adapted:
        language_model.model.unload()


def scaled_hyperclova() -> PreTrainedModel:
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    return HyperCLOVAXForCausalLM(HyperCLOVAXConfig(**sizes, **heads, logits_scaling=0.25))


def scaled_falcon_h1() -> PreTrainedModel:
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    mamba = {"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
    return FalconH1ForCausalLM(FalconH1Config(**sizes, **heads, **mamba, lm_head_multiplier=6.0))


@pytest.mark.parametrize("make", [scaled_hyperclova, scaled_falcon_h1])
def test_target_loss_is_the_models_own_whatever_it_does_to_its_logits(make: Callable[[], PreTrainedModel]) -> None:
    torch.manual_seed(0)
    causal = make().eval()
    with torch.no_grad():
        causal.get_output_embeddings().weight.normal_(std=0.5)
    examples = make_examples(5)
    expected = []
    for one in examples:
        ids = torch.from_numpy(one.input_ids.astype("int64"))
        labels = ids.masked_fill(~torch.from_numpy(one.supervised), -100)
        with torch.no_grad():
            expected.append(float(causal(input_ids=ids[None], labels=labels[None], use_cache=False).loss))
    model = LanguageModel(
        model=causal, tokenizer=SimpleNamespace(pad_token_id=0), device=torch.device("cpu"), dtype=torch.float32
    )
    calls: list[tuple[int, int, str]] = []
    found = target_losses(model, examples, [""] * 5, lambda *call: calls.append(call))
    assert [one.loss for one in found] == pytest.approx(expected, rel=1e-4)
    assert calls[-1] == (5, 5, "target loss")


def test_target_loss_refuses_items_without_a_label(language_model: LanguageModel) -> None:
    empty = Example(id="empty", input_ids=np.ones(3, np.int32), supervised=np.zeros(3, np.bool_))
    with pytest.raises(DataError, match="'empty'"):
        target_losses(language_model, [empty], [""])


def test_a_merged_adapter_gives_the_same_losses(tiny_model: Path, tmp_path: Path) -> None:
    source = ModelConfig(path=str(tiny_model), device="cpu")
    adapted = attach_adapter(load_model(source), AdapterConfig(rank=2), seed=0)
    for name, parameter in adapted.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.model.save_pretrained(tmp_path / "adapter")
    merge_adapter(source, tmp_path / "adapter", tmp_path / "merged")
    merged = load_model(ModelConfig(path=str(tmp_path / "merged"), device="cpu"))
    examples = make_examples()
    groups = [""] * len(examples)
    expected = [one.loss for one in target_losses(adapted, examples, groups)]
    plain = [one.loss for one in target_losses(load_model(source), examples, groups)]
    assert [one.loss for one in target_losses(merged, examples, groups)] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(plain, rel=1e-3)
    with pytest.raises(ConfigError, match="4bit"):
        merge_adapter(source.model_copy(update={"quantization": "4bit"}), tmp_path / "adapter", tmp_path / "x")
