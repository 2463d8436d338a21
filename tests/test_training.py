"""Training: the published schedule, seeds, resume to the same bits, moments by name."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_scheduler

from gistselect.errors import ArtifactMismatchError, ConfigError, DataError, ModelError
from gistselect.model.adapters import AdapterConfig
from gistselect.model.loading import LanguageModel, weights_digest
from gistselect.streams import Stream, generator
from gistselect.training.checkpoints import MOMENTS, RECEIPT, load_moments, save_moments
from gistselect.training.recipe import TrainingConfig, epoch_order, steps_per_epoch
from gistselect.training.train import train
from gistselect.types import Example

VOCABULARY = 64
ADAPTER = AdapterConfig(rank=4, alpha=8, dropout=0.1)
CONFIG = TrainingConfig(
    epochs=3, learning_rate=1e-2, global_batch_size=8, device_batch_size=4, adapter=ADAPTER, weight_decay=0.1
)


@pytest.fixture(scope="module")
def language_model() -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LanguageModel(
        model=LlamaForCausalLM(config).eval(),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>")),
            pad_token="<pad>",
            padding_side="left",  # as for generation; training pads on the right all the same
        ),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def make_examples(n: int = 20, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(n):
        length = int(rng.integers(6, 24))
        supervised = np.arange(length) >= length // 2
        ids = rng.integers(1, VOCABULARY, length).astype(np.int32)
        examples.append(Example(id=f"row {number}", input_ids=ids, supervised=supervised))
    return examples


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def trained(language_model: LanguageModel, tmp_path_factory: pytest.TempPathFactory):
    calls: list[tuple[int, int]] = []
    result = train(
        language_model,
        make_examples(),
        CONFIG,
        output=tmp_path_factory.mktemp("training") / "run",
        seed=5,
        progress=lambda done, total, facts: calls.append((done, total)),
    )
    return result, calls


def test_schedule_is_the_published_one(trained) -> None:
    result, calls = trained
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=CONFIG.learning_rate)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=1, num_training_steps=9)  # 3 % of 9, rounded up
    expected = []
    for _ in range(9):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [rate for _, _, rate in result.curve] == pytest.approx(expected)
    assert [one.step for one in result.checkpoints] == [3, 6, 9]
    assert [one.epoch for one in result.checkpoints] == [1, 2, 3]
    assert result.checkpoints[1].mean_learning_rate == pytest.approx(np.mean(expected[3:6]))
    assert calls == [(step, 9) for step in range(1, 10)]
    assert result.curve[-1][1] < result.curve[0][1]


def test_first_loss_is_the_mean_over_supervised_tokens(trained, language_model: LanguageModel) -> None:
    """A fresh adapter changes nothing (its second factor is zero), so the first loss is the base model's."""
    examples = make_examples()
    order = epoch_order([one.n_tokens for one in examples], global_batch_size=8, seed=5, epoch=0)
    total, tokens = 0.0, 0
    for row in order[:8]:
        ids = torch.from_numpy(examples[row].input_ids.astype("int64"))
        with torch.no_grad():
            log_probabilities = language_model.model(ids[None]).logits[0].log_softmax(-1)
        for position in range(1, len(ids)):
            if examples[row].supervised[position]:
                total -= float(log_probabilities[position - 1, ids[position]])
                tokens += 1
    result, _ = trained
    assert result.curve[0][1] == pytest.approx(total / tokens, rel=1e-5)


def test_nothing_pickled_stays(trained) -> None:
    result, _ = trained
    suffixes = {path.suffix for path in result.checkpoints[0].path.parent.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".md"}


def test_a_live_model_is_given_back_as_it_came(language_model: LanguageModel, tmp_path: Path) -> None:
    """Also one with some layers frozen, some in training mode, and activations kept."""
    model = copy.deepcopy(language_model.model)
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].train()
    live = replace(language_model, model=model)

    def state() -> list[Any]:
        flags = [(name, value.requires_grad) for name, value in model.named_parameters()]
        modes = [(name, module.training, list(module._forward_hooks)) for name, module in model.named_modules()]
        return [
            flags,
            modes,
            model.is_gradient_checkpointing,
            model.config.use_cache,
            model.config._attn_implementation,
        ]

    before, weights_before = state(), weights_digest(model)
    config = CONFIG.model_copy(update={"gradient_checkpointing": True, "epochs": 1})
    train(live, make_examples(), config, output=tmp_path, seed=0)
    assert state() == before
    assert weights_digest(model) == weights_before


