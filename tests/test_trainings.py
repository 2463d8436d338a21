"""Trainings and losses on several workers: what one process gives, each done once, whatever happens to a worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from failing import FailingTraining
from gistselect.errors import GistSelectError
from gistselect.files import read_json
from gistselect.run.engine import Inline, Scheduled
from gistselect.run.local import LocalCrew, devices
from gistselect.run.progress import SilentReporter
from gistselect.run.scheduling import Limits
from gistselect.run.sources import Sources
from gistselect.run.store import Store
from gistselect.run.trainings import Trainings, shares_trainings, train_together
from gistselect.run.validate_config import ValidateConfig
from gistselect.run.validating import validate
from tiny_runs import WARMUP, RecordingReporter, row, run, write_rows


def failing(folder: Path, **more: Any) -> FailingTraining:
    return FailingTraining(artifact=Store(folder).artifact("train", 1, name=folder.name), folder=folder, **more)


@pytest.mark.parametrize("how", ["dies", "raises"])
def test_a_training_whose_worker_fails_is_done_by_another(tmp_path: Path, how: str) -> None:
    """However short a part of a pass may take: the time limit is none of theirs."""
    parts = tuple(failing(tmp_path / name) for name in "ab")
    parts = (*parts, failing(tmp_path / "c", how=how, seconds=1.0))
    reporter = RecordingReporter()
    engine = Scheduled(LocalCrew(devices("cpu:2", cuda=False)), Limits(seconds=0.5), quarantine=False)
    try:
        engine.run(Trainings(parts=parts), "trainings", reporter)
    finally:
        engine.close()
    assert all(part.artifact.is_complete for part in parts)
    assert [len(list(part.folder.glob("at-*"))) for part in parts] == [1, 1, 2]
    assert reporter.last["trainings"].done == reporter.last["trainings"].total == 12
    assert len([line for line in reporter.said if "failed" in line]) == 1


def test_a_training_that_is_missing_at_the_end_is_named(tmp_path: Path) -> None:
    job = Trainings(parts=(failing(tmp_path),))
    assert job.describe(0) == "the training on nothing"
    with pytest.raises(GistSelectError, match="the training on nothing is missing"):
        job.complete()
    assert not job.give_up(0, "it failed")


def test_the_same_training_is_done_once(tmp_path: Path) -> None:
    done: list[int] = []

    class Counting(Inline):
        def run(self, job: Any, name: str, reporter: Any) -> None:
            done.append(len(job.parts))
            super().run(job, name, reporter)

    parts: list[Any] = [failing(tmp_path), failing(tmp_path)]
    engine = Counting(Sources())
    assert not shares_trainings(engine), "one process trains one after the other, each with its own progress"
    train_together(parts, engine, SilentReporter())
    train_together(parts, engine, SilentReporter())
    assert done == [1]


def results(folder: Path) -> dict[str, bytes]:
    """Adapters and losses by their folders' names, which say what they are of."""
    found = [*folder.glob("artifacts/train-*/training/checkpoint-*/*.safetensors")]
    found += folder.glob("artifacts/losses-*/losses.parquet")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def judged(path: Path) -> list[Any]:
    """A comparison without what depends on the clock."""
    told = read_json(path / "comparison.json")
    return [[{**row, "cost": None} for row in one["rows"]] for one in told]


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2])
def test_arms_on_workers_are_those_of_one_process(config: dict[str, Any], tmp_path: Path, n: int) -> None:
    held = write_rows(tmp_path / "held.jsonl", [row(f"What is {i} and 5?", f"It is {i + 5}.") for i in range(6)])
    config |= {
        "representation": ("gist", "bm25"),
        "heldout": (str(held),),
        "evaluate": True,
        "finetune": {**WARMUP, "adapter": {"rank": 4, "alpha": 8, "dropout": 0.2}},
        "train_seeds": (0, 1),
        "baselines": ("random", "full"),
    }
    alone = run(config, output=tmp_path / "alone")
    reporter = RecordingReporter()
    shared = run(config, reporter, output=tmp_path / "local", engine="local", devices=f"cpu:{n}")
    assert results(shared) == results(alone)
    assert len(results(alone)) == 8 * 4 + 9, "two checkpoints with moments of each of eight trainings, and losses"
    assert judged(shared) == judged(alone)
    assert reporter.last["trainings"].done == reporter.last["trainings"].total
    assert reporter.last["target losses"].done == 9 * 6
    assert not [name for name in reporter.last if name.startswith("train on")], "nothing is left to this process"


@pytest.mark.slow
def test_a_validation_on_workers_is_that_of_one_process(config: dict[str, Any], tmp_path: Path) -> None:
    """Random subsets and removals are trained and measured by two workers: the same adapters, losses and verdicts."""
    held = write_rows(tmp_path / "held.jsonl", [row(f"What is {i} and 5?", f"It is {i + 5}.") for i in range(6)])
    values = {
        **config,
        "representation": ("bm25",),
        "heldout": (str(held),),
        "finetune": {**WARMUP, "epochs": 1, "adapter": {"rank": 2, "alpha": 4, "dropout": 0.2}},
        "train_seeds": (0, 1),
        "measures": ("lds", "qld"),
        "subsets": 5,
        "subset_share": 0.25,
        "removed_share": 0.5,
    }

    def found(name: str, reporter: SilentReporter, **more: Any) -> list[Any]:
        return validate(ValidateConfig.from_values({**values, **more, "output": tmp_path / name}), reporter)

    reporter = RecordingReporter()
    alone = found("alone", SilentReporter())
    shared = found("local", reporter, engine="local", devices="cpu:2")
    assert shared == alone
    assert [one.measure for one in alone] == ["LDS", "QLD"]
    assert results(tmp_path / "local") == results(tmp_path / "alone")
    assert reporter.last["trainings"].done == reporter.last["trainings"].total
    assert reporter.last["target losses"].done == 4 * 6, (
        "of QLD, the last: two seeds without the best rows, two without random ones"
    )
    assert not [name for name in reporter.last if name.startswith("train on")], "nothing is left to this process"
