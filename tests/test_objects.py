"""Shards in an object store: the same results to the byte, whatever fails on the way, and nothing believed unproved."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from gistselect.errors import (
    ArtifactMismatchError,
    ConfigError,
    DamagedShardError,
    MissingDependencyError,
    UnreachableError,
)
from gistselect.files import read_json
from gistselect.run import ingest as ingest_stage
from gistselect.run import objects
from gistselect.run.cleaning import find_removals, remove
from gistselect.run.config import RunConfig
from gistselect.run.engine import Inline
from gistselect.run.objects import COMPLETE, Bucket, ShardObject, shards_in
from gistselect.run.plan_lines import plan_lines
from gistselect.run.staffing import opened
from gistselect.run.store import Artifact, Store, read_table, write_table
from gistselect.run.worker import attempt
from test_plan import planned, states
from tiny_runs import WARMUP, RecordingReporter, contents, row, run, text_run, write_rows


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_stage, "SHARD_ROWS", 12)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Bucket]:
    """A store in this process, empty at first."""
    yield Bucket(f"memory://{tmp_path.name}")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def cheap(tmp_path: Path) -> dict[str, Any]:
    """A run that needs no model."""
    return {**text_run(tmp_path), "stability_draws": 0}


def results(folder: Path) -> dict[str, bytes]:
    """What people read, of a run without a subspace."""
    names = ("scores.parquet", "selection.parquet", "selected.jsonl", "quarantine.jsonl")
    return {name: (folder / name).read_bytes() for name in names}


def marks(folder: Path) -> dict[str, Any]:
    """What is written of every finished artifact: facts, and the checksum of each file."""
    return {path.parent.name: read_json(path) for path in folder.glob(f"artifacts/*/{COMPLETE}")}


def shard_files(folder: Path) -> list[Path]:
    return list(folder.glob("artifacts/*/shard-*"))


def the(folder: Path, stage: str, bucket: Bucket) -> Artifact:
    """The only artifact of a stage."""
    (path,) = folder.glob(f"artifacts/{stage}-*")
    return Store(folder / "artifacts", bucket).existing(path.name)


def object_of(artifact: Artifact, index: int) -> str:
    """URL of a shard's object."""
    assert artifact.bucket is not None
    (name,) = shards_in(artifact.bucket.listed(artifact.folder.name, fresh=True))[index].values()
    return f"{artifact.bucket.url}/{artifact.folder.name}/{name}"


def forget() -> None:
    """As another process would see the store."""
    objects._seen.cache_clear()  # pyright: ignore[reportPrivateUsage]
    objects._proved.cache_clear()  # pyright: ignore[reportPrivateUsage]


def test_a_run_in_a_store_is_that_in_a_folder(config: dict[str, Any], memory: Bucket, tmp_path: Path) -> None:
    """Keys, facts, checksums and results: all stages, two methods of which one reads text."""
    values = {**config, "representation": ("gist", "bm25")}
    alone = run(values, output=tmp_path / "alone")
    shelved = run(values, output=tmp_path / "shelved", shards=memory.url)
    assert contents(shelved) == contents(alone)
    assert marks(shelved) == marks(alone)
    assert shard_files(alone)
    assert not shard_files(shelved)
    reporter = RecordingReporter()
    again = run({**values, "rank": 2}, reporter, output=tmp_path / "shelved", shards=memory.url)
    assert contents(again) == contents(run({**values, "rank": 2}, output=tmp_path / "alone"))
    assert not [step for step in reporter.last if "warm-up" in step or "tokenise" in step], "what is there is used"


def test_whoever_has_the_url_continues(cheap: dict[str, Any], memory: Bucket, tmp_path: Path) -> None:
    """Another run folder finds what was made, as another machine would; a folder of before moves into the store."""
    first = run(cheap, output=tmp_path / "first")
    run(cheap, output=tmp_path / "first", shards=memory.url, until="features")
    assert shards_in(memory.listed(the(first, "features", memory).folder.name)).keys() == {0, 1, 2, 3, 4}
    forget()
    reporter = RecordingReporter()
    second = run(cheap, reporter, output=tmp_path / "second", shards=memory.url)
    assert results(second) == results(first)
    assert set(reporter.last) == {"score (BM25)"}