def test_same_seed_same_bits_other_seed_others(language_model, trained, tmp_path: Path) -> None:
    result, _ = trained
    again = train(language_model, make_examples(), CONFIG, output=tmp_path / "again", seed=5)
    other = train(language_model, make_examples(), CONFIG, output=tmp_path / "other", seed=6, stop_after_epoch=1)
    assert weights(again.adapter) == weights(result.adapter)
    assert weights(other.checkpoints[0].path) != weights(result.checkpoints[0].path)


def test_stopping_early_keeps_the_schedule(language_model, trained, tmp_path: Path) -> None:
    result, _ = trained
    stopped = train(language_model, make_examples(), CONFIG, output=tmp_path, seed=5, stop_after_epoch=1)
    assert len(stopped.checkpoints) == 1
    assert weights(stopped.adapter) == weights(result.checkpoints[0].path)
    assert stopped.curve == result.curve[:3]


class InterruptedRunError(Exception):
    pass


@pytest.mark.parametrize("at_step", [2, 4, 6])
def test_resume_gives_the_same_bits(language_model, trained, tmp_path: Path, at_step: int) -> None:
    def interrupt(done: int, total: int, facts: dict[str, float]) -> None:
        if done == at_step:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        train(language_model, make_examples(), CONFIG, output=tmp_path, seed=5, progress=interrupt)
    steps: list[int] = []
    resumed = train(
        language_model,
        make_examples(),
        CONFIG,
        output=tmp_path,
        seed=5,
        progress=lambda done, total, facts: steps.append(done),
    )
    result, _ = trained
    # Step 6 ends an epoch, but its checkpoint is written after the interruption.
    assert steps[0] == {2: 1, 4: 4, 6: 4}[at_step]
    assert resumed.curve == result.curve
    for ours, theirs in zip(resumed.checkpoints, result.checkpoints, strict=True):
        assert weights(ours.path) == weights(theirs.path)
        assert ours.moments.read_bytes() == theirs.moments.read_bytes()


def test_the_adapters_configuration_does_not_depend_on_the_process(trained) -> None:
    for one in trained[0].checkpoints:
        layers = json.loads((one.path / "adapter_config.json").read_text())["target_modules"]
        assert len(layers) > 1
        assert layers == sorted(layers)


def test_a_half_written_checkpoint_is_not_trusted(language_model, trained, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, facts: dict[str, float]) -> None:
        if done == 8:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        train(language_model, make_examples(), CONFIG, output=tmp_path, seed=5, progress=interrupt)
    receipt = json.loads((tmp_path / RECEIPT).read_text())
    del receipt["written"]["checkpoint-6"]  # it is noted last
    (tmp_path / RECEIPT).write_text(json.dumps(receipt))
    (tmp_path / "checkpoint-6" / MOMENTS).unlink()
    resumed = train(language_model, make_examples(), CONFIG, output=tmp_path, seed=5)
    assert weights(resumed.adapter) == weights(trained[0].adapter)


