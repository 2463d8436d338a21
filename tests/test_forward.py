"""Forward passes give the model's own loss, whatever its head and layers do."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import (
    FalconH1Config,
    GPTNeoXConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
)

from gistselect.errors import DataError, ModelError
from gistselect.model.forward import Forward
from gistselect.model.loading import LanguageModel
from gistselect.types import Example
from tiny_models import GROUPED, SMALL, bare_model, examples

FALCON_H1 = {
    **GROUPED,
    "head_dim": 8,
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "lm_head_multiplier": 0.3,
}
OPT = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
MODELS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**GROUPED),
    "gpt-neox": GPTNeoXConfig(**SMALL),
    "opt": OPTConfig(**OPT, ffn_dim=48, word_embed_proj_dim=32),
    "hyperclovax": HyperCLOVAXConfig(**GROUPED, head_dim=8, logits_scaling=0.125),
    "falcon-h1": FalconH1Config(**FALCON_H1),
}


def own_losses(language_model: LanguageModel, rows: Sequence[Example]) -> np.ndarray:
    """Through the model's own labels argument, one example at a time."""
    model, losses = copy.deepcopy(language_model.model).eval(), []
    for row in rows:
        ids = torch.tensor(row.input_ids.astype(np.int64))[None]
        labels = torch.where(torch.tensor(row.supervised)[None], ids, -100)
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=labels, use_cache=False).loss.item())
    return np.array(losses)


@pytest.mark.parametrize("packing", ["auto", "padded", "single"])
@pytest.mark.parametrize("name", MODELS)
def test_losses_are_the_models_own(name: str, packing: str) -> None:
    """Also where a multiplier that no list of ours knows stands before the logits."""
    language_model = bare_model(MODELS[name])
    forward = Forward(language_model, packing, batch_tokens=64)
    found = forward.losses(examples())
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, own_losses(language_model, examples()), rtol=1e-5)
    assert ("model's own head" in forward.mode) == (name in ("falcon-h1", "hyperclovax"))


def test_last_hidden_states_are_the_models_own() -> None:
    language_model, rows = bare_model(MODELS["llama"]), examples()
    forward = Forward(language_model, batch_tokens=64)
    reference = copy.deepcopy(language_model.model.model)
    lengths = np.array([row.n_tokens for row in rows])
    with forward.running(), torch.no_grad():
        for batch in forward.batches(rows, lengths):
            hidden = forward.hidden(batch)
            for row, start, length in zip(batch.rows, batch.starts, batch.lengths, strict=True):
                ids = torch.tensor(rows[row].input_ids.astype(np.int64))[None]
                expected = reference(input_ids=ids).last_hidden_state[0]
                torch.testing.assert_close(hidden[start : start + length], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(forward.token_losses(batch, hidden), forward.token_losses(batch))


def test_every_module_gets_its_mode_back_and_dropout_is_off() -> None:
    language_model = bare_model(MODELS["opt"])
    model = language_model.model.train()
    model.model.decoder.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    forward = Forward(language_model)
    np.testing.assert_array_equal(forward.losses(examples()), forward.losses(examples()))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.config._attn_implementation == "sdpa"


def test_rows_are_counted_and_batches_halved_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    language_model, told = bare_model(MODELS["llama"]), []
    forward = Forward(language_model, batch_tokens=200)
    expected = forward.losses(examples(), told.append)
    assert sum(told) == len(expected)
    token_losses = forward.token_losses

    def failing(batch, limit=60):
        if batch.input_ids.numel() > limit:
            raise torch.OutOfMemoryError("simulated")
        return token_losses(batch)

    monkeypatch.setattr(forward, "token_losses", failing)
    np.testing.assert_allclose(forward.losses(examples()), expected, rtol=1e-5)
    assert forward.batch_tokens == 50
    monkeypatch.setattr(forward, "token_losses", lambda batch: failing(batch, 0))
    with pytest.raises(ModelError, match="28 tokens; use a shorter max_length"):
        forward.losses(examples())


def test_what_has_no_loss_is_refused_by_name() -> None:
    forward = Forward(bare_model(MODELS["llama"]))
    ids = np.array([1, 2, 3], dtype=np.int32)
    with pytest.raises(DataError, match="'empty'"):
        forward.losses([Example(id="empty", input_ids=ids, supervised=np.array([True, False, False]))])
    with pytest.raises(DataError, match=r"'wide'.*999"):
        forward.losses([Example(id="wide", input_ids=ids + 996, supervised=ids > 0)])
