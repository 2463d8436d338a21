"""Files to records: bytes, row numbers, ids and reasons."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gistselect.data.records import FORMATS, Pool, _Rows, normalised, open_pool, read_records
from gistselect.errors import ConfigError, DataError
from gistselect.types import Record, Rejected


def chat(answer: str = "Yes.", **columns: object) -> dict[str, object]:
    return {
        "messages": [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": answer}],
        **columns,
    }


def in_memory(rows: Iterable[object], format: str = "auto") -> Pool:
    return Pool(parts=(_Rows("memory", rows),), format=format)


def line(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def contents(record: Record | Rejected) -> list[tuple[str, str]]:
    assert isinstance(record, Record), record
    return [(message.role, message.content) for message in record.messages]


def reason(record: Record | Rejected) -> str:
    assert isinstance(record, Rejected), record
    return record.reason


# Bytes and row numbers.

ODD_LINES = [
    b'  {"prompt": "a",   "completion": "b\\u00e9"}  ',
    b"",
    line({"prompt": "é\u2028x", "completion": "y\x85z"}),
    b"   \t",
    b'{"prompt": "crlf", "completion": "kept"}\r',
    b"\r",
    b'{"prompt": "last", "completion": "no final newline"}',
]
DATA_LINES = [odd for odd in ODD_LINES if odd.strip()]


@pytest.mark.parametrize("final_newline", [b"", b"\n"])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json"])
def test_raw_rows_are_the_bytes_of_their_lines(tmp_path: Path, suffix: str, final_newline: bytes) -> None:
    content = b"\n".join(ODD_LINES) + final_newline
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(suffix[6:], bytes)
    file = tmp_path / f"pool{suffix}"
    file.write_bytes(pack(content))
    pool = open_pool([file])
    rows = list(pool.rows())
    assert [row.row for row in rows] == [0, 1, 2, 3]
    assert [contents(row)[0][1] for row in rows] == ["a", "é\u2028x", "crlf", "last"]
    assert pool.raw([3, 0, 2]) == {i: DATA_LINES[i] for i in (0, 2, 3)}


def test_rows_continue_over_files_and_none_is_glued(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(line(chat("b0")) + b"\n" + line(chat("b1")))
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + line(chat("a0")))
    pool = open_pool([tmp_path / "b.jsonl", tmp_path / "a.jsonl"])
    assert [contents(row)[1][1] for row in pool.rows()] == ["b0", "b1", "a0"]
    assert pool.raw(range(3)) == {0: line(chat("b0")), 1: line(chat("b1")), 2: line(chat("a0"))}
    with pytest.raises(DataError, match="no row 3"):
        pool.raw([1, 3])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=30), st.builds(lambda text: line(chat(text)), st.text()))))
def test_any_bytes_are_read_and_given_back(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "pool.jsonl"
    file.write_bytes(b"\n".join(pieces))
    expected = [data for data in b"\n".join(pieces).removeprefix(b"\xef\xbb\xbf").split(b"\n") if data.strip()]
    pool = open_pool([file])
    if not expected:
        with pytest.raises(DataError, match="empty"):
            list(pool.rows())
        return
    rows = list(pool.rows())
    assert [row.row for row in rows] == list(range(len(expected)))
    assert pool.raw(range(len(rows))) == dict(enumerate(expected))
    assert len({row.id for row in rows}) == len(rows)


def test_parquet_rows_become_one_json_object_each(tmp_path: Path) -> None:
    rows = [chat("ünd", id=f"r{i}", note=None if i else "n") for i in range(1500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pool.parquet", row_group_size=700)
    pool = open_pool([tmp_path / "pool.parquet"])
    assert [row.id for row in pool.rows()] == [f"r{i}" for i in range(1500)]
    raw = pool.raw([1, 1400])
    assert {i: json.loads(data) for i, data in raw.items()} == {1: rows[1], 1400: rows[1400]}
    assert "ünd".encode() in raw[1]
    assert b"\n" not in raw[1]


def test_parquet_text_that_is_not_utf8_is_quarantined_alone(tmp_path: Path) -> None:
    table = pa.table({"prompt": [b"a", b"\xff", b"c"], "completion": [b"1", b"2", b"3"]})
    text = pa.table([column.combine_chunks().view(pa.string()) for column in table.columns], names=table.column_names)
    pq.write_table(text, tmp_path / "pool.parquet")
    first, second, third = open_pool([tmp_path / "pool.parquet"]).rows()
    assert (contents(first)[0][1], contents(third)[0][1]) == ("a", "c")
    assert "row 1" in reason(second)
    assert "UTF-8" in reason(second)


def test_two_passes_are_equal_and_the_digest_follows_the_content(tmp_path: Path) -> None:
    file = tmp_path / "pool.jsonl"
    file.write_bytes(line(chat()) + b"\n" + line(chat("No.")))
    pool = open_pool([file])
    assert list(pool.rows()) == list(pool.rows())
    assert open_pool([str(file)]).digest == pool.digest
    assert open_pool([file], format="messages").digest != pool.digest
    file.write_bytes(line(chat()) + b"\n" + line(chat("no.")))
    assert open_pool([file]).digest != pool.digest


# Shapes.

ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}
SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "a"},
    ]
}
SHAPES = {
    "messages": (chat(), [("user", "Well?"), ("assistant", "Yes.")], False),
    "prompt_completion": (
        {"prompt": "p", "completion": " c"},
        [("user", "p"), ("assistant", " c")],
        True,
    ),
    "alpaca": (ALPACA, [("user", "Add.\n1 2"), ("assistant", "3")], False),
    "sharegpt": (SHAREGPT, [("system", "s"), ("user", "q"), ("assistant", "a")], False),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_by_name_and_detected(name: str) -> None:
    row, expected, plain = SHAPES[name]
    for format in (name, "auto"):
        (record,) = in_memory([row], format=format).rows()
        assert contents(record) == expected
        assert isinstance(record, Record)
        assert record.plain is plain


def test_shape_variants() -> None:
    conversational = {
        "prompt": [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "a"}],
    }
    both = {**chat("from messages"), "prompt": "p", "completion": None}
    records = list(in_memory([conversational, {**ALPACA, "input": ""}, {**ALPACA, "input": None}, both]).rows())
    assert contents(records[0]) == [("user", "q"), ("assistant", "a")]
    assert not records[0].plain  # pyright: ignore[reportAttributeAccessIssue]
    assert contents(records[1])[0] == contents(records[2])[0] == ("user", "Add.")
    assert contents(records[3])[1] == ("assistant", "from messages")


def test_normalised_is_a_chat_row() -> None:
    (record,) = in_memory([{**SHAREGPT, "id": 7, "source": "talks"}]).rows()
    assert isinstance(record, Record)
    expected = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    expected.append({"role": "assistant", "content": "a"})
    assert normalised(record) == {"id": "7", "dataset": "talks", "messages": expected}


# Bad rows.

BAD_LINES = [
    (b'{"messages": [', "not readable JSON"),
    (b'{"prompt": "caf\xe9", "completion": "x"}', "not UTF-8"),
    (b"[1, 2]", "is a list"),
    (b"null", "is a NoneType"),
    (b"[" * 100_000, "not readable JSON"),
    (line({"text": "x"}), "accepted shapes: messages"),
    (line({"messages": []}), "empty"),
    (line({"messages": "hello"}), "not a list"),
    (line({"messages": ["hello"]}), "turn 1 is not an object"),
    (line({"messages": [{"role": "user"}]}), "turn 1 is not an object"),
    (
        line({"messages": [{"role": "bot", "content": "x"}]}),
        "turn 1 has the role 'bot'; allowed: system, user",
    ),
    (line({"messages": [{"role": ["user"], "content": "x"}]}), "turn 1 has the role"),
    (line({"messages": [{"role": "user", "content": "x"}]}), "no assistant turn"),
    (line({"messages": [{"role": "assistant", "content": None}]}), "turn 1 is a NoneType"),
    (line(chat(" \n")), "assistant turn is empty"),
    (line({"prompt": "x", "completion": ""}), "assistant turn is empty"),
    (line({"prompt": "x", "completion": 3}), "the answer is a int"),
    (line({"instruction": ["x"], "output": "y"}), "'instruction' is a list"),
    (b'{"prompt": "half \\ud83d", "completion": "y"}', "lone surrogate at character 5"),
    (b'{"prompt": "x", "completion": "y", "id": "\\ud83d"}', "lone surrogate"),
    (b'{"prompt": "x", "completion": "y", "source": "\\ud83d"}', "lone surrogate"),
    (line(chat(id={"a": 1})), "'id' is a dict"),
]


@pytest.mark.parametrize(("bad", "why"), BAD_LINES)
def test_a_bad_row_is_named_and_the_rows_around_it_stay(tmp_path: Path, bad: bytes, why: str) -> None:
    file = tmp_path / "pool.jsonl"
    file.write_bytes(line(chat("first")) + b"\n\n" + bad + b"\n" + line(chat("last")))
    pool = open_pool([file])
    first, second, third = pool.rows()
    assert contents(first)[1][1] == "first"
    assert contents(third)[1][1] == "last"
    assert why in reason(second)
    assert reason(second).startswith(f"{file}, line 3: ")
    assert pool.raw([1]) == {1: bad}
    json.dumps([second.id, second.source], ensure_ascii=False).encode()


def test_a_format_named_is_the_only_one_tried() -> None:
    (row,) = in_memory([chat()], format="alpaca").rows()
    assert "alpaca (instruction, output)" in reason(row)


def test_an_id_used_twice_is_quarantined_with_the_first_row() -> None:
    rows = list(in_memory([chat(id="a"), chat(id="a-2"), chat(id="a"), chat(id=1), chat(id="1")]).rows())
    assert [row.id for row in rows] == ["a", "a-2", "a-3", "1", "1-2"]
    assert [isinstance(row, Rejected) for row in rows] == [False, False, True, False, True]
    assert "is that of row 0" in reason(rows[2])
    assert "is that of row 3" in reason(rows[4])


def test_ids_from_content_are_stable_and_told_apart(tmp_path: Path) -> None:
    rows = [chat("x"), chat("y"), chat("x", note="not content"), chat("x")]
    x, y, x2, x3 = in_memory(rows).rows()
    assert (x2.id, x3.id) == (f"{x.id}-2", f"{x.id}-3")
    assert not any(isinstance(row, Rejected) for row in (x, y, x2, x3))
    pq.write_table(pa.Table.from_pylist([chat("y")]), tmp_path / "other.parquet")
    (elsewhere,) = read_records(tmp_path / "other.parquet")
    assert elsewhere.id == y.id
    (plain,) = in_memory([{"prompt": "Well?", "completion": "x"}]).rows()
    assert plain.id != x.id


def test_hostile_names_stay_data(tmp_path: Path) -> None:
    hostile = "../../etc/passwd\x00\n[/red]<script>"
    (row,) = in_memory([chat(id=hostile, dataset=hostile)]).rows()
    assert (row.id, row.source) == (hostile, hostile)


def test_source_is_a_column_or_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "dolly"
    folder.mkdir()
    named = [chat(dataset="d", source="s"), chat(source="s"), chat(dataset=3), chat(dataset="")]
    (folder / "part.jsonl.gz").write_bytes(gzip.compress(b"\n".join(map(line, named))))
    assert [row.source for row in open_pool([tmp_path]).rows()] == ["d", "s", "dolly/part", "dolly/part"]


def test_groups(tmp_path: Path) -> None:
    file = tmp_path / "target.jsonl"
    file.write_bytes(b"\n".join(map(line, [chat(group="g", lang="fi"), chat(lang=4), chat()])))
    assert [row.group for row in read_records(file) if isinstance(row, Record)] == ["g", "", ""]
    fi, four, missing = read_records(file, group_column="lang")
    assert isinstance(fi, Record)
    assert isinstance(four, Record)
    assert (fi.group, four.group) == ("fi", "4")
    assert "no group in 'lang'" in reason(missing)


# Whole sources.


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
        ("array.json", b'[\n{"messages": []}\n]', "one JSON array"),
        ("empty.jsonl", b"\n \n", "the pool is empty"),
        ("table.csv", b"a,b", "no known kind; known: .jsonl"),
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
    with pytest.raises(ConfigError, match="Did you mean 'alpaca'"):
        open_pool([tmp_path], format="alpacca")
    with pytest.raises(DataError, match="empty"):
        list(in_memory([]).rows())


# Hub data sets and Python rows.


def test_hub_data_sets_in_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [chat("ä", id=f"{i}") for i in range(3)]
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_bytes(b"\n".join(map(line, rows)))
    (folder / "test.jsonl").write_bytes(line(chat("other", id="t")))
    pool = open_pool([f"hf:{folder}"])
    assert [row.id for row in pool.rows()] == ["0", "1", "2"]
    assert json.loads(pool.raw([2])[2]) == rows[2]
    assert [row.id for row in open_pool([f"hf:{folder}:test"]).rows()] == ["t"]
    with pytest.raises(DataError, match="no split 'dev'; it has: train, test"):
        open_pool([f"hf:{folder}:dev"])

    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    saved = open_pool([f"hf:{tmp_path / 'saved'}"])
    assert list(saved.raw([0, 1, 2]).values()) == list(pool.raw([0, 1, 2]).values())
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="cannot load the data set"):
        open_pool([f"hf:{tmp_path / 'nothing'}"])


def test_python_rows_and_data_sets_agree() -> None:
    rows = [chat("a"), chat("b")]
    from_list = in_memory(rows)
    from_dataset = in_memory(datasets.Dataset.from_list(rows))
    assert from_dataset.digest == from_list.digest
    assert list(from_dataset.rows()) == list(from_dataset.rows()) == list(from_list.rows())
    assert from_dataset.raw([1]) == from_list.raw([1]) == {1: line(rows[1])}
    assert all("not an object" in reason(row) for row in in_memory(["text", 3, {1: 2}]).rows())
    assert in_memory([chat(blob=b"\xff", half="\ud83d")]).raw([0])[0].isascii()


# The whole corpus.


def test_every_row_of_the_small_corpus_is_usable(shared_data: Path) -> None:
    pool = open_pool([shared_data / "small" / "train"])
    rows = list(pool.rows())
    assert len(rows) == 3000
    assert not [row for row in rows if isinstance(row, Rejected)]
    assert len({row.source for row in rows}) == 39
    files = sorted((shared_data / "small" / "train").rglob("*.jsonl"))
    assert list(pool.raw(range(3000)).values()) == [row for file in files for row in file.read_bytes().splitlines()]
