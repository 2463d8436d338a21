"""Training in several processes: the rows and weights of a single one, and one of them alone speaks and writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from gistselect import cli
from gistselect.__main__ import main
from gistselect.errors import ConfigError
from gistselect.files import read_json
from gistselect.model.adapters import adapter_parameters
from gistselect.model.config import ModelConfig
from gistselect.run.events import EVENTS
from gistselect.training import ranks
from gistselect.training.checkpoints import RECEIPT
from gistselect.training.recipe import TrainingConfig, epoch_order
from gistselect.training.sharding import sharded
from gistselect.training.train import train
from gistselect.training.trainer import _EpochSampler, _Rows
from tiny_models import FAMILIES, examples, language_model
from tiny_runs import WARMUP, row, write_rows

EPOCHS = 3
TRAINING = {**WARMUP, "epochs": EPOCHS, "device_batch_size": 1, "adapter": {"rank": 4, "alpha": 8, "dropout": 0.0}}
"""Four rows a step, and no dropout, whose draws are each process's own."""
TOLERANCE = 1e-5
"""Largest length of a weight's difference between one process and two, relative to the weight, in float32."""
TOLERANCE_BFLOAT16 = 0.02
"""The same where losses are computed in bfloat16, of which one rounding is 0.004."""


def options(config: dict[str, Any], output: Path, **changes: Any) -> list[str]:
    """The options as a file, on the command line."""
    path = output.with_suffix(".yaml")
    given = {**config, "warmup": TRAINING, "warmup_checkpoints": [EPOCHS], **changes}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    path.write_text(yaml.safe_dump({**plain, "output": str(output)}), encoding="utf-8")
    return ["--config", str(path), "--output", str(output)]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """A command in two processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {name: value for name, value in os.environ.items() if name not in ranks.VARIABLES}
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "gistselect", *arguments],
        env={**environment, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What the command said; it succeeded."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def said_beside_one(together: list[str], alone: list[str]) -> str:
    """What a command in two processes says, while this one does another alone."""
    process = start(together)
    cli.main(alone)
    return finished(process)


def training_of(output: Path) -> Path:
    (folder,) = output.glob("artifacts/warmup-*/training")
    return folder


def assert_close(found: Path, expected: Path, tolerance: float = TOLERANCE) -> None:
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert float((ours[name] - tensor).norm() / tensor.norm()) < tolerance, name


def test_two_processes_train_what_one_trains(config: dict[str, Any], tmp_path: Path) -> None:
    """17 rows leave a last step of a single one, of which the second process has none."""
    config["warmup_share"] = 0.33
    alone, together = tmp_path / "alone", tmp_path / "together"
    said = said_beside_one(["warmup", *options(config, together)], ["warmup", *options(config, alone)])
    one, two = training_of(alone), training_of(together)
    assert [path.name for path in one.glob("checkpoint-*")] == [path.name for path in two.glob("checkpoint-*")]
    for checkpoint in one.glob("checkpoint-*"):
        assert_close(two / checkpoint.name, checkpoint)
    curves = [np.array(read_json(folder / "curve.json")) for folder in (one, two)]
    np.testing.assert_allclose(*curves, rtol=1e-5)
    written = [{path.name for path in folder.rglob("*")} for folder in (alone / "artifacts", together / "artifacts")]
    assert written[0] == written[1]
    assert said.count("Results are in") == said.count("Warm-up: ") == 1


@pytest.mark.slow
def test_a_killed_process_costs_what_followed_the_last_epoch(config: dict[str, Any], tmp_path: Path) -> None:
    """Training again gives the same bits as training undisturbed, with dropout too, and wherever frozen weights lie."""
    config["warmup_share"] = 1.0
    training = {**TRAINING, "epochs": 2, "adapter": {"rank": 4, "alpha": 8, "dropout": 0.3}}
    whole = tmp_path / "whole"
    finished(start(["warmup", *options(config, whole, warmup=training, warmup_checkpoints=[2])]))
    for name, more in (("broken", {}), ("in pieces", {"fsdp": True, "gradient_checkpointing": True})):
        broken = tmp_path / name
        arguments = ["warmup", *options(config, broken, warmup={**training, **more}, warmup_checkpoints=[2])]
        process = start(arguments)
        kill_second_after_an_epoch(process, broken)
        said, _ = process.communicate(timeout=300)
        assert process.returncode
        assert "lost one of its 2 processes" in said or "SIGTERM" in said, said
        receipt = read_json(training_of(broken) / RECEIPT)
        assert list(receipt["written"]) == ["checkpoint-13"]
        finished(start(arguments))
        for checkpoint in training_of(whole).glob("checkpoint-*"):
            for file in ("adapter_model.safetensors", "moments.safetensors"):
                found = training_of(broken) / checkpoint.name / file
                assert found.read_bytes() == (checkpoint / file).read_bytes(), found


def kill_second_after_an_epoch(process: subprocess.Popen[str], output: Path) -> None:
    """End the second process by force once the first epoch's checkpoint is written."""
    for _ in range(3000):
        receipts = list(output.glob(f"artifacts/warmup-*/training/{RECEIPT}"))
        if receipts and read_json(receipts[0]).get("written"):
            break
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (second,) = [one for one in children if b"\0RANK=1\0" in Path(f"/proc/{one}/environ").read_bytes()]
    os.kill(int(second), signal.SIGKILL)


