"""Artifacts are keyed by what they depend on and written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from gistselect.errors import ArtifactMismatchError
from gistselect.run.store import Store, digest, read_table, replacing, write_table


def test_digest_ignores_key_order_and_sees_every_value() -> None:
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert digest({"a": "é"}) != digest({"a": "e"})


def test_another_input_is_another_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = store.artifact("fit", 1, rows="x"), store.artifact("fit", 1, rows="y")
    first.complete(rank=3)
    assert store.artifact("fit", 1, rows="x").facts == {"rank": 3}
    assert not second.is_complete
    assert not store.artifact("fit", 2, rows="x").is_complete


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text("old")

    def fail_halfway() -> None:
        with replacing(path) as part:
            part.write_text("ne")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    write_table(path, pa.table({"x": list(range(20000)), "y": [float(i) for i in range(20000)]}))
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactMismatchError, match="damaged"):
        read_table(path)


def test_an_artifact_with_foreign_inputs_is_refused(tmp_path: Path) -> None:
    artifact = Store(tmp_path).artifact("fit", 1, rows="x")
    (artifact / "inputs.json").write_text('{"stage": "fit", "version": 1, "rows": "y"}')
    with pytest.raises(ArtifactMismatchError, match="other inputs"):
        Store(tmp_path).artifact("fit", 1, rows="x")
