"""A disk that is full, limited or read-only, at any stage: a sentence with the remedy, and later the same bytes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gistselect.cli import main
from gistselect.errors import GistSelectError
from gistselect.files import writable
from gistselect.run import pipeline
from tiny_runs import WARMUP, RecordingReporter, contents, row, run, write_rows

REMEDY = "Make room or make the folder writable, then give the same command again"
STAGES = {"records", "tokens", "warmup", "fit", "features", "measured", "scores", "selection", "overlap", "stability"}
TRAINED = {"arm", "train", "losses"}


@pytest.fixture
def everything(config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run with every stage, and methods that read gradients and text."""
    heldout = write_rows(tmp_path / "heldout.jsonl", [row("What is 8 and 3?", "The answer is 11.")])
    return {
        **config,
        "representation": ("gist", "less:dimension=64", "bm25"),
        "evaluate": True,
        "heldout": (str(heldout),),
        "train_seeds": (0,),
        "finetune": WARMUP,
    }


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """What a quota does: no file of this process may grow beyond `size` bytes (EFBIG)."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(folder: Path, size: str, options: str = "") -> Iterator[None]:
    """A file system of this size in the folder; the test is skipped where nobody may mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Give a small disk other options."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def everything_of(folder: Path) -> dict[str, Any]:
    """What must be the same of two runs with every stage: results, and every artifact's files."""
    found: dict[str, Any] = dict(contents(folder))
    for path in sorted((folder / "artifacts").rglob("*")):
        if path.suffix in (".parquet", ".safetensors") and path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def stage_of(error: pytest.ExceptionInfo[GistSelectError]) -> str:
    """The stage whose artifact could not be written, or the file of the run folder."""
    place = re.findall(r"cannot write (\S+):", str(error.value))[0]
    found = re.findall(r"/artifacts/(\w+)-", place)
    return found[0] if found else Path(place).name


def test_no_library_that_writes_ends_in_a_traceback(everything: dict[str, Any], tmp_path: Path) -> None:
    """A limit that grows stops the run at ever larger files: Arrow's, safetensors' and torch's."""
    everything["evaluate"] = False
    alone = run(everything, output=tmp_path / "alone")
    largest = {
        artifact.name.rpartition("-")[0]: max(path.stat().st_size for path in artifact.rglob("*") if path.is_file())
        for artifact in (alone / "artifacts").iterdir()
    }
    stopped = []
    for stage in ("records", "warmup", "fit"):
        with largest_file(largest[stage] - 1), pytest.raises(GistSelectError, match=REMEDY) as error:
            run(everything)
        stopped.append(stage_of(error))
    assert stopped[:2] == ["records", "warmup"]
    assert everything_of(run(everything)) == everything_of(alone)


@pytest.mark.slow
def test_a_worker_without_room_is_not_asked_again(config: dict[str, Any], tmp_path: Path) -> None:
    alone = run(config, output=tmp_path / "alone")
    run(config, until="warmup")
    with largest_file(5000), pytest.raises(GistSelectError, match=REMEDY):
        run(config, engine="local", devices="cpu:1")
    assert contents(run(config, engine="local", devices="cpu:1")) == contents(alone)


@pytest.mark.slow
def test_a_disk_that_is_full_at_one_stage_after_the_other(everything: dict[str, Any], tmp_path: Path) -> None:
    """The folder of an artifact is a disk of one page, which its description fills."""
    alone = run(everything, output=tmp_path / "alone")
    first_of: dict[str, str] = {}
    for path in sorted((alone / "artifacts").iterdir(), key=lambda path: (path / "inputs.json").stat().st_mtime_ns):
        first_of.setdefault(path.name.rpartition("-")[0], path.name)
    assert first_of.keys() == STAGES | TRAINED
    for stage, name in first_of.items():
        folder = everything["output"] / "artifacts" / name
        with small_disk(folder, "4k"), pytest.raises(GistSelectError, match=REMEDY) as error:
            run(everything)
        assert stage_of(error) == stage
    assert everything_of(run(everything)) == everything_of(alone)
    assert not list(everything["output"].rglob("*.part"))


@pytest.mark.slow
def test_a_small_disk_that_is_made_larger_until_all_fits(everything: dict[str, Any], tmp_path: Path) -> None:
    alone = run(everything, output=tmp_path / "alone")
    output, stopped = everything["output"], []
    with small_disk(output, "64k"):
        for size in range(128, 4096, 160):
            try:
                run(everything)
                break
            except GistSelectError as error:
                stopped.append(str(error))
                remount(output, f"size={size}k")
        assert len(stopped) > 2
        assert all(REMEDY in said for said in stopped)
        assert everything_of(output) == everything_of(alone)


def test_a_read_only_folder_is_refused_before_the_work(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--pool", *config["pool"], "--target", *config["target"], "--representation", "bm25"]
    arguments += ["--budget", "10", "--output", str(config["output"])]
    with small_disk(config["output"], "1m"):
        remount(config["output"], "ro")
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "cannot be written to; choose another folder or change its permissions" in said
        assert list(config["output"].iterdir()) == []
        remount(config["output"], "rw")
        main(arguments)
        assert (config["output"] / "selected.jsonl").is_file()


def test_a_disk_that_becomes_full_is_said_by_the_command(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--pool", *config["pool"], "--target", *config["target"], "--representation", "bm25"]
    with largest_file(3000), pytest.raises(SystemExit) as ended:
        main([*arguments, "--budget", "10", "--output", str(config["output"])])
    assert ended.value.code == 2
    assert REMEDY in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("a number")])
def test_a_page_that_cannot_be_written_fails_no_run(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refused(folders: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline, "report_of", refused)
    reporter = RecordingReporter()
    output = run(config, reporter, representation=("bm25",))
    (said,) = [text for text in reporter.said if text.startswith("Warning")]
    assert "report.html could not be written" in said
    assert f"gistselect report {output}" in said
    assert (output / "manifest.json").is_file()
    monkeypatch.undo()
    main(["report", str(output)])
    assert (output / "report.html").is_file()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 20224 vs 20112"), "disk is full"),
        (RuntimeError("basic_ios::clear: iostream error"), "disk is full"),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left"),
        (PermissionError(13, "Permission denied"), None),
        (FileNotFoundError(2, "No such file"), None),
        (RuntimeError("shapes do not match"), None),
        (Exception("Error while serializing: I/O error: broken pipe (os error 32)"), None),
    ],
)
def test_what_counts_as_no_room(tmp_path: Path, error: Exception, said: str | None) -> None:
    with pytest.raises(GistSelectError if said else type(error), match=said), writable(tmp_path / "results"):
        raise error


def test_what_took_time_is_not_worth_an_error(tmp_path: Path) -> None:
    from gistselect.run.store import Store

    artifact = Store(tmp_path).artifact("records", 1)
    artifact.begin()
    with largest_file(0):
        artifact.spend(seconds=1.0)
    assert artifact.spent == {}
