"""A run folder has one writer; what was killed is continued, what changed underneath is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from gistselect.errors import ConfigError, DataError, GistSelectError
from gistselect.run.config import RunConfig
from gistselect.run.pipeline import execute
from gistselect.run.progress import SilentReporter
from tiny_runs import CONTRACT, RecordingReporter, contents, ids, row, run, write_rows

CHILD = """
import json, sys
from gistselect.run.config import RunConfig
from gistselect.run.pipeline import execute
from gistselect.run.progress import SilentReporter
execute(RunConfig.from_values(json.loads(sys.argv[1])), SilentReporter())
"""


def child(config: dict[str, Any]) -> subprocess.Popen[bytes]:
    """The same run in a process of its own, which can be killed with all it started."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", CHILD, json.dumps(config, default=str)]
    return subprocess.Popen(arguments, start_new_session=True, env=environment)


def test_two_processes_give_what_one_gives(config: dict[str, Any], tmp_path: Path) -> None:
    alone = run(config, output=tmp_path / "alone")
    first, second = child(config), child(config)
    assert (first.wait(), second.wait()) == (0, 0)
    assert contents(config["output"]) == contents(alone)
    assert not list(config["output"].rglob("*.part"))


@pytest.mark.parametrize(
    "when",
    [
        "features-*",
        *(pytest.param(f"{stage}-*", marks=pytest.mark.slow) for stage in ("warmup", "fit", "scores", "selection")),
    ],
)
def test_a_killed_run_continues_to_identical_files(config: dict[str, Any], tmp_path: Path, when: str) -> None:
    """SIGKILL as soon as the stage has begun; temporary files of the killed writer are cleared away."""
    alone = run(config, output=tmp_path / "alone")
    process = child(config)
    while process.poll() is None and not list(config["output"].glob(f"artifacts/{when}")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (config["output"] / "artifacts" / ".left.123-0123abcd.part").write_text("half")
    run(config)
    assert contents(config["output"]) == contents(alone)
    assert not list(config["output"].rglob("*.part"))


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_asked_to_stop_says_what_is_kept(config: dict[str, Any], tmp_path: Path, sent: int) -> None:
    options = [f"--{name.replace('_', '-')}={config[name]}" for name in ("output", "budget")]
    sources = ["--pool", config["pool"][0], "--target", config["target"][0], "--representation", "bm25"]
    slow = "import time, gistselect.run.scoring as s; s.Score.run = lambda *a: time.sleep(60)"
    arguments = [sys.executable, "-c", f"{slow}; from gistselect.cli import main; main()", "run", *sources, *options]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, start_new_session=True)
    while process.poll() is None and not list(config["output"].glob("artifacts/features-*/complete.json")):
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(sent)
    _, said = process.communicate()
    assert process.returncode == 130
    assert b"Finished stages and shards are kept" in said
    assert not list(config["output"].rglob("*.part"))


def test_a_busy_folder_is_refused_or_waited_for(config: dict[str, Any]) -> None:
    config["output"].mkdir()
    with FileLock(config["output"] / ".lock"), pytest.raises(GistSelectError, match="another process"):
        run(config, if_busy="refuse")
    assert not (config["output"] / "run.yaml").exists()


