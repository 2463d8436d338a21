"""Cleaning: what goes, what stays, and that what stays is enough for what was promised."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from gistselect.cli import main
from gistselect.errors import ArtifactMismatchError, ConfigError
from gistselect.run.cleaning import find_removals, remove, size
from gistselect.run.finished import FinishedRun
from gistselect.run.lock import LOCK
from gistselect.run.reasons import SHARED_WORDS, Explainer
from tiny_runs import RecordingReporter, contents, row, run, text_run, write_rows

SMALL = {"inputs.json", "seconds.jsonl", "curve.json"}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def held(folder: Path, stage: str) -> set[str]:
    """Names of the files in the artifacts of a stage."""
    return {path.name for path in folder.glob(f"artifacts/{stage}-*/**/*") if path.is_file()}


def unshared(folder: Path) -> int:
    """Bytes of files with one name; what is only noted of an artifact does not count."""
    states = (path.stat() for path in folder.rglob("*") if path.is_file() and path.name not in SMALL)
    return sum(state.st_size for state in states if state.st_nlink == 1)


@pytest.fixture
def cheap(tmp_path: Path) -> dict[str, Any]:
    """A run that needs no model."""
    return text_run(tmp_path)


def test_another_selection_after_cleaning_needs_no_pass(config: dict[str, Any], tmp_path: Path) -> None:
    values = {**config, "representation": ("gist", "bm25")}
    whole = run(values, output=tmp_path / "whole")
    output = run(values, rank=3)
    run(values)
    spectrum = (output / "spectrum.svg").read_bytes()
    assert len(list(output.glob("artifacts/scores-*"))) == 3
    cleaning = find_removals(output, "scores")
    before = unshared(output)
    remove(cleaning)
    assert before - unshared(output) == cleaning.bytes > 0
    for stage in ("features", "measured", "fit", "warmup"):
        assert held(output, stage) <= SMALL, stage
    assert len(list(output.glob("artifacts/scores-*/scores.parquet"))) == 2, "those of rank 3 are gone"
    assert contents(output) == contents(whole)
    reporter = RecordingReporter()
    run(values, reporter, budget=7)
    assert list(reporter.last) == []
    assert not any("Warm-up" in line for line in reporter.said)
    assert pq.read_table(output / "selection.parquet").num_rows == 7
    assert (output / "spectrum.svg").read_bytes() == spectrum
    assert json.loads((output / "subspace.json").read_text())
    first = (whole / "selected.jsonl").read_bytes().splitlines()[:7]
    assert (output / "selected.jsonl").read_bytes().splitlines() == first
    page = (output / "report.html").read_text()
    assert "Features of rows are no longer stored" in page
    assert Explainer(FinishedRun.open(output)).find(id=json.loads(first[0])["id"]).nearest.how == SHARED_WORDS


def test_what_is_missing_is_made_again_when_something_needs_it(config: dict[str, Any], tmp_path: Path) -> None:
    whole = run(config, output=tmp_path / "whole", rank=3)
    output = run(config)
    remove(find_removals(output, "scores"))
    run(config, rank=3)
    assert contents(output) == contents(whole)


def test_a_selector_that_reads_features_has_them_made_again(config: dict[str, Any]) -> None:
    output = run(config)
    remove(find_removals(output, "scores"))
    reporter = RecordingReporter()
    run(config, reporter, selector="k_center")
    assert "pool gradients at epoch 1 (GIST)" in reporter.last


def test_a_comparison_after_cleaning_knows_its_trainings_and_costs(config: dict[str, Any], tmp_path: Path) -> None:
    items = [row(f"What is {n} and 4?", f"The answer is {n + 4}.", group="ab"[n % 2]) for n in range(4)]
    items += [row("Which is less?", "小さい", group="c")]
    heldout = (str(write_rows(tmp_path / "heldout.jsonl", items)),)
    values = {**config, "evaluate": True, "heldout": heldout, "train_seeds": (0,), "finetune": config["warmup"]}
    output = run(values)
    before = (output / "comparison.json").read_bytes()
    remove(find_removals(output, "scores"))
    assert "curve.json" in held(output, "warmup")
    reporter = RecordingReporter()
    run(values, reporter)
    assert not any(name.startswith(("train", "pool")) for name in reporter.last)
    said = json.loads((output / "comparison.json").read_text())
    told = json.loads(before)
    assert [one["arm"] for one in said[0]["rows"]] == [one["arm"] for one in told[0]["rows"]]
    assert "warm-up" in (output / "report.html").read_text()
    (cost,), (earlier,) = ([one["cost"] for one in of[0]["rows"] if one["cost"]] for of in (said, told))
    assert cost == earlier
    assert cost["seconds"]["pool"] > 0
    assert cost["bytes_per_row"] > 0


def test_only_the_selection_stays(cheap: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    output = run({**cheap, "representation": ("bm25", "length")})
    chosen = json.loads((output / "selected.jsonl").read_bytes().splitlines()[0])["id"]
    shown = (output / "selected.jsonl").read_bytes(), (output / "report.html").read_bytes()
    main(["clean", str(output), "--keep", "selection", "--yes"])
    assert "Removed from" in capsys.readouterr().out
    left = files(output)
    assert {Path(name).name for name in left if name.startswith("artifacts/")} <= SMALL
    assert not {name for name in left if name.endswith("scores.parquet")}
    assert {"selected.jsonl", "selection.parquet", "methods/length/selected.jsonl", "report.html"} <= left
    assert ((output / "selected.jsonl").read_bytes(), (output / "report.html").read_bytes()) == shown
    main(["explain", str(output), "--id", chosen])
    said = capsys.readouterr().out
    assert "rank 1 of the 10 selected" in said
    assert "no longer stored" in said
    main(["explain", str(output), "--id", "empty"])
    assert "quarantined" in capsys.readouterr().out
    main(["explain", str(output), "--row", "4000"])
    assert "neither" in capsys.readouterr().out
    main(["report", str(output)])
    assert "stays as it was written" in capsys.readouterr().out
    with pytest.raises(ArtifactMismatchError, match="--keep selection"):
        find_removals(output, "scores")
    main(["clean", str(output), "--keep", "selection", "--yes"])
    assert "holds nothing" in capsys.readouterr().out
    run(cheap)
    assert (output / "selected.jsonl").read_bytes() == shown[0]


def test_a_dry_run_says_the_same_and_removes_nothing(cheap: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    output = run(cheap)
    before = files(output)
    main(["clean", str(output), "--keep", "scores", "--dry-run"])
    told = capsys.readouterr().out
    assert files(output) == before
    main(["clean", str(output), "--keep", "scores", "--yes"])
    assert capsys.readouterr().out.replace("Removed from", "To remove from") == told


def test_nothing_goes_unasked(cheap: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    output = run(cheap)
    before = files(output)
    with pytest.raises(SystemExit):
        main(["clean", str(output), "--keep", "selection"])
    assert "--yes" in capsys.readouterr().err
    assert files(output) == before


def test_a_busy_folder_is_left_alone(cheap: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    output = run(cheap)
    before = files(output)
    with FileLock(output / LOCK), pytest.raises(SystemExit):
        main(["clean", str(output), "--keep", "selection", "--yes"])
    assert "another process" in capsys.readouterr().err
    assert files(output) == before


def test_links_are_never_followed(cheap: dict[str, Any], tmp_path: Path) -> None:
    output = run(cheap)
    outside = tmp_path / "outside" / "features-0123456789abcdef"
    outside.mkdir(parents=True)
    (outside / "precious.txt").write_text("stays")
    (output / "artifacts" / "features-0123456789abcdef").symlink_to(outside)
    inside = next(output.glob("artifacts/features-*/shard-00000.parquet")).parent
    (inside / "there").symlink_to(outside.parent)
    (output / "methods").symlink_to(outside.parent)
    own = output / "artifacts" / "my notes"
    own.mkdir()
    (own / "note.txt").write_text("mine")
    cleaning = find_removals(output, "selection")
    assert {link.name for link in cleaning.links} == {"features-0123456789abcdef", "there", "methods"}
    remove(cleaning)
    assert (outside / "precious.txt").read_text() == "stays"
    assert (own / "note.txt").read_text() == "mine"
    assert (inside / "there").is_symlink()


def test_a_linked_store_is_left_alone(cheap: dict[str, Any], tmp_path: Path) -> None:
    output = run(cheap)
    (output / "artifacts").rename(tmp_path / "elsewhere")
    (output / "artifacts").symlink_to(tmp_path / "elsewhere")
    before = files(tmp_path / "elsewhere")
    cleaning = find_removals(output, "scores")
    assert cleaning.links == (output / "artifacts",)
    remove(cleaning)
    assert files(tmp_path / "elsewhere") == before


@pytest.mark.parametrize("what", ["nothing", "options alone", "no folder"])
def test_what_is_no_run_folder_is_refused(what: str, cheap: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    if what != "no folder":
        (folder / "artifacts" / "features-0123456789abcdef").mkdir(parents=True)
        (folder / "artifacts" / "features-0123456789abcdef" / "shard").write_text("mine")
    if what == "options alone":
        (folder / "run.yaml").write_bytes((run(cheap) / "run.yaml").read_bytes())
    with pytest.raises(ConfigError, match=r"not a run folder|holds no selection"):
        find_removals(folder, "selection")
    with pytest.raises(SystemExit):
        main(["clean", str(folder), "--keep", "selection", "--yes"])
    assert not (folder / LOCK).exists()
    assert folder.exists() == (what != "no folder")


def test_a_second_name_frees_nothing(cheap: dict[str, Any], tmp_path: Path) -> None:
    output = run(cheap)
    first = find_removals(output, "selection").bytes
    scores = output / "scores.parquet"
    os.link(scores, tmp_path / "second.parquet")
    assert first - find_removals(output, "selection").bytes == scores.stat().st_size


def test_sizes_read_well() -> None:
    assert [size(n) for n in (0, 999, 1500, 2.5e6, 40e9, 4e12)] == [
        "0 B", "999 B", "1.5 kB", "2.5 MB", "40.0 GB", "4,000.0 GB",
    ]  # fmt: skip
