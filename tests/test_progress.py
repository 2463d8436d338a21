"""What a run says while it works: lines with a time, events for programs, quiet and verbose, and no noise."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gistselect.cli import main
from gistselect.errors import DataError
from gistselect.run import progress
from gistselect.run.crew import Advanced, Done
from gistselect.run.engine import Scheduled
from gistselect.run.events import EVENTS
from gistselect.run.progress import Reporter
from gistselect.run.scheduling import Limits
from gistselect.run.sources import Sources
from gistselect.terminal import Terminal
from tiny_runs import RecordingReporter, row, run, write_rows

LINE = r"\d\d:\d\d:\d\d reading: "


class Clock:
    """Seconds that pass only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def told(work: Callable[[Reporter, Clock], None], **options: Any) -> list[str]:
    """The lines that a reporter writes where there is no terminal."""
    clock, file = Clock(), io.StringIO()
    work(Reporter(Terminal(file=file, width=400), clock=clock, **options), clock)
    return file.getvalue().splitlines()


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / EVENTS).read_bytes().splitlines()]


def reading(reporter: Reporter, clock: Clock) -> None:
    """Twenty seconds at 50 tokens a second, ten of them a row."""
    with reporter.step("reading", total=1000, unit="tokens", rows=100) as step:
        for _ in range(20):
            clock.now += 1.0
            step.advance(50)


def test_a_line_every_five_seconds_says_how_much_how_fast_and_how_long() -> None:
    lines = told(reading)
    assert [re.sub(LINE, "", line) for line in lines] == [
        "250 of 1,000 tokens (25%), 50.0 tokens/s, 5.0 rows/s, 15 s left",
        "500 of 1,000 tokens (50%), 50.0 tokens/s, 5.0 rows/s, 10 s left",
        "750 of 1,000 tokens (75%), 50.0 tokens/s, 5.0 rows/s, 5 s left",
        "  reading: 1,000 tokens in 20 s (50.0 tokens/s, 5.0 rows/s)",
    ]
    assert all(re.match(LINE, line) for line in lines[:-1])


def test_what_an_earlier_run_did_says_nothing_of_the_time_left() -> None:
    def continued(reporter: Reporter, clock: Clock) -> None:
        with reporter.step("reading", total=1000, unit="tokens") as step:
            step.find_done(800)
            step.workers = 3
            clock.now += 6.0
            step.advance(60)
            clock.now += 1.0

    first, last = told(continued)
    assert first.endswith("860 of 1,000 tokens (86%), 10.0 tokens/s, 14 s left, 3 workers")
    assert "60 tokens in 7 s" in last


def test_quiet_says_only_what_went_wrong_and_verbose_names_the_stages() -> None:
    def work(reporter: Reporter, clock: Clock) -> None:
        with reporter.stage("features"):
            reporter.say("as usual")
            reading(reporter, clock)
            reporter.warn("cpu:0 failed")

    assert told(work, loudness="quiet") == ["cpu:0 failed"]
    assert any(line.endswith("stage features") for line in told(work, loudness="verbose"))
    assert not any("stage" in line for line in told(work))


def test_a_terminal_gets_a_bar_and_no_lines() -> None:
    file, clock = io.StringIO(), Clock()
    reading(Reporter(Terminal(file=file, width=200, force_terminal=True), clock=clock), clock)
    shown = file.getvalue()
    assert "━" in shown
    assert "50.0 tokens/s, 5.0 rows/s" in shown
    assert not re.search(LINE, shown)


def test_a_notebook_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    clock = Clock()
    reading(Reporter(clock=clock), clock)
    assert "500 of 1,000 tokens (50%)" in capsys.readouterr().out


def test_memory_of_the_device_is_told_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress.device_memory() is None
    monkeypatch.setattr(progress, "device_memory", lambda: 12_300_000_000)
    assert told(reading)[0].endswith("15 s left, 12.3 GB on the device")


def test_events_are_whole_lines_with_a_time_a_stage_and_numbers(tmp_path: Path) -> None:
    def work(reporter: Reporter, clock: Clock) -> None:
        with reporter.recording(tmp_path), reporter.stage("features"):
            reading(reporter, clock)

    told(work, loudness="quiet")
    found = events(tmp_path)
    assert [one["event"] for one in found] == [
        *("run begins", "stage begins", "step begins", "progress", "progress", "progress"),
        *("step ends", "stage ends", "run ends"),
    ]
    assert all(datetime.fromisoformat(one["time"]).utcoffset() is not None for one in found)
    assert {one.get("stage") for one in found[1:-1]} == {"features"}
    half = found[4]
    assert half["step"] == "reading"
    assert (half["done"], half["total"], half["unit"], half["seconds"]) == (500, 1000, "tokens", 10.0)
    assert (half["tokens_per_s"], half["rows_per_s"], half["seconds_left"]) == (50.0, 5.0, 10.0)
    told(work)
    assert len(events(tmp_path)) == 2 * len(found), "a second command adds to the file"


def test_an_error_leaves_its_kind_and_none_of_its_words(tmp_path: Path) -> None:
    def work(reporter: Reporter, clock: Clock) -> None:
        with reporter.recording(tmp_path), reporter.step("reading", total=1, unit="rows"):
            raise DataError("row 3: a secret of the data set")

    with pytest.raises(DataError):
        told(work)
    assert [one["event"] for one in events(tmp_path)][-2:] == ["step fails", "run fails"]
    assert events(tmp_path)[-1]["error"] == "DataError"
    assert "secret" not in (tmp_path / EVENTS).read_text()


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_bytes(b'{"time": "2026-01-01T00:00:00Z", "event": "run beg')
    told(lambda reporter, _: reporter.recording(tmp_path).__enter__())
    _, second, *_ = (tmp_path / EVENTS).read_bytes().splitlines()
    assert json.loads(second)["event"] == "run begins"


