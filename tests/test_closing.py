"""The last lines of a run: what was selected, why one may believe it, and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gistselect.cli import main
from gistselect.registry import names
from gistselect.report.closing import TRAINERS, closing_lines
from gistselect.run.finished import FinishedRun
from gistselect.run.reporting import gather
from tiny_runs import RecordingReporter, row, run, write_rows


def closing(folder: Path, *, has_model: bool = True) -> list[str]:
    return list(closing_lines(gather(FinishedRun.open(folder), with_rows=False), has_model=has_model))


def test_a_run_ends_with_reasons_and_commands_that_work(config: dict[str, Any], tmp_path: Path) -> None:
    reporter = RecordingReporter()
    folder = run(config, reporter, representation=("gist", "bm25"))
    said = next(text for text in reporter.said if text.startswith("Selected "))
    assert said.startswith("Selected 10 of 50 scored rows with GIST: set")
    for reason in (
        "Captured energy of the selection",
        "null level",
        "Quarantined rows: 2 of 52",
        "Of the selection others would take too: bm25 ",
    ):
        assert reason in said
    assert "! Proof: none yet" in said
    assert f"gistselect evaluate --run {folder}" in said
    commands = [line.strip().split(" && ") for line in said.splitlines() if "gistselect export" in line]
    assert [export.split(" --to ")[1].split()[0] for export, *_ in commands] == list(TRAINERS)
    for export, enter, training in commands:
        main(export.split()[1:])
        there = Path(enter.removeprefix("cd "))
        assert (there / training.split()[-1]).is_file()


def test_many_methods_are_compared_with_the_first_in_one_line(config: dict[str, Any]) -> None:
    folder = run({**config, "representation": ("bm25", "dsir", "length", "random")})
    (line,) = (line for line in closing(folder) if "others would take" in line)
    assert {part.split()[0] for part in line.split(": ")[1].split(", ")} == {"dsir", "length", "random"}


def test_every_check_is_a_sentence(config: dict[str, Any]) -> None:
    """Number and meaning are joined by a blank, or by what a clause of its own begins with."""
    lines = [line[4:] for line in closing(run(config)) if line.split()[0] in ("✗", "!", "✓")]
    assert "Quarantined rows: 2 of 52 (3.8 %) cannot be scored; each has its reason" in lines
    assert "Repeated rows in the selection: 0 of 10; no two selected rows say exactly the same" in lines
    assert any(line.startswith("Proof: none yet; nothing was trained") for line in lines)
    assert not any(", cannot" in line or " ;" in line for line in lines)


def test_every_export_has_a_command() -> None:
    assert set(TRAINERS) == set(names("export"))


def test_without_a_model_nothing_is_promised_that_needs_one(tmp_path: Path) -> None:
    pool = write_rows(tmp_path / "a pool.jsonl", [row(f"Is {n}?", f"It is {n}.") for n in range(6)])
    target = write_rows(tmp_path / "mine.jsonl", [row("Is 9?", "9.")])
    options = {"pool": (str(pool),), "target": (str(target),), "representation": ("bm25",), "budget": 2}
    folder = run({**options, "output": tmp_path / "my run"})
    lines = closing(folder, has_model=False)
    assert not any("export" in line.split()[:2] for line in lines)
    assert any("selected.jsonl" in line for line in lines)
    quoted = next(line for line in closing(folder) if "--to trl" in line)
    assert f"'{folder}-trl'" in quoted


def test_worst_checks_come_first_and_quiet_runs_say_nothing(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(config)
    signs = [line.split()[0] for line in closing(folder) if line.split()[0] in ("✗", "!", "✓")]
    assert signs == sorted(signs, key="✗!✓".index)
    main(["select", "--output", str(folder), "--budget", "4", "--quiet"])
    assert capsys.readouterr() == ("", "")
