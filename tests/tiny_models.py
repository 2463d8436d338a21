"""Small random models with adapters, and what an ordinary backward pass makes of them; shared by the tests."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from gistselect.model.adapters import AdapterConfig, attach_adapter
from gistselect.model.loading import LanguageModel
from gistselect.types import Example

VOCABULARY = 96
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**GROUPED, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=8),
    "gemma": GemmaConfig(**GROUPED, head_dim=8),
    "gemma2": Gemma2Config(**GROUPED, head_dim=8, query_pre_attn_scalar=8, sliding_window=16),
    "mistral": MistralConfig(**GROUPED, sliding_window=10),
    "gpt-neox": GPTNeoXConfig(**SMALL),
}


def examples(lengths: Sequence[int] = (7, 21, 12, 5, 30, 9, 21)) -> list[Example]:
    rng = np.random.default_rng(1)
    rows = []
    for number, length in enumerate(lengths):
        supervised = rng.random(length) < 0.4
        supervised[length // 2] = True
        ids = rng.integers(0, VOCABULARY, length, dtype=np.int32)
        rows.append(Example(id=f"row-{number}", input_ids=ids, supervised=supervised))
    return rows


def bare_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A random model without an adapter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).to(dtype)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return LanguageModel(model=model, tokenizer=None, device=torch.device("cpu"), dtype=dtype)


def language_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float32, **adapter: object) -> LanguageModel:
    """A random model with a rank-4 adapter whose second factor is not zero."""
    return adapted_model(bare_model(config, dtype), **adapter)


def adapted_model(bare: LanguageModel, **adapter: object) -> LanguageModel:
    adapted = attach_adapter(bare, AdapterConfig(rank=4, alpha=8, **adapter), seed=3)
    for name, parameter in adapted.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return adapted


def looped(adapted: LanguageModel, rows: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Losses and gradients by one ordinary `backward` per example, through the model's own labels argument."""
    model = copy.deepcopy(adapted.model).eval()
    weights = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    for parameter in weights:
        parameter.requires_grad_(True)
    losses, gradients = [], []
    for row in rows:
        ids = torch.tensor(row.input_ids.astype(np.int64))[None]
        labels = torch.where(torch.tensor(row.supervised)[None], ids, -100)
        model.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in weights]).double().numpy())
    return np.array(losses), np.stack(gradients)


@cache
def reference(family: str) -> tuple[LanguageModel, np.ndarray, np.ndarray]:
    adapted = language_model(FAMILIES[family])
    return adapted, *looped(adapted, examples())


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest length of a row's error, relative to the row."""
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())