WRITER = """
import sys
from pathlib import Path
from gistselect.run import progress
progress.LINE_INTERVAL = 0.0
reporter = progress.SilentReporter()
with reporter.recording(Path(sys.argv[1])), reporter.stage("features"):
    with reporter.step("reading", total=10**9, unit="tokens") as step:
        print("ready", flush=True)
        while True:
            step.advance(1)
"""


def test_a_killed_process_leaves_whole_lines(tmp_path: Path) -> None:
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.stdout.read(0)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    assert (tmp_path / EVENTS).read_bytes().endswith(b"\n")
    assert sum(one["event"] == "run begins" for one in events(tmp_path)) == 3


def test_a_run_notes_its_stages_and_no_text_of_its_rows(tmp_path: Path) -> None:
    rows = [row(f"Is {n} a flamingo?", f"No, {n} is an ocelot.", id=f"zebra-{n}") for n in range(20)]
    pool = write_rows(tmp_path / "pool.jsonl", rows)
    target = write_rows(tmp_path / "mine.jsonl", [row("Is 40 a flamingo?", "No.")])
    options = {"pool": (str(pool),), "target": (str(target),), "representation": ("bm25",), "budget": 2}
    folder = run({**options, "output": tmp_path / "out"})
    stages = [one["stage"] for one in events(folder) if one["event"] == "stage ends"]
    assert stages == ["ingest", "features", "score", "select"]
    text = (folder / EVENTS).read_text()
    assert not any(word in text for word in ("flamingo", "ocelot", "zebra"))


def commands(tmp_path: Path, model: Path) -> list[str]:
    pool = write_rows(tmp_path / "pool.jsonl", [row(f"What is {n}?", f"It is {n}.") for n in range(24)])
    target = write_rows(tmp_path / "mine.jsonl", [row("What is 40?", "It is 40."), row("What is 41?", "It is 41.")])
    heldout = write_rows(tmp_path / "heldout.jsonl", [row("What is 52?", "It is 52."), row("What is 57?", "It is 57.")])
    return [
        *("run", "--model", str(model), "--pool", str(pool), "--target", str(target), "--budget", "4"),
        *("--output", str(tmp_path / "out"), "--heldout", str(heldout), "--train-seeds", "0", "--device", "cpu"),
        *("--warmup-share", "0.5", "--warmup.global-batch-size", "4", "--warmup.learning-rate", "1e-2"),
        *("--warmup.adapter.rank", "2", "--finetune.adapter.rank", "2"),
    ]


def test_normal_use_shows_no_warning_of_a_library(tiny_model: Path, tmp_path: Path) -> None:
    program = "import sys; from gistselect.cli import main; main(sys.argv[1:])"
    arguments = [*commands(tmp_path, tiny_model), "--evaluate"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert "held-out loss" in done.stderr
    for noise in ("Warning", "warn(", "it/s]", "Loading weights"):
        assert noise not in done.stderr


def test_loading_and_adapting_a_model_warns_of_nothing(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gistselect.model.adapters import AdapterConfig, attach_adapter
    from gistselect.model.config import ModelConfig
    from gistselect.model.loading import load_model

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach_adapter(load_model(ModelConfig(path=str(tiny_model), device="cpu")), AdapterConfig(rank=2), seed=0)
    assert capsys.readouterr().err == ""


def test_every_command_can_be_quiet_or_verbose(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = commands(tmp_path, tiny_model)
    main([*arguments, "--quiet", "--until", "warmup"])
    assert capsys.readouterr() == ("", "")
    main([*arguments, "--verbose", "--until", "features"])
    said = capsys.readouterr().err
    assert "gradient engine: hooks on" in said
    assert "stage features" in said
    main([*arguments, "--until", "features"])
    assert "gradient engine" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--quiet", "--verbose"])
    assert "not both" in capsys.readouterr().err


@pytest.mark.parametrize("times", [1, 3, 7])
def test_what_is_read_several_times_counts_once(times: int) -> None:
    sources, heard = Sources(), []
    with sources.listening(heard.append):
        with sources.read_often(times):
            for _ in range(10 * times):
                sources.advance(11)
        assert (sum(heard), len(heard)) == (110, 10 * times)
        sources.advance(5)
    assert sum(heard) == 115


class Telling:
    """One worker that tells of ten units, twice, before each part is done; a crew and a job of two parts."""

    elsewhere, needs_live_model, takes_its_time, n_rows, unit = False, False, True, None, "tokens"

    def __init__(self, amounts: list[int], *, counts_parts: bool) -> None:
        self.amounts, self.counts_parts = amounts, counts_parts

    def begin(self, job: Any) -> list[str]:
        return ["w"]

    def wait(self, until: float | None) -> list[Any]:
        return [Advanced(worker="w", amount=10), Advanced(worker="w", amount=10), Done(worker="w")]

    def now(self) -> float:
        return 0.0

    def pending(self, index: int) -> bool:
        return True

    def give(self, worker: str, assignment: Any) -> None: ...

    def complete(self) -> None: ...


def test_workers_never_tell_more_than_there_is_unless_nobody_knows_what_there_is() -> None:
    for known, amounts in ((True, [15, 25]), (False, [1, 1])):
        reporter, work = RecordingReporter(), Telling(amounts, counts_parts=not known)
        Scheduled(work, Limits(), quarantine=False).run(work, "pass", reporter)  # pyright: ignore[reportArgumentType]
        step = reporter.last["pass"]
        assert step.total == (40 if known else None)
        assert step.done == 40
        told = reporter.steps_done["pass"]
        assert told == sorted(told)
        assert {10, 15} <= set(told) if known else told[0] == 10
