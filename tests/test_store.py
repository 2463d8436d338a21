"""Artifacts are keyed by what they depend on and written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gistselect.errors import ArtifactMismatchError
from gistselect.run.results import publish
from gistselect.run.store import Store, read_batches, read_table, table_writer, write_table


def test_another_input_is_another_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = store.artifact("fit", 1, rows="x"), store.artifact("fit", 1, rows="y")
    first.complete(rank=3)
    assert store.artifact("fit", 1, rows="x").facts == {"rank": 3}
    assert not second.is_complete
    assert not store.artifact("fit", 2, rows="x").is_complete


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    write_table(path, pa.table({"x": list(range(20000)), "y": [float(i) for i in range(20000)]}))
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactMismatchError, match="damaged"):
        read_table(path)


def test_asking_for_an_artifact_writes_nothing(tmp_path: Path) -> None:
    assert not Store(tmp_path / "store").artifact("fit", 1, rows="x").is_complete
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_with_foreign_inputs_is_refused(tmp_path: Path) -> None:
    artifact = Store(tmp_path).artifact("fit", 1, rows="x")
    artifact.begin()
    artifact.begin()
    (artifact / "inputs.json").write_text('{"stage": "fit", "version": 1, "rows": "y"}')
    with pytest.raises(ArtifactMismatchError, match="other inputs"):
        artifact.begin()


def test_facts_of_another_artifact_or_changed_ones_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = store.artifact("fit", 1, rows="x"), store.artifact("fit", 1, rows="y")
    first.complete(rank=3)
    second.complete(rank=4)
    (second / "complete.json").write_bytes((first / "complete.json").read_bytes())
    with pytest.raises(ArtifactMismatchError, match="damaged"):
        _ = second.facts
    (first / "complete.json").write_text((first / "complete.json").read_text().replace("3", "5", 1))
    with pytest.raises(ArtifactMismatchError, match="damaged"):
        _ = first.facts


def test_what_is_published_does_not_change_with_its_copy(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "selected.jsonl").write_text("{}")
    publish(tmp_path / "store" / "selected.jsonl", tmp_path / "selected.jsonl")
    (tmp_path / "selected.jsonl").write_text("edited")
    assert (tmp_path / "store" / "selected.jsonl").read_text() == "{}"


def test_a_table_that_is_read_in_pieces_is_never_whole_in_memory(tmp_path: Path) -> None:
    """Scores of millions of rows for many targets are larger than memory."""
    values = np.random.default_rng(0).standard_normal((16, 1 << 16))
    with table_writer(tmp_path / "large.parquet", pa.schema({"x": pa.float64()})) as writer:
        for group in values:
            writer.write_table(pa.table({"x": group}))
    before, held, found = pa.total_allocated_bytes(), [], []
    for batch in read_batches(tmp_path / "large.parquet", ["x"]):
        found.append(batch.column(0).to_numpy().copy())
        held.append(pa.total_allocated_bytes() - before)
    assert np.array_equal(np.concatenate(found), values.reshape(-1))
    assert max(held) < 6 * values[0].nbytes
