"""What `gistselect bench` measures is the same work, and its table says what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gistselect.bench import arms as module
from gistselect.bench import measure
from gistselect.bench.config import BenchConfig
from gistselect.bench.measure import Arm, BenchResult, bench, format_table
from gistselect.errors import DataError
from gistselect.model.forward import Forward
from gistselect.model.gradients import EngineConfig, GradientEngine


@pytest.fixture(autouse=True)
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    monkeypatch.setitem(module.SHAPES, "llama-17m", {**module.SHAPES["llama-17m"], **small, **heads})
    monkeypatch.setattr(measure, "peak_flops", lambda language_model: 1e9)


@pytest.fixture
def config(tmp_path: Path) -> BenchConfig:
    lengths = tmp_path / "lengths.txt"
    lengths.write_text("12 5\n7 2\n20 11\n")
    return BenchConfig(rows=6, repeats=2, adapter_rank=4, subspace_rank=3, lengths=lengths, device="cpu")


@pytest.fixture
def engine(config: BenchConfig) -> Iterator[GradientEngine]:
    with GradientEngine(module.random_model(config), EngineConfig(batch_tokens=40)) as engine:
        yield engine


def test_the_published_loop_and_the_engine_compute_the_same_features(
    config: BenchConfig, engine: GradientEngine
) -> None:
    examples = module.random_examples(config)
    one, three = module.random_bases(engine, config)
    assert (one.rank, three.rank) == (3, 9)
    looped = module.published_loop(engine, examples, torch.cat(one.blocks))
    np.testing.assert_allclose(engine.features(examples, one).features, looped, rtol=1e-4, atol=1e-5 * looped.max())


def test_floors_read_every_token_and_leave_the_model_frozen(config: BenchConfig, engine: GradientEngine) -> None:
    examples = module.random_examples(config)
    seen: list[int] = []
    embed = engine.model.get_input_embeddings()
    embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numel()))
    module.ordinary_steps(engine, examples, 40)
    assert sum(seen) >= sum(example.n_tokens for example in examples)
    plain = Forward(engine.language_model, batch_tokens=40)
    seen.clear()
    module.activation_backward(plain, examples)
    assert sum(seen) == sum(example.n_tokens - 1 for example in examples)
    assert not any(parameter.requires_grad for parameter in engine.model.parameters())
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_floor_two_passes_over_budgets_that_do_not_fit(
    config: BenchConfig, engine: GradientEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, told = module.ordinary_steps, []

    def with_little_memory(engine: GradientEngine, examples: list, batch_tokens: int) -> None:
        if batch_tokens > 30:
            raise torch.OutOfMemoryError("simulated")
        original(engine, examples, batch_tokens)

    monkeypatch.setattr(module, "ordinary_steps", with_little_memory)
    assert module.fastest_padding(engine, module.random_examples(config), told.append) <= 30
    assert sum("do not fit" in line for line in told) == 2


def test_a_whole_measurement(config: BenchConfig) -> None:
    told: list[str] = []
    result = bench(config, told.append)
    assert [arm.name.partition(" ")[0] for arm in result.arms] == ["(i)", "(ii)", "(iii)", "(iv)", "(v)"]
    assert all(len(arm.seconds) == config.repeats and min(arm.seconds) > 0 for arm in result.arms)
    assert result.n_tokens == sum(example.n_tokens for example in module.random_examples(config))
    assert sum(line.startswith("repeat ") for line in told) == config.repeats
    table = format_table(result)
    assert "goal on a CPU >= 2.5" in table
    assert "MFU of ours" not in table


def test_the_table_takes_ratios_within_a_repeat(config: BenchConfig) -> None:
    seconds = [(8.0, 30.0, 10.0), (2.0, 4.0, 2.0), (2.0, 4.0, 2.0), (2.0, 5.0, 4.0), (2.0, 5.0, 4.0)]
    result = BenchResult(
        config=config,
        machine="a machine",
        on_cuda=True,
        mode="a mode",
        padded_tokens=64,
        n_tokens=1000,
        n_supervised=400,
        n_parameters=10**6,
        n_adapter=10**4,
        peak_flops=4e9,
        arms=tuple(Arm(name=f"arm {i}", seconds=times, peak_bytes=0) for i, times in enumerate(seconds)),
    )
    lines = format_table(result).splitlines()
    ratios = {line[:56].strip(): line[56:].split()[0] for line in lines if "goal on CUDA" in line and ":" not in line}
    assert ratios["published loop / ours, 1 target"] == "4.00"
    assert ratios["3 published passes / ours, 3 targets"] == "12.00"
    assert ratios["ours, 1 target / floor (ii)"] == "1.25"
    (arm,) = (line for line in lines if line.startswith("arm 3"))
    assert arm.split()[2:] == ["4.000", "250", "25.0%", "-"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("lengths.txt", "12 five\n", "must hold lines of"),
        ("lengths.txt", "12\n", "at least 2 tokens"),
        ("lengths.txt", "1 1\n", "at least 2 tokens"),
        ("pool.jsonl", "{}\n", "no row of"),
    ],
)
def test_lengths_that_cannot_be_used(tmp_path: Path, name: str, content: str, message: str) -> None:
    source = tmp_path / name
    source.write_text(content)
    with pytest.raises(DataError, match=message):
        module.random_examples(BenchConfig(rows=2, lengths=source))


def test_lengths_come_from_the_demo_pool_by_default() -> None:
    examples = module.random_examples(BenchConfig(rows=5, max_length=256))
    assert len(examples) == 5
    assert max(example.n_tokens for example in examples) <= 256