def test_a_proof_and_its_plan_in_a_store(
    cheap: dict[str, Any], tiny_model: Path, memory: Bucket, tmp_path: Path
) -> None:
    """Trained models and losses too are those of a folder, and another machine's; `plan` knows what is there."""
    questions = [row(f"What is {i} and 5?", f"The answer is {i + 5}.") for i in range(4)]
    heldout = str(write_rows(tmp_path / "heldout.jsonl", questions))
    proof = {"evaluate": True, "heldout": (heldout,), "train_seeds": (0,), "finetune": {**WARMUP, "epochs": 1}}
    values = {**cheap, **proof, "model": str(tiny_model), "device": "cpu"}

    def compared(output: Path) -> Any:
        found = json.loads((output / "comparison.json").read_text())
        return [[{**one, "cost": None} for one in comparison["rows"]] for comparison in found]

    alone = run(values, output=tmp_path / "alone")
    shelved = run(values, output=tmp_path / "shelved", shards=memory.url)
    forget()
    reporter = RecordingReporter()
    another = run(values, reporter, output=tmp_path / "another", shards=memory.url)
    for output in (shelved, another):
        assert compared(output) == compared(alone)
        assert marks(output) == marks(alone)
    assert set(reporter.last) == {"score (BM25)"}, "nothing is read, trained or measured twice"
    forget()
    found = states(planned(values, 0, output=tmp_path / "third", shards=memory.url))
    of_one = {"score (BM25)", "select (BM25)", "report.html"}
    to_do = {name for name, state in found.items() if state == "to do"}
    assert of_one <= to_do
    assert not [name for name in to_do - of_one if "BM25, seed 0" not in name and "random rows" not in name]
    assert states(planned(values, 0, output=shelved, shards=memory.url)) == states(planned(values, 0, output=alone))


def test_a_plan_measures_rates_on_shards_of_a_store(cheap: dict[str, Any], memory: Bucket) -> None:
    document = planned(cheap, shards=memory.url)
    assert states(document)["read the pool"] == "done"
    assert document["forecast"]["unknown"] == []
    assert document["disk"]["shards"] == memory.url
    *_, disk, store, _ = plan_lines(document)
    assert str(disk).startswith("  disk: little to be written")
    assert (
        str(store) == f"  {memory.url}: {document['disk']['features_bytes'] / 1e3:.0f} kB of features at most to be put"
    )
    reporter = RecordingReporter()
    run(cheap, reporter, shards=memory.url)
    assert "read the pool" not in reporter.last


