"""Identity, place and bytes of rows."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gistselect.data.config import ReadOptions
from gistselect.data.json_files import Json
from gistselect.data.pool import Pool, open_pool, read_records
from gistselect.data.stored import record_from_json, record_json
from gistselect.errors import DataError
from gistselect.types import Message, Record, Rejected
from rows import chat, contents, fetched, in_memory, line, places, reason

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
    assert fetched(pool) == dict(enumerate(DATA_LINES))
    assert fetched(pool, 3, 0, 2) == {i: DATA_LINES[i] for i in (0, 2, 3)}


def test_rows_continue_over_files_and_none_is_glued(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(line(chat("b0")) + b"\n" + line(chat("b1")))
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + line(chat("a0")))
    pool = open_pool([tmp_path / "b.jsonl", tmp_path / "a.jsonl"])
    assert [contents(row)[1][1] for row in pool.rows()] == ["b0", "b1", "a0"]
    assert fetched(pool) == {0: line(chat("b0")), 1: line(chat("b1")), 2: line(chat("a0"))}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=30), st.builds(lambda text: line(chat(text)), st.text()))))
def test_any_bytes_are_read_and_given_back(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "pool.jsonl"
    file.write_bytes(b"\n".join(pieces))
    expected = [data for data in b"\n".join(pieces).removeprefix(b"\xef\xbb\xbf").split(b"\n") if data.strip()]
    # What begins like an array is one, even if it is cut off; that is an error of the file.
    assume(not expected or not expected[0].lstrip().startswith(b"["))
    pool = open_pool([file])
    if not expected:
        with pytest.raises(DataError, match="no data row"):
            list(pool.rows())
        return
    rows = list(pool.rows())
    assert [row.row for row in rows] == list(range(len(expected)))
    assert fetched(pool) == dict(enumerate(expected))
    assert len({row.id for row in rows}) == len(rows)


@pytest.mark.parametrize("broken", [b"[", b"[broken", b"{", b'{"messages": ['])
def test_a_broken_first_line_costs_its_own_row_alone(tmp_path: Path, broken: bytes) -> None:
    file = tmp_path / "pool.jsonl"
    file.write_bytes(b"\n".join([broken, b"no json", line(chat("good"))]))
    first, second, good = open_pool([file]).rows()
    assert [type(first), type(second)] == [Rejected, Rejected]
    assert contents(good)[1][1] == "good"


def test_parquet_rows_become_one_json_object_each(tmp_path: Path) -> None:
    rows = [chat("ünd", id=f"r{i}", note=None if i else "n") for i in range(1500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pool.parquet", row_group_size=700)
    pool = open_pool([tmp_path / "pool.parquet"])
    assert [row.id for row in pool.rows()] == [f"r{i}" for i in range(1500)]
    raw = fetched(pool, 1, 1400)
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
    assert open_pool([file], ReadOptions(format="messages")).digest != pool.digest
    file.write_bytes(line(chat()) + b"\n" + line(chat("no.")))
    assert open_pool([file]).digest != pool.digest


def test_no_row_is_lost_to_its_id(tmp_path: Path) -> None:
    for name in ("code", "math"):
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(line(chat(f"{name} {i}", id=i)) for i in range(3)))
    rows = list(open_pool([tmp_path]).rows())
    source = tmp_path.name
    suffixed = [f"{i}@{source}/math:{i + 1}" for i in range(3)]
    assert [row.id for row in rows] == ["0", "1", "2", *suffixed]
    assert [row.user_id for row in rows if isinstance(row, Record)] == ["0", "1", "2"] * 2
    alone = list(open_pool([tmp_path / "math.jsonl"]).rows())
    assert [row.id for row in alone] == ["0", "1", "2"]


def test_an_id_that_looks_like_one_of_ours_is_told_apart() -> None:
    rows = list(in_memory([chat(id="a"), chat(id="a@memory:2"), chat(id="a"), chat(id="a@memory:2")]).rows())
    assert len({row.id for row in rows}) == 4
    assert [row.id for row in rows[:2]] == ["a", "a@memory:2"]


@pytest.mark.parametrize(
    ("given", "id"),
    [
        (7, "7"),
        (3.0, "3.0"),
        (True, "true"),
        ({"$oid": "65a"}, '{"$oid": "65a"}'),
        (["a", "b"], '["a", "b"]'),
        ("a\0", "a\0"),
        ("u\u2028v", "u\u2028v"),
        ("\ud83d", "\\ud83d"),
    ],
)
def test_ids_of_any_type_are_read(given: object, id: str) -> None:
    (row,) = in_memory([chat(id=given)]).rows()
    assert isinstance(row, Record)
    assert (row.id, row.user_id) == (id, id)


@pytest.mark.parametrize("given", [None, "", float("nan")])
def test_a_missing_id_is_made_from_the_content(given: object) -> None:
    (row,) = in_memory([chat(id=given)]).rows()
    (other,) = in_memory([chat()]).rows()
    assert isinstance(row, Record)
    assert row.user_id is None
    assert row.id == other.id


def test_ids_that_differ_in_a_final_nul_are_two() -> None:
    assert [row.id for row in in_memory([chat(id="a"), chat(id="a\0")]).rows()] == ["a", "a\0"]


def test_ids_from_content_are_stable_and_told_apart(tmp_path: Path) -> None:
    rows = [chat("x"), chat("y"), chat("x", note="not content"), chat("x")]
    x, y, x2, x3 = in_memory(rows).rows()
    assert (x2.id, x3.id) == (f"{x.id}@memory:2", f"{x.id}@memory:3")
    pq.write_table(pa.Table.from_pylist([chat("y")]), tmp_path / "other.parquet")
    (elsewhere,) = read_records(tmp_path / "other.parquet")
    assert elsewhere.id == y.id
    (plain,) = in_memory([{"prompt": "Well?", "completion": "x"}]).rows()
    assert plain.id != x.id


def test_many_ids_cost_few_bytes() -> None:
    """Ids alone grow with the pool: a set of 20,000 of them would hold 2.8 MB."""
    pool = in_memory([{"prompt": "", "completion": str(i), "id": i} for i in range(20_000)])
    stream = pool.rows()
    next(stream)
    tracemalloc.start()
    unique = sum(row.id == row.user_id for row in stream)  # pyright: ignore[reportAttributeAccessIssue]
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert unique == 19_999
    assert grown < 32 * 20_000


# Places.


def test_plain_files_are_read_at_the_places_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pool.jsonl"
    file.write_bytes(b"\n".join(line(chat(f"{i}")) for i in range(50)))
    pool = open_pool([file])
    where = places(pool)
    monkeypatch.setattr(type(pool.parts[0]), "items", None)
    assert pool.fetch({7: where[7], 49: where[49]}) == {7: line(chat("7")), 49: line(chat("49"))}


CHANGES = {
    "one byte": lambda lines: [lines[0], lines[1].replace(b"Well", b"Hell"), lines[2]],
    "a line gone": lambda lines: lines[1:],
    "a line before": lambda lines: [b'{"prompt": "a", "completion": "b"}', *lines],
    "a longer line": lambda lines: [lines[0], lines[1] + b" ", lines[2]],
    "cut off": lambda lines: lines[:1],
}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_row_that_changed_is_an_error_and_never_another_row(tmp_path: Path, suffix: str, change: str) -> None:
    file = tmp_path / f"pool{suffix}"

    def write(lines: list[bytes]) -> None:
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist([{"prompt": one.decode(), "completion": "c"} for one in lines]), file)
        else:
            file.write_bytes(gzip.compress(b"\n".join(lines)) if suffix.endswith("gz") else b"\n".join(lines))

    lines = [line(chat(answer)) for answer in ("first", "other", "third")]
    write(lines)
    pool = open_pool([file])
    where = places(pool)
    assert len(pool.fetch(where)) == 3
    write(CHANGES[change](lines))
    with pytest.raises(DataError, match=f"{file.name} changed since it was scored"):
        pool.fetch({1: where[1]})


def test_a_place_in_a_part_that_is_gone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(line(chat(name)))
    where = places(open_pool([tmp_path]))
    with pytest.raises(DataError, match="none numbered 1"):
        open_pool([tmp_path / "a.jsonl"]).fetch(where)
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(DataError, match=r"cannot read .*b.jsonl"):
        Pool(parts=(Json(tmp_path / "a.jsonl"), Json(tmp_path / "b.jsonl"))).fetch(where)


# Stored records.

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS, lambda v: st.dictionaries(TEXTS, v, max_size=2)
)
OBJECTS = st.lists(st.dictionaries(TEXTS, JSON_VALUES, max_size=3), max_size=2).map(tuple)
MESSAGES = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=TEXTS,
    reasoning=TEXTS,
    tool_calls=OBJECTS,
    name=TEXTS,
    tool_call_id=TEXTS,
    supervised=st.booleans(),
)
RECORDS = st.builds(
    Record,
    id=TEXTS,
    source=TEXTS,
    row=st.integers(0, 9),
    messages=st.lists(MESSAGES, max_size=3).map(tuple),
    tools=OBJECTS,
    plain=st.booleans(),
    prefix=TEXTS,
    closed=st.booleans(),
    group=TEXTS,
    user_id=st.none() | TEXTS,
)


@given(record=RECORDS)
def test_a_stored_record_comes_back_whole(record: Record) -> None:
    stored = record_json(record)
    assert Record(id=record.id, source=record.source, row=record.row, **record_from_json(stored)) == record
    stored.encode()
    assert "\n" not in stored


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


# The whole corpus.


def test_every_row_of_the_small_corpus_is_usable(shared_data: Path) -> None:
    pool = open_pool([shared_data / "small" / "train"])
    rows = list(pool.rows())
    assert len(rows) == 3000
    assert not [row for row in rows if isinstance(row, Rejected)]
    assert len({row.source for row in rows}) == 39
    files = sorted((shared_data / "small" / "train").rglob("*.jsonl"))
    assert list(fetched(pool).values()) == [row for file in files for row in file.read_bytes().splitlines()]
