"""Models in 8 and 4 bits: from the warm-up to the comparison, by option or as stored, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gistselect.cli import main
from gistselect.errors import ConfigError, ModelError
from gistselect.model.adapters import AdapterConfig, attach_adapter
from gistselect.model.gradients import GradientEngine
from gistselect.model.loading import LanguageModel, ModelConfig, load_model, weights_digest
from gistselect.training.recipe import TrainingConfig
from gistselect.training.train import merge_adapter, train
from gistselect.types import Example
from test_ekfac import assert_inverts_its_own_gradients

pytest.importorskip("bitsandbytes")
Bits = Literal["8bit", "4bit"]
BITS: tuple[Bits, ...] = ("8bit", "4bit")
STEP = 4e-3
"""Of the central difference; the losses are near 6, in float32."""
RECIPE = TrainingConfig(epochs=1, learning_rate=1e-2, global_batch_size=2, adapter=AdapterConfig(rank=2, alpha=4))


def conversations(path: Path, first: int, last: int) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} and 3?"},
                {"role": "assistant", "content": f"The answer is {n + 3}."},
            ]
        }
        for n in range(first, last)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def examples(n: int = 4) -> list[Example]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 20, n).tolist()
    return [
        Example(
            id=f"row {place}",
            input_ids=rng.integers(2, 250, length).astype(np.int32),
            supervised=np.arange(length) >= length // 2,
        )
        for place, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Callable[[Bits], LanguageModel]:
    """The tiny model in so many bits, with hidden values large enough to reach the threshold of LLM.int8()."""

    def load(bits: Bits) -> LanguageModel:
        language_model = load_model(ModelConfig(path=str(tiny_model), device="cpu", quantization=bits))
        for layer in language_model.model.model.layers:
            layer.input_layernorm.weight.data[::5] *= 8
        return language_model

    return load


@pytest.fixture(scope="module", params=BITS)
def stored(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A checkpoint that was saved in its quantized form."""
    folder = tmp_path_factory.mktemp(f"stored-{request.param}")
    source = load_model(ModelConfig(path=str(tiny_model), device="cpu", quantization=request.param))
    source.model.save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    return ModelConfig(path=str(folder), device="cpu")


@pytest.mark.parametrize("bits", BITS)
def test_a_run_from_warm_up_to_comparison(tiny_model: Path, tmp_path: Path, bits: Bits) -> None:
    output = tmp_path / "run"
    recipe = ["--{}.global-batch-size", "4", "--{}.epochs", "1", "--{}.adapter.rank", "2"]
    arguments = [
        *("run", "--model", str(tiny_model), "--device", "cpu", "--quantization", bits, "--output", str(output)),
        *("--pool", str(conversations(tmp_path / "pool.jsonl", 0, 20))),
        *("--target", str(conversations(tmp_path / "target.jsonl", 20, 24))),
        *("--heldout", str(conversations(tmp_path / "heldout.jsonl", 30, 34))),
        *(
            "--representation",
            "gist",
            "ekfac",
            "--budget",
            "4",
            "--evaluate",
            "--train-seeds",
            "0",
            "--warmup-share",
            "0.5",
        ),
        *(part.format("warmup") for part in recipe),
        *(part.format("finetune") for part in recipe),
    ]
    main(arguments)
    assert len((output / "selected.jsonl").read_bytes().splitlines()) == 4
    (comparison,) = json.loads((output / "comparison.json").read_text(encoding="utf-8"))
    assert {row["arm"] for row in comparison["rows"]} == {"before", "GIST", "EK-FAC", "random rows"}
    scores = pq.read_table(output / "methods" / "ekfac" / "scores.parquet")
    assert np.isfinite(scores["score"].to_numpy()).all()
    assert scores["score"].to_numpy().std() > 0


@pytest.mark.parametrize("bits", BITS)
def test_gradients_do_not_hang_on_the_batch(loaded: Callable[[Bits], LanguageModel], bits: Bits) -> None:
    """Also where activations exceed the threshold at which bitsandbytes would mix number formats over a batch."""
    adapted = attach_adapter(loaded(bits), AdapterConfig(rank=2, dropout=0.0), seed=0)
    for name, value in adapted.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    with GradientEngine(adapted) as engine:
        together = engine.gradients(examples())
        alone = np.concatenate([engine.gradients([example]) for example in examples()])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5 * np.abs(alone).max())
    assert np.linalg.norm(together, axis=1).min() > 0


@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_the_derivative_of_the_loss(tiny_model: Path, bits: Bits) -> None:
    base = load_model(ModelConfig(path=str(tiny_model), device="cpu", quantization=bits))
    adapted = attach_adapter(base, AdapterConfig(rank=2, dropout=0.0), seed=0)
    name, up = next((name, value) for name, value in adapted.model.named_parameters() if "lora_B" in name)
    one = examples(1)
    direction = torch.randn(up.shape, generator=torch.Generator().manual_seed(0))
    losses = []
    for step in (STEP, -STEP):
        up.data += step * direction
        with GradientEngine(adapted) as engine:
            losses.append(float(engine.features(one, engine.basis(one, np.ones((1, 1)))).loss[0]))
        up.data -= step * direction
    with GradientEngine(adapted) as engine:
        gradient = engine.gradients(one)[0]
        sizes = [block.size for block in engine.parameters]
        place = [block.name for block in engine.parameters].index(name)
    start = sum(sizes[:place])
    slope = float(gradient[start : start + sizes[place]] @ direction.flatten().numpy())
    assert (losses[0] - losses[1]) / (2 * STEP) == pytest.approx(slope, rel=2e-2)


@pytest.mark.parametrize("bits", BITS)
def test_curvature_is_that_of_the_gradients_through_quantized_weights(
    loaded: Callable[[Bits], LanguageModel], bits: Bits, tmp_path: Path
) -> None:
    adapted = attach_adapter(loaded(bits), AdapterConfig(rank=2, dropout=0.0), seed=0)
    torch.manual_seed(0)
    for name, value in adapted.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    with GradientEngine(adapted) as engine:
        assert_inverts_its_own_gradients(engine, examples(9), tmp_path)


def test_a_stored_checkpoint_trains_and_is_given_back(stored: ModelConfig, tmp_path: Path) -> None:
    language_model = load_model(stored)
    before = weights_digest(language_model.model)
    flags = [parameter.requires_grad for parameter in language_model.model.parameters()]
    result = train(language_model, examples(), RECIPE, output=tmp_path / "training", seed=0)
    assert result.checkpoints[-1].moments.is_file()
    assert [parameter.requires_grad for parameter in language_model.model.parameters()] == flags
    assert weights_digest(language_model.model) == before
    with GradientEngine(attach_adapter(language_model, RECIPE.adapter, seed=0)) as engine:
        assert np.isfinite(engine.gradients(examples())).all()


def test_what_quantized_weights_cannot_do_is_refused_with_the_remedy(stored: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unquantized, or train an adapter"):
        train(stored, examples(), RECIPE.model_copy(update={"full": True}), output=tmp_path / "full", seed=0)
    with pytest.raises(ConfigError, match="merge into the model it was made from"):
        merge_adapter(stored, tmp_path / "none", tmp_path / "merged")
    bits: dict[str, Any] = json.loads((Path(stored.path) / "config.json").read_text())["quantization_config"]
    other = "8bit" if bits["load_in_4bit"] else "4bit"
    with pytest.raises(ModelError, match="is stored quantized"):
        load_model(stored.model_copy(update={"quantization": other}))