@pytest.mark.parametrize("harm", ["swapped", "truncated", "removed"])
def test_a_damaged_object_is_found_and_made_anew(
    cheap: dict[str, Any], memory: Bucket, harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = run(cheap, shards=memory.url, until="features")
    features = the(output, "features", memory)
    store = fsspec.filesystem("memory")
    place, other = object_of(features, 3), object_of(features, 1)
    if harm == "removed":
        store.rm(place)
    else:
        store.pipe(place, {"swapped": store.cat(other), "truncated": store.cat(place)[:-9]}[harm])
    forget()
    written: list[int] = []
    write = ShardObject.write
    monkeypatch.setattr(ShardObject, "write", lambda self, content: (written.append(self.index), write(self, content)))
    reporter = RecordingReporter()
    run(cheap, reporter, shards=memory.url)
    assert written == [3], "one shard is made, the others are found"
    assert results(output) == results(run(cheap, output=tmp_path / "alone"))
    (said,) = (line for line in reporter.said if "or damaged:" in line)
    assert "shard-00003.parquet is missing or damaged" in said
    assert "That is done now" in said


def test_damage_that_comes_back_is_refused(
    cheap: dict[str, Any], memory: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that returns other bytes than it was given is not asked for ever."""
    output = run(cheap, shards=memory.url, until="features")
    folder = the(output, "features", memory).folder.name
    get = Bucket.get
    monkeypatch.setattr(
        Bucket,
        "get",
        lambda self, name, shard: get(self, name, shard)[:-1] if name == folder else get(self, name, shard),
    )
    forget()
    with pytest.raises(ArtifactMismatchError, match=r"shard-00000\.parquet .*damaged again: use another --shards"):
        run(cheap, shards=memory.url)


def test_damage_that_a_worker_finds_is_mended(
    cheap: dict[str, Any], memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the shard away, which the command learns from its words alone: what it has listed before is old."""
    output = run(cheap, shards=memory.url, until="ingest")
    records = the(output, "records", memory)
    files, place = fsspec.filesystem("memory"), object_of(records, 2)
    memory.has(records.folder.name, COMPLETE)
    taken: list[str] = []
    real = Inline.run

    def elsewhere(self: Any, job: Any, name: str, reporter: Any) -> None:
        if name.startswith("pool") and not taken:
            taken.append(name)
            files.rm(place)
            files.rm(f"{memory.url}/{records.folder.name}/{COMPLETE}")
            raise DamagedShardError("a shard is damaged")
        real(self, job, name, reporter)

    monkeypatch.setattr(Inline, "run", elsewhere)
    run(cheap, shards=memory.url)
    assert taken
    assert object_of(records, 2) == place
    assert results(output) == results(run(cheap, output=tmp_path / "alone"))


def test_a_put_that_fails_half_way_counts_for_nothing(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a store shows what came before the failure: its length is not what its name says."""
    import pyarrow as pa

    artifact = Store(tmp_path, memory).artifact("features", 1)
    artifact.begin()
    place = artifact.shard(0)
    real = type(fsspec.filesystem("memory")).pipe_file

    def cut_off(self: Any, path: str, value: bytes, **more: Any) -> None:
        real(self, path, value[:100], **more)
        raise TimeoutError("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(type(fsspec.filesystem("memory")), "pipe_file", cut_off)
        with pytest.raises(UnreachableError, match=r"the connection was lost.*same command again"):
            write_table(place, pa.table({"row": [1, 2, 3]}))
    forget()
    assert not place.is_file()
    assert len(memory.listed(artifact.folder.name)) == 1, "the piece is there, and counts for nothing"
    with pytest.raises(ArtifactMismatchError, match="missing or damaged"):
        read_table(place)
    write_table(place, pa.table({"row": [1, 2, 3]}))
    assert place.is_file()
    assert read_table(place)["row"].to_pylist() == [1, 2, 3]
    artifact.complete()
    assert artifact.is_complete
    assert list(read_json(artifact / COMPLETE)["files"]) == ["shard-00000.parquet"]


def test_a_store_that_fails_is_tried_again_by_workers(memory: Bucket) -> None:
    """It is no fault of the user's input, for which a job ends at once."""

    class Failing:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def open(self, sources: Any) -> None: ...

        def do(self, index: int, sources: Any) -> None:
            raise self.error

    def answer(error: Exception) -> Any:
        return attempt(Failing(error), 0, None, lambda: None)  # type: ignore[arg-type]

    assert answer(UnreachableError("no answer"))[:2] == ("failed", "error")
    assert answer(ConfigError("no bucket"))[:2] == ("wrong", ConfigError)


def test_cleaning_removes_objects(cheap: dict[str, Any], memory: Bucket) -> None:
    output = run(cheap, shards=memory.url)
    features = the(output, "features", memory).folder.name
    n_bytes = sum(memory.listed(features, fresh=True).values())
    assert n_bytes
    forget()
    cleaning = find_removals(output, "scores")
    assert cleaning.bytes >= n_bytes
    assert any(name == features for one in cleaning.removals for name, _ in one.objects)
    remove(cleaning)
    assert not memory.listed(features, fresh=True)
    assert shards_in(memory.listed(the(output, "records", memory).folder.name, fresh=True)), "scores rest on records"
    selected = run({**cheap, "budget": 5}, shards=memory.url)
    assert len((selected / "selected.jsonl").read_bytes().splitlines()) == 5
    remove(find_removals(output, "selection"))
    left = fsspec.filesystem("memory").find(memory.url)
    assert not [path for path in left if "shard-" in path]


def test_what_cannot_work_is_said(cheap: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("s3://key:hidden@bucket/x", "https://x/y?sig=hidden", "bucket/x", "s3://"):
        with pytest.raises(ConfigError) as error:
            RunConfig.from_values({**cheap, "shards": url})
        assert "shards" in str(error.value)
        assert "hidden" not in str(error.value)
    assert RunConfig.from_values({**cheap, "shards": "none"}).bucket is None
    with pytest.raises(ConfigError, match="of no kind that fsspec knows"):
        run(cheap, shards="nonsense://x")
    config = RunConfig.from_values({**cheap, "shards": "memory://x", "engine": "local", "devices": "cpu:2"})
    with pytest.raises(ConfigError, match="by this process alone"), opened(config, None):
        pass
    monkeypatch.setitem(sys.modules, "s3fs", None)
    fsspec_registry = importlib.import_module("fsspec.registry")
    monkeypatch.delitem(fsspec_registry._registry, "s3", raising=False)  # pyright: ignore[reportPrivateUsage]
    objects._file_system.cache_clear()  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(MissingDependencyError, match=r"pip install 'gistselect\[s3\]'"):
        Bucket("s3://nowhere/x").reach()


def test_a_store_of_others_is_not_believed(memory: Bucket, tmp_path: Path) -> None:
    """What it names lies within the artifact, and is of these inputs."""
    artifact = Store(tmp_path / "a", memory).artifact("fit", 1, n=1)
    artifact.begin()
    artifact.complete()
    files = fsspec.filesystem("memory")
    place = f"{memory.url}/{artifact.folder.name}"
    whole = files.cat(f"{place}/{COMPLETE}")
    files.pipe(f"{place}/{COMPLETE}", whole.replace(b'"files": {}', b'"files": {"../../stolen": ""}'))
    forget()
    other = Store(tmp_path / "b" / "c", memory).artifact("fit", 1, n=1)
    with pytest.raises(ArtifactMismatchError, match="no file of it"):
        _ = other.is_complete
    files.pipe(f"{place}/{COMPLETE}", whole)
    files.pipe(f"{place}/inputs.json", b'{"stage": "fit", "version": 1, "n": 2}')
    with pytest.raises(ArtifactMismatchError, match="other inputs"):
        _ = other.is_complete


def test_a_missing_bucket_is_a_sentence_and_a_probe_leaves_nothing(s3: str) -> None:
    with pytest.raises(ConfigError, match="no such bucket; make it first"):
        Bucket("s3://nobodys/x").reach()
    Bucket(f"{s3}/x").reach()
    assert Bucket(f"{s3}/x").listed("probe", fresh=True) == {}


def test_refused_credentials_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def invalidate_cache(self) -> None: ...

        def pipe_file(self, path: str, content: bytes) -> None:
            raise PermissionError("Access Denied")

    monkeypatch.setattr(objects, "_file_system", lambda url, process: Refusing())
    with pytest.raises(ConfigError, match=r"refuses to put .*Access Denied.*credentials that may put, list, read"):
        Bucket("s3://somebodys/x").reach()


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2])
def test_workers_share_a_store_alone(config: dict[str, Any], s3: str, tmp_path: Path, n: int) -> None:
    values = {**config, "representation": ("gist", "bm25")}
    alone = run(values, output=tmp_path / "alone")
    url = f"{s3}/workers-{n}"
    shared = run(values, output=tmp_path / "shared", shards=url, engine="local", devices=f"cpu:{n}")
    assert contents(shared) == contents(alone)
    assert marks(shared) == marks(alone)
    assert not shard_files(shared)
    for path in shared.rglob("*"):
        assert not path.is_file() or b"unheard-of-secret" not in path.read_bytes()


def test_a_killed_worker_costs_its_shard(s3: str, pool_file: Path, tmp_path: Path) -> None:
    from test_local_engine import SHARDS, local, text_pass
    from test_local_engine import marks as attempts

    def made(name: str, bucket: Bucket | None, **how: Any) -> Any:
        job, _ = text_pass(tmp_path / name, pool_file, bucket=bucket, **how)
        with local(2) as engine:
            engine.run(job, "pass", RecordingReporter())
        return job

    expected = made("files", None)
    job = made("objects", Bucket(f"{s3}/killed"), how="dies")
    assert len(attempts(job, "failed")) == 1
    assert len(attempts(job, "at")) == SHARDS + 1
    features = [one.cells[0].features for one in (expected, job)]
    assert features[1].is_complete
    for index in range(SHARDS):
        assert read_table(features[1].shard(index)).equals(read_table(features[0].shard(index)))


WORKER = """
import pickle, sys
from gistselect.run import ingest
ingest.SHARD_ROWS = 12
from gistselect.run.sources import Sources
jobs = pickle.load(open(sys.argv[1], "rb"))
for job in jobs:
    for index in range(len(job.amounts)):
        job.open(sources := Sources())
        job.do(index, sources)
"""


def test_a_machine_without_the_run_folder_does_its_part(
    config: dict[str, Any], s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another folder under the same relative names: tokens, adapter and basis come from the store, shards go there."""
    there = tmp_path / "elsewhere"
    there.mkdir()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    url = f"{s3}/apart"
    sent: list[str] = []
    real = Inline.run

    def sends(self: Any, job: Any, name: str, reporter: Any) -> None:
        if "pool gradients" in name:
            (tmp_path / "jobs").write_bytes(pickle.dumps([job]))
            subprocess.run([sys.executable, "-c", WORKER, str(tmp_path / "jobs")], check=True, cwd=there, timeout=240)
            objects._seen.cache_clear()  # pyright: ignore[reportPrivateUsage]
            assert not any(job.pending(index) for index in range(len(job.amounts)))
            sent.append(name)
        real(self, job, name, reporter)

    monkeypatch.setattr(Inline, "run", sends)
    made = run(config, output=Path("runs/a"), shards=url)
    assert len(sent) == 1
    assert {path.name.partition("-")[0] for path in there.glob("runs/a/artifacts/*")} >= {"tokens", "fit", "warmup"}
    assert not (there / "runs/a/run.yaml").exists()
    monkeypatch.setattr(Inline, "run", real)
    alone = run(config, output=Path("runs/alone"))
    assert contents(made) == contents(alone)


def test_paths_of_objects(memory: Bucket, tmp_path: Path) -> None:
    """Two objects of one shard, as a halved token budget can make them: one counts, and the mark says which."""
    artifact = Store(tmp_path, memory).artifact("features", 1)
    artifact.begin()
    place = artifact.shard(7)
    assert isinstance(place, ShardObject)
    place.write(b"one")
    place.write(b"another")
    memory.put(artifact.folder.name, "shard-00008-5-" + "0" * 64 + ".parquet", b"four")
    artifact.complete()
    wanted = read_json(artifact / COMPLETE)["files"]
    assert list(wanted) == ["shard-00007.parquet"]
    assert place.read(wanted[place.name]) in (b"one", b"another")
    assert artifact.shard_bytes == len(place.read(wanted[place.name]))
    assert os.path.basename(memory.url) == tmp_path.name
