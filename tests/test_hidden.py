"""Collectors of a forward pass, against single rows through the model itself."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import OPTConfig

from gistselect.errors import DataError
from gistselect.model.forward import Forward
from gistselect.model.hidden import ExampleLoss, PositionWeightedMean, collect_hidden
from gistselect.model.loading import LanguageModel
from gistselect.types import Example
from tiny_models import FAMILIES, VOCABULARY, bare_model, examples

ROWS = examples()


def weighted_means(language_model: LanguageModel, rows: list[Example]) -> np.ndarray:
    """A loop over single rows: the i-th token of a conversation weighs i."""
    model, means = copy.deepcopy(language_model.model).eval(), []
    for row in rows:
        with torch.no_grad():
            output = model(input_ids=torch.tensor(row.input_ids.astype(np.int64))[None], output_hidden_states=True)
        means.append(np.average(output.hidden_states[-1][0].numpy(), axis=0, weights=np.arange(1, row.n_tokens + 1)))
    return np.stack(means)


@pytest.mark.parametrize(("packing", "batch_tokens"), [("packed", 40), ("packed", 1000), ("padded", 70), ("single", 1)])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-neox"])
def test_the_weighted_mean_equals_a_loop_over_single_rows(family: str, packing: str, batch_tokens: int) -> None:
    language_model = bare_model(FAMILIES[family])
    forward = Forward(language_model, packing, batch_tokens)
    means, losses = PositionWeightedMean(), ExampleLoss()
    collect_hidden(forward, ROWS, [means, losses])
    expected = weighted_means(language_model, ROWS)
    np.testing.assert_allclose(means.result(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(losses.result()[:, 0], forward.losses(ROWS), rtol=1e-5)


def test_one_forward_pass_feeds_both_and_reads_the_same_for_one() -> None:
    language_model = bare_model(FAMILIES["llama"])
    forward = Forward(language_model, batch_tokens=1000)
    seen: list[int] = []
    embed = language_model.model.get_input_embeddings()
    embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numel()))
    collect_hidden(forward, ROWS, [ExampleLoss(), PositionWeightedMean()])
    assert seen == [sum(row.n_tokens for row in ROWS)]
    seen.clear()
    collect_hidden(forward, ROWS, [ExampleLoss()])
    assert seen == [sum(row.n_tokens for row in ROWS)]


def test_losses_by_the_models_own_head() -> None:
    """OPT projects its hidden states before the head, so that no layout of labels alone is tried twice."""
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    )
    language_model = bare_model(config)
    forward = Forward(language_model)
    forward.head = None
    losses, means = ExampleLoss(), PositionWeightedMean()
    collect_hidden(forward, ROWS, [losses, means])
    np.testing.assert_allclose(losses.result()[:, 0], Forward(language_model).losses(ROWS), rtol=1e-5)
    np.testing.assert_allclose(means.result(), weighted_means(language_model, ROWS), rtol=1e-4, atol=1e-4)


def test_rows_without_labels_have_a_mean_but_no_loss() -> None:
    forward = Forward(bare_model(FAMILIES["llama"]))
    mute = Example(id="mute", input_ids=ROWS[1].input_ids, supervised=ROWS[1].supervised & False)
    means = PositionWeightedMean()
    collect_hidden(forward, [ROWS[0], mute], [means])
    np.testing.assert_allclose(means.result(), weighted_means(forward.language_model, [ROWS[0], mute]), rtol=1e-3)
    with pytest.raises(DataError, match="'mute'"):
        collect_hidden(forward, [ROWS[0], mute], [ExampleLoss()])
    with pytest.raises(DataError, match="no examples"):
        collect_hidden(forward, [], [means])


def test_a_broken_example_spoils_no_other() -> None:
    language_model, rows = bare_model(FAMILIES["llama"]), examples()
    for row in rows:
        np.putmask(row.input_ids, row.input_ids == 95, 0)
    rows[2].input_ids[:] = 95
    forward = Forward(language_model)
    language_model.model.get_input_embeddings().weight.data[95] = float("nan")
    collectors = [PositionWeightedMean(), ExampleLoss()]
    collect_hidden(forward, rows, collectors)
    for collector in collectors:
        assert np.isfinite(collector.result()).all(axis=1).tolist() == [row != 2 for row in range(len(rows))]
