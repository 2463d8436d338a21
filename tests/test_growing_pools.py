"""A file that joins the pool costs its own rows, one that leaves nothing, and the results are those of a new run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gistselect.data import ranges
from gistselect.data import tokens as tokens_module
from gistselect.data.pool import Reader, open_pool
from gistselect.representations import bm25, embedding
from gistselect.run import ingest as ingest_stage
from gistselect.run import passes, texts
from gistselect.run.config import RunConfig
from gistselect.run.earlier import Stretch, taken
from gistselect.run.engine import Scheduled
from gistselect.run.local import LocalCrew, devices
from gistselect.run.planning import plan_run
from gistselect.run.progress import SilentReporter
from gistselect.run.rates import Spent
from gistselect.run.reading import ReadPool
from gistselect.run.scheduling import Limits
from gistselect.run.store import LOST, Artifact, Store, write_table
from tiny_runs import RecordingReporter, adapter_of, ids, row, run, write_rows

METHODS = ("gist", "less:dimension=64", "rds")
ROWS = {"a": 20, "b": 15, "c": 17}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_stage, "SHARD_ROWS", 8)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(5)
    made = {}
    for name, count in ROWS.items():
        rows = [row(f"What is {rng.integers(99)}?", f"It is {name} {'so ' * int(rng.integers(9))}", id=f"{name}{i}")
                for i in range(count)]  # fmt: skip
        rows[3] = row("Nothing?", "", id=f"{name}-empty")
        made[name] = write_rows(tmp_path / f"{name}.jsonl", rows)
    return made


def paths(files: dict[str, Path], order: str) -> list[str]:
    return [str(files[name]) for name in order]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Pool rows that were read from a file, tokenised, and passed through the model; none of the target's."""
    found: Counter[str] = Counter()
    read, encode = Reader._read, tokens_module.encode

    def counted_read(self: Reader, part: Any, *arguments: Any) -> Any:
        found["read"] += not part.source.endswith("/sums")
        return read(self, part, *arguments)

    def counted_encode(records: Sequence[Any], *arguments: Any) -> Any:
        found["tokenised"] += sum(not record.source.endswith("/sums") for record in records)
        return encode(records, *arguments)

    monkeypatch.setattr(Reader, "_read", counted_read)
    monkeypatch.setattr(tokens_module, "encode", counted_encode)
    for name in ("gradient", "hidden"):
        monkeypatch.setitem(passes._RUN, name, counted_pass(found, name))
    return found


def counted_pass(found: Counter[str], name: str) -> Any:
    made = passes._RUN[name]

    def counted(source: Any, items: Sequence[Any], collectors: Sequence[Any]) -> Any:
        found[name] += len(items)
        return made(source, items, collectors)

    return counted


