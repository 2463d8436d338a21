"""Two commands on one folder, in every pair of stages: the second waits, refuses in a sentence, or reads what is whole.

One real process runs with every stage, then again with another budget, and stops at the beginning of each stage until
it is told to go on; meanwhile every other command is given on its folder.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from gistselect.cli import main
from gistselect.files import replacing, write_json
from gistselect.run.steady import steady
from test_disk import STAGES, TRAINED, everything_of
from tiny_runs import WARMUP, row, run, write_rows

HELD = """
import json, sys
from gistselect.run import pipeline
from gistselect.run.config import RunConfig
from gistselect.run.progress import SilentReporter
from gistselect.run.store import Artifact

seen = set()
def stop(name):
    if name not in seen:
        seen.add(name)
        print(name, flush=True)
        sys.stdin.readline()

def begin(artifact, before=Artifact.begin):
    before(artifact)
    stop(artifact.folder.name.rpartition("-")[0])

def publish(method, overlap, before=pipeline.publish_selection):
    before(method, overlap)
    stop("published")

Artifact.begin, pipeline.publish_selection = begin, publish
for values in json.loads(sys.argv[1]):
    seen.clear()
    pipeline.execute(RunConfig.from_values(values), SilentReporter())
    stop("done")
"""
AT_WORK = "another process is at work in"


class WaitedError(Exception):
    """A command was about to wait for the lock."""


@pytest.fixture
def everything(config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    heldout = write_rows(tmp_path / "heldout.jsonl", [row("What is 8 and 3?", "The answer is 11.")])
    small = {"evaluate": True, "heldout": (str(heldout),), "train_seeds": (0,), "finetune": WARMUP}
    return {**config, "representation": ("gist", "bm25"), **small}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that would be waited for says so instead."""
    acquire = FileLock.acquire

    def asked(lock: FileLock, *args: Any, **options: Any) -> Any:
        if "timeout" not in options:
            raise WaitedError
        return acquire(lock, *args, **options)

    monkeypatch.setattr(FileLock, "acquire", asked)


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What became of a command (done, refused or waits), and all that it said."""
    capsys.readouterr()
    try:
        main(arguments)
        end = "done"
    except SystemExit as ended:
        end = {0: "done", 2: "refused"}.get(ended.code, f"status {ended.code}")  # pyright: ignore[reportArgumentType]
    except WaitedError:
        end = "waits"
    told = capsys.readouterr()
    return end, " ".join((told.out + told.err).split())


def writers(config: dict[str, Any]) -> dict[str, list[str]]:
    """Commands that write into the folder: what each is to do there, waiting or refusing."""
    folder = str(config["output"])
    inputs = ["--model", config["model"], "--pool", *config["pool"], "--target", *config["target"], "--output", folder]
    inputs += ["--heldout", *config["heldout"], "--representation", "bm25"]
    output = ["--output", folder]
    refusing = [*inputs, "--if-busy", "refuse"]
    commands = {
        name: [name, *refusing]
        for name in ("run", "warmup", "features", "score", "select", "plan", "compare", "validate")
    }
    return {
        **commands,
        "run that waits": ["run", *inputs],
        "train on any rows": ["train", "--model", config["model"], "--data", *config["pool"], "--output", folder],
        "evaluate any model": ["evaluate", "--model", config["model"], "--tasks", *config["heldout"], *output],
        "clean": ["clean", folder, "--keep", "scores", "--yes"],
        "train": ["train", "--run", folder],
        "evaluate": ["evaluate", "--run", folder],
    }


def readers(folder: Path, aside: Path) -> dict[str, list[str]]:
    """Commands that look."""
    return {
        "report": ["report", str(folder), "--output", str(aside / "page.html")],
        "explain": ["explain", str(folder), "--row", "0"],
        "spectrum": ["spectrum", str(folder)],
        "export": ["export", str(folder), "--to", "trl", "--output", str(aside / "trl")],
    }


def looked(folder: Path, aside: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What every reader made of a folder; None if it was refused because another is at work."""
    found: dict[str, Any] = {}
    for name, command in readers(folder, aside).items():
        end, told = said(command, capsys)
        if end == "refused":
            assert AT_WORK in told, (name, told)
            assert str(folder) in told
            assert "wait for it, then give the same command again" in told
            found[name] = None
            continue
        assert end == "done", (name, end, told)
        found[name] = told
        if name == "report":
            found[name] = (aside / "page.html").read_bytes()
        if name == "export":
            found[name] = {path.name: path.read_bytes() for path in sorted((aside / "trl").iterdir())}
    return found