class Trap:
    """Unpickling it leaves a file."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sprung,)


@pytest.mark.parametrize("planted", ["optimizer.pt", "rng_state.pth", "scheduler.pt", "pytorch_model.bin"])
def test_nothing_planted_is_unpickled(language_model, tmp_path: Path, planted: str) -> None:
    def interrupt(done: int, total: int, facts: dict[str, float]) -> None:
        if done == 4:
            raise InterruptedRunError

    output, sprung = tmp_path / "run", tmp_path / "sprung"
    with pytest.raises(InterruptedRunError):
        train(language_model, make_examples(), CONFIG, output=output, seed=5, progress=interrupt)
    (output / "checkpoint-3" / planted).write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ArtifactMismatchError, match=planted):
        train(language_model, make_examples(), CONFIG, output=output, seed=5)
    assert not sprung.exists()


def test_a_folder_with_checkpoints_of_others_is_neither_read_nor_cleared(language_model, tmp_path: Path) -> None:
    theirs = tmp_path / "checkpoint-3"
    theirs.mkdir()
    sprung = tmp_path / "sprung"
    for name in ("optimizer.pt", MOMENTS):
        (theirs / name).write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ArtifactMismatchError, match="choose another folder"):
        train(language_model, make_examples(), CONFIG, output=tmp_path, seed=5)
    assert not sprung.exists()
    assert len(list(theirs.iterdir())) == 2


def test_another_model_is_another_training(language_model, trained) -> None:
    result, _ = trained
    other = replace(language_model, model=copy.deepcopy(language_model.model))
    other.model.lm_head.weight.data += 1
    with pytest.raises(ArtifactMismatchError, match="holds another training"):
        train(other, make_examples(), CONFIG, output=result.adapter.parent, seed=5)


def test_a_finished_training_is_not_repeated(language_model, trained) -> None:
    result, _ = trained
    folder = result.adapter.parent
    again = train(
        language_model,
        make_examples(),
        CONFIG,
        output=folder,
        seed=5,
        progress=lambda *_: pytest.fail("it was repeated"),
    )
    assert again == result
    with pytest.raises(ArtifactMismatchError, match="holds another training"):
        train(language_model, make_examples(), CONFIG, output=folder, seed=7)


def test_device_batch_size_changes_nothing(language_model, tmp_path: Path) -> None:
    """Without dropout: padding, accumulation and batch shape cancel out, also with a last partial batch."""
    plain = CONFIG.model_copy(update={"adapter": ADAPTER.model_copy(update={"dropout": 0.0}), "epochs": 1})
    adapters = []
    for size in (1, 3, 8):
        config = plain.model_copy(update={"device_batch_size": size})
        result = train(language_model, make_examples(), config, output=tmp_path / str(size), seed=5)
        adapters.append(load_file(result.adapter / "adapter_model.safetensors"))
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(adapters[2][name], tensor, rtol=1e-3, atol=1e-5)


def test_epoch_order_is_a_permutation_sorted_within_each_global_batch() -> None:
    lengths = [int(n) for n in np.random.default_rng(1).integers(1, 50, 21)]
    first = epoch_order(lengths, global_batch_size=8, seed=3, epoch=0)
    assert sorted(first) == list(range(21))
    for start in (0, 8, 16):
        batch = [lengths[row] for row in first[start : start + 8]]
        assert batch == sorted(batch, reverse=True)
    assert first == epoch_order(lengths, global_batch_size=8, seed=3, epoch=0)
    assert first != epoch_order(lengths, global_batch_size=8, seed=3, epoch=1)
    # Which rows share a batch comes from the shuffle, not from their lengths.
    batches = {frozenset(epoch_order(lengths, global_batch_size=8, seed=seed, epoch=0)[:8]) for seed in range(5)}
    assert len(batches) == 5
    # Epoch 1 shares no numbers with the warm-up's sample, which is drawn from the same seed.
    sample = generator(3, Stream.WARMUP_SAMPLE).permutation(21).tolist()
    first_batch = set(epoch_order([1] * 21, global_batch_size=8, seed=3, epoch=int(Stream.WARMUP_SAMPLE))[:8])
    assert first_batch != set(sample[:8])
    assert steps_per_epoch(21, 8) == 3


def test_moments_are_named_by_parameter_though_groups_reorder(tmp_path: Path) -> None:
    """One step of AdamW from zero: exp_avg = (1 - b1) g, exp_avg_sq = (1 - b2) g², whatever the order of groups."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 3))
    no_decay = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    decay = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    optimizer = torch.optim.AdamW([{"params": no_decay[::-1], "weight_decay": 0.0}, {"params": decay[::-1]}])
    model(torch.randn(5, 3)).square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    save_moments(tmp_path / MOMENTS, model, optimizer.state, step=1)
    stored = load_file(tmp_path / MOMENTS)
    assert len(stored) == 2 * len(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(stored[f"exp_avg/{name}"], 0.1 * gradient)
        torch.testing.assert_close(stored[f"exp_avg_sq/{name}"], 0.001 * gradient**2)
    with safe_open(tmp_path / MOMENTS, framework="pt") as file:
        assert file.metadata() == {"step": "1"}


def test_a_parameter_without_moments_is_an_error(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ModelError, match="no moments of 'weight'"):
        save_moments(tmp_path / MOMENTS, model, torch.optim.AdamW(model.parameters()).state, step=1)


def test_checkpoint_moments_have_the_adapters_shapes(trained) -> None:
    result, _ = trained
    stored = load_file(result.checkpoints[0].moments)
    adapter = load_file(result.checkpoints[0].path / "adapter_model.safetensors")
    for moment in ("exp_avg", "exp_avg_sq"):
        shapes = {
            name.removeprefix(f"{moment}/").replace(".default", ""): tensor.shape
            for name, tensor in stored.items()
            if name.startswith(f"{moment}/")
        }
        assert shapes == {name: tensor.shape for name, tensor in adapter.items()}
    assert all((tensor >= 0).all() for name, tensor in stored.items() if name.startswith("exp_avg_sq/"))


def test_full_fine_tuning_moves_all_weights(language_model: LanguageModel, tmp_path: Path) -> None:
    live = LanguageModel(
        model=copy.deepcopy(language_model.model),
        tokenizer=language_model.tokenizer,
        device=language_model.device,
        dtype=language_model.dtype,
    )
    config = CONFIG.model_copy(update={"full": True, "epochs": 1, "gradient_checkpointing": True})
    result = train(live, make_examples(), config, output=tmp_path, seed=0)
    before = language_model.model.state_dict()
    after = LlamaForCausalLM.from_pretrained(result.adapter).state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_bad_input_is_refused_before_work(language_model: LanguageModel, tmp_path: Path) -> None:
    empty = Example(id="empty", input_ids=np.ones(3, np.int32), supervised=np.array([True, False, False]))
    with pytest.raises(DataError, match="no row"):
        train(language_model, [], CONFIG, output=tmp_path, seed=0)
    with pytest.raises(DataError, match="'empty'"):
        train(language_model, [*make_examples(), empty], CONFIG, output=tmp_path, seed=0)
    with pytest.raises(ConfigError, match="1 to 3"):
        train(language_model, make_examples(), CONFIG, output=tmp_path, seed=0, stop_after_epoch=4)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_a_number_stops_the_run(language_model: LanguageModel, tmp_path: Path) -> None:
    broken = LanguageModel(
        model=copy.deepcopy(language_model.model),
        tokenizer=language_model.tokenizer,
        device=language_model.device,
        dtype=language_model.dtype,
    )
    broken.model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(ModelError, match="loss is nan"):
        train(broken, make_examples(), CONFIG, output=tmp_path, seed=0)


def test_defaults_are_the_published_recipe() -> None:
    published = {
        "epochs": 4,
        "learning_rate": 2e-5,
        "schedule": "linear",
        "warmup_ratio": 0.03,
        "weight_decay": 0.0,
        "global_batch_size": 32,
        "optimizer": "adamw_torch",
    }
    values = json.loads(TrainingConfig().model_dump_json())
    assert {name: values[name] for name in published} == published


def test_moments_come_back_by_name(trained) -> None:
    result, _ = trained
    loaded = load_moments(result.checkpoints[1].moments)
    assert loaded.step == result.checkpoints[1].step
    assert loaded.exp_avg.keys() == loaded.exp_avg_sq.keys()
    stored = load_file(result.checkpoints[1].moments)
    assert all(torch.equal(stored[f"exp_avg/{name}"], value) for name, value in loaded.exp_avg.items())
    with pytest.raises(ArtifactMismatchError, match="no optimizer moments"):
        load_moments(result.checkpoints[1].path / "adapter_model.safetensors")