@pytest.mark.slow
def test_every_training_of_a_run_is_shared(config: dict[str, Any], tmp_path: Path) -> None:
    """Warm-up, arms, and the trainings within a representation, which stay with the first process."""
    held = write_rows(tmp_path / "held.jsonl", [row(f"What is {i} and 5?", f"It is {i + 5}.") for i in range(6)])
    changes = {
        "representation": ["gist", "loss_drop"],
        "heldout": [str(held)],
        "evaluate": True,
        "finetune": TRAINING,
        "train_seeds": [0],
    }
    alone, together = tmp_path / "alone", tmp_path / "together"
    said = said_beside_one(["run", *options(config, together, **changes)], ["run", *options(config, alone, **changes)])
    assert (alone / "selected.jsonl").read_bytes() == (together / "selected.jsonl").read_bytes()
    ours, theirs = ([row["interval"]["mean"] for row in read_json(folder / "comparison.json")[0]["rows"]]
                    for folder in (together, alone))  # fmt: skip
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    # Its line is not printed of what takes no time; the events of the run tell every step.
    events = [json.loads(line) for line in (together / EVENTS).read_text(encoding="utf-8").splitlines()]
    begun = [event["step"] for event in events if event["event"] == "step begins"]
    assert len([step for step in begun if "train on random rows" in step]) == 1
    assert said.count("Results are in") == 1


@pytest.mark.slow
def test_an_error_of_the_first_process_is_said_once(config: dict[str, Any], tmp_path: Path) -> None:
    config["warmup_share"] = 0.33
    uneven = {**TRAINING, "global_batch_size": 3}
    said, _ = (process := start(["warmup", *options(config, tmp_path / "run", warmup=uneven)])).communicate(timeout=300)
    assert process.returncode
    assert said.count("global_batch_size=3 cannot be shared by 2 devices") == 1


@pytest.mark.parametrize("n", [8, 13, 16, 21])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_row_of_an_epoch_is_read_once(n: int, processes: int) -> None:
    """What fills the last batches up teaches nothing, and is no row."""
    lengths, multiple = [5] * n, 4 * processes
    sampler = _EpochSampler(lengths, 12, seed=0, multiple=multiple)
    sampler.set_epoch(2)
    order = list(sampler)
    assert order[:n] == epoch_order(lengths, global_batch_size=12, seed=0, epoch=2)
    assert set(order[n:]) <= {n}
    assert len(order) == len(sampler)
    assert len(order) % multiple == 0
    assert len(order) - n < multiple
    rows = _Rows(examples())
    assert rows[len(rows)]["labels"] == [-100, -100]


def test_a_process_among_several_that_nobody_leads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks.current() is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun"):
        ranks.current()


def test_an_environment_of_several_processes_that_is_not_whole_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As some schedulers set it, without anyone who would answer."""
    for name in ranks.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "not RANK" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "recomputed", "tolerance"),
    [("float32", False, TOLERANCE), ("bfloat16", True, TOLERANCE_BFLOAT16)],
)
def test_frozen_weights_in_pieces_train_the_same_adapter(
    config: dict[str, Any], tmp_path: Path, dtype: str, recomputed: bool, tolerance: float
) -> None:
    """FSDP2 in two processes, with recomputed activations too, against one process that holds all."""
    config |= {"warmup_share": 0.33, "dtype": dtype}
    alone, together = tmp_path / "alone", tmp_path / "together"
    changes = {"warmup": {**TRAINING, "fsdp": True, "gradient_checkpointing": recomputed}}
    said = said_beside_one(["warmup", *options(config, together, **changes)], ["warmup", *options(config, alone)])
    one, two = training_of(alone), training_of(together)
    assert len(list(one.glob("checkpoint-*"))) == EPOCHS
    for checkpoint in one.glob("checkpoint-*"):
        assert_close(two / checkpoint.name, checkpoint, tolerance)
        files = [{path.name for path in folder.iterdir()} for folder in (checkpoint, two / checkpoint.name)]
        assert files[0] == files[1]
    assert said.count("Warm-up: ") == 1


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_what_is_frozen_lies_in_pieces_and_the_adapter_whole() -> None:
    """Every weight but the adapter's; losses and gradients are what they were, to the bit."""
    ids = torch.arange(12)[None]
    found = []
    for shared in (False, True):
        adapted = language_model(FAMILIES["llama-tied"])
        own = adapter_parameters(adapted.model)
        for name, value in adapted.model.named_parameters():
            value.requires_grad_(name in own)
        if shared:
            adapted = sharded(adapted, adapted.device)
            kinds = {name: isinstance(value, DTensor) for name, value in adapted.model.named_parameters()}
            assert {name for name, in_pieces in kinds.items() if not in_pieces} == own.keys()
            assert kinds.keys() - own.keys() <= set(adapted.model._ddp_params_and_buffers_to_ignore)
        loss = adapted.model(input_ids=ids, labels=ids).loss
        loss.backward()
        found.append([loss.detach(), *(value.grad for value in adapter_parameters(adapted.model).values())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_what_cannot_be_in_pieces_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    recipe = TrainingConfig(fsdp=True)
    model = ModelConfig(path=str(tiny_model), device="cpu")
    for refused, training, message in (
        (model, recipe.model_copy(update={"full": True}), "full=true freezes none"),
        (model.model_copy(update={"quantization": "4bit"}), recipe, "cannot share out quantized weights"),
        (language_model(FAMILIES["llama"]), recipe, "of a folder or hub id"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(refused, examples(), training, output=tmp_path / "none", seed=0)
    assert not (tmp_path / "none").exists()


def test_keys_of_before_stay_what_they_were() -> None:
    assert "fsdp" not in TrainingConfig().model_dump(mode="json")
    assert TrainingConfig.model_validate(TrainingConfig(fsdp=True).model_dump(mode="json")).fsdp