@pytest.fixture
def given(config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run at an adapter of an earlier one."""
    folder = run(config, until="warmup", output=tmp_path / "adapter")
    return {**config, "adapter": adapter_of(folder), "representation": METHODS}


def shards(folder: Path, stage: str) -> list[pa.Table]:
    """The tables of the newest artifact of a stage, shard by shard."""
    artifact = max(folder.glob(f"artifacts/{stage}-*"), key=lambda path: path.stat().st_mtime_ns)
    return [pq.read_table(path) for path in sorted(artifact.glob("shard-*.parquet"))]


def scores(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Columns of the scores of every method, by its folder."""
    found = {}
    for path in [folder, *(folder / "methods").iterdir()]:
        table = pq.read_table(path / "scores.parquet").sort_by("id")
        columns = {name: table[name].to_numpy() for name in ("id", "row", "score", "loss")}
        found[path.relative_to(folder).as_posix()] = columns
    assert len(found) == len(METHODS)
    return found


@pytest.mark.parametrize("order", ["abc", "acb", "bac"])
def test_a_file_that_joins_costs_its_own_rows(
    order: str, given: dict[str, Any], files: dict[str, Path], tmp_path: Path, counts: Counter[str]
) -> None:
    before = run(given, pool=paths(files, "ac"))
    old = scores(before)
    counts.clear()
    reporter = RecordingReporter()
    pool = paths(files, order)
    grown = run(given, reporter, pool=pool)
    usable = ROWS["b"] - 1
    assert counts == {"read": ROWS["b"], "tokenised": usable, "gradient": usable, "hidden": usable}
    assert any("37 rows of the pool were there before" in said for said in reporter.said)
    fresh = run(given, pool=pool, output=tmp_path / "fresh")
    for stage in ("records", "tokens"):
        assert shards(grown, stage) == shards(fresh, stage)
    for method, earlier in old.items():
        found, expected = scores(grown)[method], scores(fresh)[method]
        assert found["id"].tolist() == expected["id"].tolist()
        assert found["row"].tolist() == expected["row"].tolist()
        for name in ("score", "loss"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
            stayed = np.isin(found["id"], earlier["id"])
            # What is kept of a row does not move; scoring adds in another order.
            rtol = 1e-12 if name == "score" else 0
            np.testing.assert_allclose(found[name][stayed], earlier[name], rtol=rtol, atol=0)
    assert ids(grown / "quarantine.jsonl") == ids(fresh / "quarantine.jsonl")
    assert ids(grown / "selected.jsonl") == ids(fresh / "selected.jsonl")


def test_a_plan_counts_the_rows_of_a_file_that_joins(given: dict[str, Any], files: dict[str, Path]) -> None:
    def left(order: str) -> dict[str, tuple[float, float]]:
        values = RunConfig.from_values({**given, "pool": paths(files, order)})
        work = plan_run(values, SilentReporter(), seconds=0)["forecast"]["work"]
        return {one["name"]: (one["left"], one["total"]) for one in work if one["name"].startswith("pool ")}

    run(given, pool=paths(files, "ac"))
    found = left("abc")
    assert len(found) == 2, "one pass for gradients and one without"
    for some, all_ in found.values():
        # Shards of eight rows count by the share of new rows in them: rows differ in length.
        assert some / all_ == pytest.approx(ROWS["b"] / sum(ROWS.values()), rel=0.25)
    assert {some for some, _ in left("ca").values()} == {0.0}


def test_a_file_that_leaves_costs_nothing(given: dict[str, Any], files: dict[str, Path], counts: Counter[str]) -> None:
    run(given, pool=paths(files, "abc"))
    counts.clear()
    run(given, pool=paths(files, "ac"))
    run(given, pool=paths(files, "cb"))
    assert not +counts


def test_a_changed_file_is_another_one(
    given: dict[str, Any], files: dict[str, Path], tmp_path: Path, counts: Counter[str]
) -> None:
    run(given, pool=paths(files, "abc"))
    write_rows(files["b"], [row("And now?", f"It is {i}", id=f"b{i}") for i in range(9)])
    counts.clear()
    changed = run(given, pool=paths(files, "abc"))
    assert counts == {"read": 9, "tokenised": 9, "gradient": 9, "hidden": 9}
    assert shards(changed, "records") == shards(run(given, pool=paths(files, "abc"), output=tmp_path / "f"), "records")


def test_ids_are_those_of_a_new_run(
    given: dict[str, Any], files: dict[str, Path], tmp_path: Path, counts: Counter[str]
) -> None:
    """An added row takes the id of one in a file behind it, which is then read again, but not scored again."""
    write_rows(files["b"], [row("And now?", "It is.", id="c5"), row("Now?", "Yes.", id="b1")])
    run(given, pool=paths(files, "ac"))
    counts.clear()
    pool = paths(files, "abc")
    grown = run(given, pool=pool)
    assert counts == {"read": 2 + ROWS["c"], "tokenised": 2, "gradient": 2, "hidden": 2}
    fresh = run(given, pool=pool, output=tmp_path / "fresh")
    assert shards(grown, "records") == shards(fresh, "records")
    assert shards(grown, "tokens") == shards(fresh, "tokens")


def test_the_checkpoint_of_the_runs_own_warm_up_is_known(
    config: dict[str, Any], files: dict[str, Path], counts: Counter[str]
) -> None:
    """By its folder, once the pool has changed and with it the warm-up."""
    first = run(config, pool=paths(files, "ac"))
    counts.clear()
    run(config, pool=paths(files, "abc"), adapter=adapter_of(first))
    assert counts["gradient"] == ROWS["b"] - 1


def test_rows_that_were_given_up_are_not_known(tmp_path: Path) -> None:
    artifact = Artifact(folder=tmp_path / "features-x", key="x", inputs="{}")
    for shard in range(3):
        table = pa.table({"row": np.arange(8 * shard, 8 * shard + 8), "value": np.arange(8) + 10.0 * shard})
        write_table(artifact.shard(shard), table.replace_schema_metadata({LOST: "why"} if shard == 1 else None))
    stretch = Stretch(first=100, stop=122, at=2, artifact=artifact)
    rows = np.arange(95, 130)
    is_known, table = taken([stretch], rows, 8)
    assert rows[is_known].tolist() == [*range(100, 106), *range(114, 122)]
    assert table is not None
    assert table["row"].to_pylist() == rows[is_known].tolist()
    assert table["value"].to_pylist() == [*range(2, 8), *range(20, 28)]
    assert taken([], rows, 8)[1] is None


def test_files_read_by_workers_are_read_as_by_one_process(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one in ranges, ids that two files have, or one file twice, and a file without a row."""
    monkeypatch.setattr(ingest_stage, "SHARD_ROWS", 1024)
    monkeypatch.setattr(ranges, "RANGE_BYTES", 60_000)
    write_rows(files["a"], [row(f"What is {i}?", "It is.", id=f"a{i}") for i in range(1500)])
    write_rows(
        files["b"], [row("And now?", "It is.", id="c5"), row("Now?", "Yes.", id="b1"), row("Now?", "No.", id="b1")]
    )
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "broken.jsonl").write_text('{"messages": [\n')
    tables, facts = [], []
    for name in ("alone", "workers"):
        pool = open_pool([str(tmp_path / "*.jsonl")])
        store = Store(tmp_path / name)
        stage = ReadPool(pool=pool, artifact=store.artifact("records", 1, pool=pool.digest))
        reporter = RecordingReporter()
        if name == "alone":
            stage.run(reporter)
        else:
            engine = Scheduled(LocalCrew(devices("cpu:2", cuda=False)), Limits(), quarantine=False)
            stage.run(reporter, engine)
            engine.close()
            assert reporter.last["read files"].done == sum(path.stat().st_size for path in pool.files)
            assert reporter.last["read the pool"].done == stage.artifact.facts["n_rows"]
        facts.append(stage.artifact.facts)
        assert [path.name for path in (tmp_path / name).iterdir()] == [stage.artifact.folder.name]
        tables.append([pq.read_table(path) for path in sorted(stage.artifact.folder.glob("shard-*.parquet"))])
    assert tables[0] == tables[1]
    assert facts[0] == facts[1]


def test_an_embedding_is_taken_over_and_what_the_pool_determines_is_not(
    files: dict[str, Path], target_file: Path, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_by: Counter[str] = Counter()
    for module in (embedding, bm25):
        take = module._Collector.take

        def counted(self: Any, records: Sequence[Any], take: Any = take, name: str = module.__name__) -> Any:
            taken_by[name.rpartition(".")[2]] += len(records)
            return take(self, records)

        monkeypatch.setattr(module._Collector, "take", counted)
    values = {
        "target": (str(target_file),),
        "budget": 3,
        "output": tmp_path / "run",
        "representation": ("embedding", "bm25"),
        "encoder": str(tiny_encoder),
        "stability_draws": 0,
    }
    n = {name: count - 1 for name, count in ROWS.items()}
    run(values, pool=paths(files, "ac"))
    assert taken_by == {"embedding": n["a"] + n["c"], "bm25": n["a"] + n["c"]}
    # A plan counts each by its own rows: on a clock that an embedding moves by 100 and BM25 by 1 a row.
    planned = plan_run(
        RunConfig.from_values({**values, "pool": paths(files, "abc")}),
        SilentReporter(),
        seconds=1e9,
        clock=lambda: Spent(wall=100.0 * taken_by["embedding"] + taken_by["bm25"]),
    )
    (piece,) = (one for one in planned["forecast"]["work"] if one["name"] == "pool text (Embedding, BM25)")
    assert piece["left"] == piece["total"] == sum(n.values())
    assert piece["seconds"] == pytest.approx(100 * n["b"] + sum(n.values()), rel=0.05)
    taken_by.clear()
    reporter = RecordingReporter()
    grown = run(values, reporter, pool=paths(files, "abc"))
    assert taken_by == {"embedding": n["b"], "bm25": sum(n.values())}
    assert any("37 rows of the pool were there before; what is known of them for Embedding" in s for s in reporter.said)
    fresh = run(values, pool=paths(files, "abc"), output=tmp_path / "fresh")
    for path, rtol in (("scores.parquet", 1e-5), ("methods/bm25/scores.parquet", 0)):
        found, expected = (pq.read_table(folder / path) for folder in (grown, fresh))
        assert found["id"].to_pylist() == expected["id"].to_pylist()
        np.testing.assert_allclose(found["score"].to_numpy(), expected["score"].to_numpy(), rtol=rtol, atol=rtol)
    taken_by.clear()
    run(values, pool=paths(files, "cb"))
    assert taken_by == {"bm25": n["b"] + n["c"]}


@pytest.mark.parametrize("dedup", ["exact", "near"])
def test_what_gates_know_of_a_text_is_taken_over(
    dedup: str, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of rows that share nothing; repeats are found over old and new rows."""
    again = "What is the sum of these two numbers and of a third one, if there were one?"
    for name in "abc":
        rows = [row(f"{name} {i} {again if i < 4 else ''}", f"It is {i}.", id=f"{name}{i}") for i in range(ROWS[name])]
        write_rows(files[name], [*rows, row("The same?", "Yes, the same.", id=f"{name}-same")])
    target = write_rows(tmp_path / "target.jsonl", [row(again, "No.")])
    seen: list[int] = []
    values = {
        "target": (str(target),),
        "budget": 20,
        "output": tmp_path / "run",
        "representation": ("random",),
        "dedup": dedup,
        "decontaminate": (str(target),),
    }
    for name in ("text_digest", "hashed_blocks"):
        made = getattr(texts, name)

        def noted(what: Any, made: Any = made) -> Any:
            seen.extend([one.row for one in what] if isinstance(what, list) else [what.row])
            return made(what)

        monkeypatch.setattr(texts, name, noted)
    n = {name: count + 1 for name, count in ROWS.items()}
    run(values, pool=paths(files, "ac"))
    assert set(seen) == set(range(n["a"] + n["c"]))
    seen.clear()
    grown = run(values, pool=paths(files, "abc"))
    assert set(seen) == set(range(n["a"], n["a"] + n["b"]))
    fresh = run(values, pool=paths(files, "abc"), output=tmp_path / "fresh")
    for stage in ("digests", "minhash", "sharing"):
        if any(fresh.glob(f"artifacts/{stage}-*")):
            assert shards(grown, stage) == shards(fresh, stage)
    for file in ("selected.jsonl", "refused.parquet"):
        assert (grown / file).read_bytes() == (fresh / file).read_bytes()
    seen.clear()
    run(values, pool=paths(files, "cb"))
    assert not seen