def test_a_pool_that_changed_after_it_was_scored_stops_with_its_name(
    config: dict[str, Any], pool_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change comes between scoring and selection of one command, so the plan cannot see it."""
    from gistselect.run.scoring import Score

    score = Score.run

    def then_edit(self: Score, reporter: Any) -> None:
        score(self, reporter)
        lines = pool_file.read_bytes().split(b"\n")
        pool_file.write_bytes(b"\n".join(lines[1:]) + b"\n" + lines[0])

    monkeypatch.setattr(Score, "run", then_edit)
    with pytest.raises(DataError, match=r"pool\.jsonl changed"):
        run(config)
    assert not (config["output"] / "selected.jsonl").exists()


def test_a_changed_pool_is_another_pool(config: dict[str, Any], pool_file: Path) -> None:
    run(config)
    lines = pool_file.read_bytes().split(b"\n")
    pool_file.write_bytes(b"\n".join(lines[5:]))
    again = run(config)
    known = {json.loads(line)["id"] for line in lines[5:] if b"row-" in line}
    assert set(ids(again / "selected.jsonl")) <= known


def test_a_run_folder_inside_the_pool_folder_is_not_read_as_pool(
    config: dict[str, Any], pool_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    pool_file.rename(folder / "pool.jsonl")
    inside = {**config, "pool": (str(folder),), "output": folder / "run"}
    first = contents(run(inside))
    reporter = RecordingReporter()
    assert contents(run(inside, reporter)) == first
    assert list(reporter.last) == []


def test_a_damaged_artifact_is_named_and_never_used(config: dict[str, Any]) -> None:
    output = run(config)
    for pattern in ("scores-*/scores.parquet", "features-*/shard-*.parquet", "fit-*/fit/arrays.safetensors"):
        path = next(output.glob(f"artifacts/{pattern}"))
        whole = path.read_bytes()
        path.unlink()
        path.write_bytes(whole[: len(whole) // 2])
        if not pattern.startswith("scores"):
            next(output.glob("artifacts/scores-*/complete.json")).unlink()
        with pytest.raises(GistSelectError, match=path.name):
            run(config, budget=11)
        path.write_bytes(whole)
        run(config)


def test_the_configuration_is_replaced_only_by_one_that_worked(config: dict[str, Any]) -> None:
    output = run(config)
    before = (output / "run.yaml").read_bytes()
    for changes in ({"target": ("gsm9k",)}, {"budget": 51}):
        with pytest.raises(GistSelectError):
            run(config, **changes)
    assert (output / "run.yaml").read_bytes() == before
    run(config, until="score", if_busy="refuse")
    assert (output / "run.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate": True}, "--heldout FILE"),
        # Asking lm-eval whether it knows a name reads its index of 10,000 files.
        pytest.param(
            {"evaluate": True, "heldout": ("HELDOUT",), "evaluate_tasks": ("gsm9k",)}, "gsm9k", marks=pytest.mark.slow
        ),
        ({"adapter": "nowhere"}, "nowhere"),
        ({"model": None}, "--model"),
        ({"template": "tulip"}, "tulip"),
    ],
)
def test_what_can_be_known_before_the_work_is_said_before_it(
    config: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    heldout = write_rows(tmp_path / "heldout.jsonl", [row("What is 8 and 3?", "The answer is 11.")])
    changes = {name: (str(heldout),) if value == ("HELDOUT",) else value for name, value in changes.items()}
    with pytest.raises(GistSelectError, match=message):
        run(config, **changes)
    assert not list(config["output"].glob("artifacts/*"))
    assert not (config["output"] / "run.yaml").exists()


def test_an_output_that_cannot_be_a_folder_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--output"):
        run(config, output=tmp_path / "file")


def test_files_of_the_contract_are_complete_when_they_are_there(config: dict[str, Any]) -> None:
    assert {path.name for path in run(config).iterdir()} >= CONTRACT


def test_a_folder_made_from_a_live_model_says_so(config: dict[str, Any]) -> None:
    values = {**config, "model": "<live model>"}
    with pytest.raises(ConfigError, match="live model"):
        execute(RunConfig.from_values(values), SilentReporter())


def test_what_a_run_did_not_write_stays(config: dict[str, Any]) -> None:
    """A folder that holds other things: sources in a `methods/` of one's own, files that end as temporary ones do."""
    folder = config["output"]
    mine = {
        "methods/solver/solver.py": "x = 1",
        "methods/bm25/notes.txt": "keep",
        "work/.draft.part": "half a draft",
        "work/.data.12-0123abcd.part": "of another tool's folder",
        ".song.part": "a part of a song",
    }
    for name, text in mine.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    outside = folder.parent / "elsewhere"
    outside.mkdir()
    (outside / "selected.jsonl").write_text("of another run")
    (folder / "methods" / "linked").symlink_to(outside)
    run(config, representation=("bm25", "length"))
    assert (folder / "methods" / "length" / "selected.jsonl").is_file()
    run(config, representation=("length", "bm25"))
    assert not (folder / "methods" / "length").exists()
    run(config, representation=("length",))
    assert {name: (folder / name).read_text() for name in mine} == mine
    assert not (folder / "methods" / "bm25" / "selected.jsonl").exists()
    assert (outside / "selected.jsonl").read_text() == "of another run"


@pytest.mark.parametrize("name", ["manifest.json", "report.html", "scores.parquet", "queries.jsonl"])
def test_a_file_that_no_run_wrote_is_not_replaced(config: dict[str, Any], name: str) -> None:
    config["output"].mkdir()
    (config["output"] / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"holds '{name}' but no run.yaml"):
        run(config, representation=("bm25",))
    assert (config["output"] / name).read_text() == "mine"