def refused_or_waits(name: str, became: tuple[str, str], folder: Path) -> None:
    """What must become of a command that writes."""
    end, told = became
    if name in ("clean", "train", "evaluate") and AT_WORK not in told and end == "refused":
        # There is no selection yet to clean around, or not even run.yaml.
        assert re.search(r"holds no selection|is not a run folder|does not hold its scores", told), (name, told)
        return
    waits = name.startswith(("train", "evaluate", "run that"))
    assert end == ("waits" if waits else "refused"), (name, told)
    assert AT_WORK in told.replace("Another", "another"), (name, told)
    assert str(folder) in told, (name, told)


@pytest.mark.slow
def test_a_second_command_at_every_stage_of_the_first(
    everything: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], waits: None
) -> None:
    folder, aside = everything["output"], tmp_path / "aside"
    child = subprocess.Popen(
        [sys.executable, "-c", HELD, json.dumps([everything, {**everything, "budget": 11}], default=str)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    stages: list[str] = []
    before: dict[str, Any] = {}
    seen: list[tuple[str, str, Any]] = []
    try:
        for line in child.stdout:
            stages.append(stage := line.strip())
            found = looked(folder, aside, capsys)
            if stage == "done":
                assert None not in found.values()
                # What was read meanwhile is the state before this run, or after it.
                mixed = [(at, name) for at, name, value in seen if value not in (before.get(name), found[name])]
                assert mixed == []
                before, seen = found, []
            else:
                seen += [(stage, name, value) for name, value in found.items() if value is not None]
                for name, command in writers(everything).items():
                    refused_or_waits(name, said(command, capsys), folder)
            child.stdin.write("\n")
            child.stdin.flush()
        assert child.wait() == 0
    finally:
        child.kill()
    first, second = (set(part.split()) for part in " ".join(stages).split("done")[:2])
    assert first == STAGES | TRAINED | {"published"}
    assert second >= {"selection", "overlap", "stability", "arm", "train", "published"}
    alone = {**everything, "output": tmp_path / "alone"}
    run(alone)
    assert everything_of(run(alone, budget=11)) == everything_of(folder)
    assert not list(folder.rglob("*.part"))


@pytest.mark.slow
def test_the_same_command_twice_at_the_same_instant(everything: dict[str, Any], tmp_path: Path) -> None:
    """Processes that are let go together, once both have loaded all."""
    first = "import sys; import gistselect.run.pipeline; sys.stdin.readline(); "
    alone = run(everything, output=tmp_path / "alone")
    command = [sys.executable, "-c", first + HELD.replace("sys.stdin.readline()\n", "pass\n")]
    command.append(json.dumps([everything], default=str))
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(3)]
    for child in children:
        assert child.stdin
        child.stdin.write(b"\n")
        child.stdin.flush()
    assert [child.wait() for child in children] == [0, 0, 0]
    assert everything_of(everything["output"]) == everything_of(alone)
    assert not list(everything["output"].rglob("*.part"))


def test_every_other_command_beside_one_that_is_at_work(
    everything: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], waits: None
) -> None:
    """The lock alone, on a finished folder: writers wait or refuse, readers read what is whole."""
    folder = run(everything, evaluate=False)
    before = everything_of(folder)
    with FileLock(folder / ".lock").acquire(timeout=0):
        for name, command in writers(everything).items():
            refused_or_waits(name, said(command, capsys), folder)
        assert None not in looked(folder, tmp_path / "aside", capsys).values()
    assert everything_of(folder) == before


def change(folder: Path) -> None:
    write_json(folder / "manifest.json", {"new": 1})


def change_a_method(folder: Path) -> None:
    with replacing(folder / "methods" / "bm25" / "selection.parquet") as part:
        part.write_bytes(b"new")


@pytest.mark.parametrize("changed", [change, change_a_method])
def test_what_changed_while_it_was_read_is_not_used(tmp_path: Path, changed: Callable[[Path], None]) -> None:
    change(tmp_path)
    change_a_method(tmp_path)
    with steady(tmp_path):
        (tmp_path / "report.html").write_text("made of the others")
    with pytest.raises(Exception, match=AT_WORK), steady(tmp_path):
        changed(tmp_path)
