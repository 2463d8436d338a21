"""Files, folders, globs and hub data sets become parts, each read whole or refused with its name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from gistselect.data.pool import open_pool
from gistselect.errors import DataError
from rows import chat, fetched, in_memory, line, reason


def test_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b/x.jsonl", "a/y.parquet", "a/p3_groups.json", "a/notes.txt", "c.jsonl.zst"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist([chat(id=name)]), tmp_path / name)
        else:
            content = line(chat(id=name))
            zst = zstandard.ZstdCompressor().compress(content)
            (tmp_path / name).write_bytes(zst if name.endswith("zst") else content)
    ids = ["a/y.parquet", "b/x.jsonl", "c.jsonl.zst"]
    assert [row.id for row in open_pool([tmp_path]).rows()] == ids
    assert [row.id for row in open_pool([f"{tmp_path}/*/[xy].*"]).rows()] == ids[:2]
    with pytest.raises(DataError, match="named twice"):
        open_pool([tmp_path, tmp_path / "b" / "x.jsonl"])


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("cut.jsonl.gz", gzip.compress(line(chat()) * 50)[:-20], "cannot read .*cut.jsonl.gz"),
        ("not.jsonl.zst", b"plain text", "cannot read .*not.jsonl.zst"),
        ("not.parquet", b"plain text", "cannot read .*not.parquet"),
        ("cut.json", b'[\n{"messages": []},\n{"messages"', "cannot read .*cut.json: a value in it is not readable"),
        ("more.json", b'[\n{"messages": []}\n] {}', "more after its JSON array"),
        ("wrapped.json", b'{"n": 1,\n"rows": [{"a": 1}]}', "under 'rows'; name them as .*wrapped.json:rows"),
        ("wrapped.jsonl", b'{"n": 1, "rows": [{"a": 1}]}', "under 'rows'; name them as .*wrapped.jsonl:rows"),
        ("twice.csv", b"a,a\n1,2", "empty or repeated names"),
        ("empty.jsonl", b"\n \n", "there is no data row in .*empty.jsonl"),
        ("table.xlsx", b"a,b", "no known kind; known: .jsonl"),
    ],
)
def test_a_source_that_is_damaged_or_of_another_kind(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=why):
        list(open_pool([tmp_path / name]).rows())


def test_a_flipped_byte_in_parquet_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "pool.parquet"
    table = pa.Table.from_pylist([chat("yes" * 500)])
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, file, write_page_checksum=True, **plain)
    content = bytearray(file.read_bytes())
    content[content.index(b"yesyes") + 100] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match="cannot read"):
        list(open_pool([file]).rows())


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        open_pool([tmp_path / "absent.jsonl"])
    with pytest.raises(DataError, match="no file matches"):
        open_pool([f"{tmp_path}/*.jsonl"])
    with pytest.raises(DataError, match="holds no data"):
        open_pool([tmp_path])
    with pytest.raises(DataError, match="no data row in memory"):
        list(in_memory([]).rows())


# Hub data sets and Python rows.


def test_hub_data_sets_in_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [chat("ä", id=f"{i}") for i in range(3)]
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_bytes(b"\n".join(map(line, rows)))
    (folder / "test.jsonl").write_bytes(line(chat("other", id="t")))
    pool = open_pool([f"hf:{folder}"])
    assert [row.id for row in pool.rows()] == ["0", "1", "2"]
    assert json.loads(fetched(pool, 2)[2]) == rows[2]
    assert [row.id for row in open_pool([f"hf:{folder}:test"]).rows()] == ["t"]
    with pytest.raises(DataError, match="no split 'dev'; it has: train, test"):
        open_pool([f"hf:{folder}:dev"])

    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    saved = open_pool([f"hf:{tmp_path / 'saved'}"])
    assert list(fetched(saved).values()) == list(fetched(pool).values())
    assert fetched(open_pool([tmp_path / "saved"])) == fetched(saved), "what save_to_disk wrote is known by itself"
    splits = datasets.DatasetDict(test=datasets.Dataset.from_list(rows[:1]), train=datasets.Dataset.from_list(rows))
    splits.save_to_disk(tmp_path / "splits" / "here")
    assert len(fetched(open_pool([tmp_path / "splits" / "here"]))) == len(rows)
    (tmp_path / "splits" / "beside.jsonl").write_text(line(rows[0]).decode() + "\n")
    with pytest.raises(DataError, match=r"name each by itself, and what else is to be read: .*splits/here\."):
        open_pool([tmp_path / "splits"])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="cannot load the data set"):
        open_pool([f"hf:{tmp_path / 'nothing'}"])


def test_python_rows_and_data_sets_agree() -> None:
    rows = [chat("a"), chat("b")]
    from_list = in_memory(rows)
    from_dataset = in_memory(datasets.Dataset.from_list(rows))
    assert from_dataset.digest == from_list.digest
    assert list(from_dataset.rows()) == list(from_dataset.rows()) == list(from_list.rows())
    assert fetched(from_dataset, 1) == fetched(from_list, 1) == {1: line(rows[1])}
    assert all("not an object" in reason(row) for row in in_memory(["text", 3, {1: 2}]).rows())
    assert fetched(in_memory([chat(blob=b"\xff", half="\ud83d")]))[0].isascii()
