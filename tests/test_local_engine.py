"""Worker processes give what one process gives, to the byte, whatever happens to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from failing import Failing
from gistselect.data import ranges
from gistselect.errors import ConfigError, GistSelectError
from gistselect.representations.queries import Queries
from gistselect.run import ingest as ingest_stage
from gistselect.run.cells import Keys, lay_out
from gistselect.run.config import RunConfig
from gistselect.run.engine import Inline, Scheduled
from gistselect.run.local import LocalCrew, devices, environment
from gistselect.run.objects import Bucket
from gistselect.run.passes import Pass
from gistselect.run.progress import SilentReporter
from gistselect.run.reading import ReadPool
from gistselect.run.scheduling import Limits
from gistselect.run.scoring import Score
from gistselect.run.sources import Sources, SourceSpec
from gistselect.run.store import Store
from tiny_runs import RecordingReporter, contents, run

SHARDS = 5
"""Of twelve rows each, but for the last."""


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_stage, "SHARD_ROWS", 12)


def text_pass(folder: Path, pool: Path, bucket: Bucket | None = None, **options: Any) -> tuple[Pass, Score]:
    """A pass over a pool with the failing representation, and the stage that scores it."""
    from gistselect.data.config import TextOptions
    from gistselect.data.pool import open_pool

    marks = folder / "marks"
    marks.mkdir(parents=True)
    store = Store(folder / "artifacts", bucket)
    opened = open_pool((str(pool),), TextOptions(), exclude=folder)
    records = ReadPool(pool=opened, artifact=store.artifact("records", 1, pool=opened.digest))
    records.run(SilentReporter())
    given = {"how": "nothing", "row": 27, "times": int(bool(options)), "folder": marks, **options}
    representation = Failing(**given)
    queries = Queries(target="t", records=(), examples=(), groups=())
    keys = Keys(records=records.artifact.key, tokens=None, model={}, queries={"t": "-"})
    (column,) = lay_out(store, representation, [queries], (), keys)
    fit, cell = column.entries[0]
    source = SourceSpec(
        reads="text",
        model=None,
        adapter=None,
        engine=RunConfig.model_fields["engine"].default,
        records=records.artifact,
        tokens=None,
    )
    fit.save(None)
    cell.features.begin()
    score = Score(
        label="failing",
        representation=representation,
        columns=(column,),
        rows=records.rows,
        warmup=None,
        strict=False,
        seed=0,
        artifact=store.artifact("scores", 1),
    )
    return Pass(source=source, cells=(cell,)), score


@contextmanager
def local(n: int, *, quarantine: bool = False, **limits: Any) -> Iterator[Scheduled]:
    """An engine with so many CPU workers."""
    engine = Scheduled(LocalCrew(devices(f"cpu:{n}", cuda=False)), Limits(**limits), quarantine=quarantine)
    try:
        yield engine
    finally:
        engine.close()


def shards(job: Pass) -> list[bytes]:
    return [job.cells[0].features.shard(index).read_bytes() for index in range(SHARDS)]


@pytest.fixture
def expected(tmp_path: Path, pool_file: Path) -> list[bytes]:
    """The shards as one process makes them."""
    job, _ = text_pass(tmp_path / "inline", pool_file)
    Inline(Sources()).run(job, "pass", SilentReporter())
    return shards(job)


def marks(job: Pass, name: str) -> list[str]:
    options: Any = job.cells[0].representation
    return sorted(path.name for path in options.folder.glob(f"{name}-*"))


@pytest.mark.parametrize("how", ["dies", "raises", "memory", pytest.param("hangs", marks=pytest.mark.slow)])
def test_a_failed_shard_is_done_by_another_worker(
    tmp_path: Path, pool_file: Path, expected: list[bytes], how: str
) -> None:
    job, _ = text_pass(tmp_path / "local", pool_file, how=how)
    reporter = RecordingReporter()
    with local(2, seconds=12.0 if how == "hangs" else None) as engine:
        engine.run(job, "pass", reporter)
    assert shards(job) == expected
    assert job.cells[0].features.is_complete
    attempts = [name.split("-")[1] for name in marks(job, "at")]
    assert len(attempts) == SHARDS + 1, "nothing is done twice but the shard in flight"
    assert len(set(attempts)) == SHARDS
    (said,) = (line for line in reporter.said if "failed" in line)
    cause = {"dies": "died: its process was ended by signal 9", "hangs": "hung: no answer"}.get(how, how[:5])
    assert cause in said or {"raises": "a device went away", "memory": "no room"}[how] in said
    step = reporter.last["pass"]
    assert step.done == step.total == 50


def test_a_shard_that_always_fails_is_named_and_all_else_is_done(
    tmp_path: Path, pool_file: Path, expected: list[bytes]
) -> None:
    job, _ = text_pass(tmp_path / "local", pool_file, how="dies", times=99)
    with local(2) as engine, pytest.raises(GistSelectError) as error:
        engine.run(job, "pass", SilentReporter())
    for part in ("shard 2, pool rows 24 to 35", "'row-2", "on cpu:0: died", "the last words of a worker", "signal 9"):
        assert part in str(error.value)
    assert len(marks(job, "failed")) == 3
    assert [job.pending(index) for index in range(SHARDS)] == [False, False, True, False, False]
    assert not job.cells[0].features.is_complete


def test_its_rows_are_quarantined_on_request(tmp_path: Path, pool_file: Path) -> None:
    job, score = text_pass(tmp_path / "local", pool_file, how="raises", times=99)
    with local(2, quarantine=True) as engine:
        engine.run(job, "pass", SilentReporter())
    score.run(SilentReporter())
    facts = score.artifact.facts
    assert facts["n_scored"] + facts["n_rejected"] == 52
    lines = (score.artifact / "quarantine.jsonl").read_text().splitlines()
    lost = [line for line in lines if "given up after 3 attempts" in line]
    assert len(lost) == 12 - 2, "two rows of the shard could not be used before"
    assert "a device went away" in lost[0]


def test_a_row_that_comes_back_as_nan_is_quarantined_alone(tmp_path: Path, pool_file: Path) -> None:
    job, score = text_pass(tmp_path / "local", pool_file, how="nan", row=40)
    with local(2) as engine:
        engine.run(job, "pass", SilentReporter())
    score.run(SilentReporter())
    lines = (score.artifact / "quarantine.jsonl").read_text().splitlines()
    assert [line for line in lines if '"row": 40' in line and "it failed" in line]
    assert len(lines) == 3


def test_what_is_done_is_left_alone(tmp_path: Path, pool_file: Path, expected: list[bytes]) -> None:
    job, _ = text_pass(tmp_path / "local", pool_file)
    for index in (0, 3):
        job.do(index, Sources())
    with local(1) as engine:
        engine.run(job, "pass", SilentReporter())
        engine.run(job, "again", SilentReporter())
    assert shards(job) == expected
    assert len(marks(job, "at")) == SHARDS


@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_whole_run_is_the_same_to_the_byte(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    alone = run(config, output=tmp_path / "alone")
    monkeypatch.setattr(ranges, "RANGE_BYTES", 2000)
    config |= {"engine": "local", "devices": f"cpu:{n}", "output": tmp_path / "local"}
    reporter = RecordingReporter()
    assert contents(run(config, reporter)) == contents(alone)
    assert reporter.last["read files"].done == Path(config["pool"][0]).stat().st_size
    assert reporter.last["read the pool"].done == reporter.last["tokenise"].done == 52
    assert reporter.last["queries"].done == reporter.last["queries"].total
    assert (tmp_path / "local" / "run.yaml").read_text().count("engine_kind: local") == 1


def test_a_mistake_of_the_user_is_not_tried_again(config: dict[str, Any], tmp_path: Path) -> None:
    """The worker's own sentence, as its own kind of error, at once."""
    job, _ = text_pass(tmp_path / "local", Path(config["pool"][0]))
    (job.source.records.shard(1)).write_bytes(b"broken")
    with local(2) as engine, pytest.raises(GistSelectError, match="missing or damaged"):
        engine.run(job, "pass", SilentReporter())
    assert not marks(job, "failed")


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from gistselect.run import ingest
ingest.SHARD_ROWS = 12
from gistselect.run.progress import SilentReporter
from test_local_engine import local, text_pass
if __name__ == "__main__":
    job, _ = text_pass(Path(sys.argv[2]), Path(sys.argv[3]), how="hangs", times=99)
    with local(2) as engine:
        try:
            engine.run(job, "pass", SilentReporter())
        except KeyboardInterrupt:
            print("interrupted")
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_driver(tmp_path: Path, pool_file: Path, how: signal.Signals) -> None:
    folder = tmp_path / "run"
    arguments = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(folder), str(pool_file)]
    driver = subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.PIPE)
    until = time.monotonic() + 60
    while not list(folder.glob("marks/failed-*")):
        assert driver.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    workers = {int(path.name.split("-")[2]) for path in folder.glob("marks/at-*")}
    assert any(alive(worker) for worker in workers)
    os.kill(driver.pid, how)
    said, _ = driver.communicate(timeout=20)
    assert said == (b"interrupted\n" if how == signal.SIGINT else b"")
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices("cpu:2", cuda=False) == ["cpu:0", "cpu:1"]
    assert devices("0, 3", cuda=True) == ["cuda:0", "cuda:3"]
    assert devices("auto", cuda=False) == ["cpu:0"]
    for wrong in ("gpu", "cpu:0", "0,0", "cpu:x"):
        with pytest.raises(ConfigError, match="--devices"):
            devices(wrong, cuda=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert environment("cuda:1", 2) == {"CUDA_VISIBLE_DEVICES": "6"}
    with pytest.raises(ConfigError, match="shows 2 devices"):
        environment("cuda:2", 1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert environment("cpu:1", 3)["OMP_NUM_THREADS"] == "2"


def test_a_single_device_that_auto_finds_is_this_process(config: dict[str, Any], monkeypatch: Any) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a process was started")

    monkeypatch.setattr(LocalCrew, "__init__", refuse)
    run(config, engine="local", until="features")
