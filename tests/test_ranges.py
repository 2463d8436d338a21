"""A file read in ranges is read as it is read whole: rows, numbers, places, ids, reasons and counts."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gistselect.data import json_files, ranges
from gistselect.data.json_files import Json
from gistselect.data.parts import File
from gistselect.data.pool import Reader, open_pool
from gistselect.data.ranges import LineRange, RowGroups
from gistselect.data.sources import READERS
from gistselect.data.tables import Csv, Parquet
from gistselect.errors import DataError
from gistselect.run import ingest
from gistselect.run.engine import Inline
from gistselect.run.progress import SilentReporter
from gistselect.run.reading import ReadAhead, ReadPool
from gistselect.run.sources import Sources
from gistselect.run.store import Store
from rows import chat, line

BROKEN = [b"{", b'{"messages": [', b"\xff\xfe", b"null", b"[1]", b'{"x": 1}', b'{"messages": []}']
BLANK = [b"", b" ", b"\r", b"\t \x0b\x0c"]
LINES = st.one_of(
    st.sampled_from([*BROKEN, *BLANK]),
    st.builds(lambda text: line(chat(text)), st.text(max_size=20)),
    st.builds(lambda text, id: line(chat(text, id=id)) + b"\r", st.sampled_from("a\u2028\x85\r"), st.integers(0, 3)),
    st.just(line(chat("long " * 99))),
    st.binary(max_size=9),
)
SIZES = st.one_of(st.integers(1, 40), st.integers(100, 2000))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranges")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def joined(file: File, size: int) -> list[Any]:
    """The items of a file's ranges, one range after the other."""
    return [item for one in ranges.ranges(file, size) for item in one.items()]


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(LINES, max_size=12),
    size=SIZES,
    chunk=st.sampled_from([3, 64, ranges.CHUNK]),
    mark=st.booleans(),
    end=st.sampled_from([b"", b"\n", b"\n\n"]),
)
def test_lines_are_those_of_the_whole_file(
    folder: Path, pieces: list[bytes], size: int, chunk: int, mark: bool, end: bytes
) -> None:
    content = (json_files.BYTE_ORDER_MARK if mark else b"") + b"\n".join(pieces) + end
    file = Json(written(folder / "lines.jsonl", content))
    try:
        expected = list(file.items())
    except DataError:  # an array, or rows under a key
        assume(False)
        raise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "CHUNK", chunk)
        found = ranges.ranges(file, size)
        assert [item for one in found for item in one.items()] == expected
    if all(isinstance(one, LineRange) for one in found):
        assert sum(one.n_bytes for one in found) == len(content)
        assert all(one.n_bytes >= size for one in found[:-1])
    else:
        assert list(found) == [file]


@settings(max_examples=40, deadline=None)
@given(groups=st.lists(st.integers(0, 9), max_size=6), size=st.integers(1, 600))
def test_rows_are_those_of_the_whole_table(folder: Path, groups: list[int], size: int) -> None:
    """Also where a row group is empty, and where text is not UTF-8."""
    texts = [b"\xff" if i % 7 == 5 else b"it is %d" % i for i in range(sum(groups))]
    column = pa.array(texts, pa.binary()).view(pa.string())
    table = pa.table({"prompt": column, "completion": pa.array(range(len(texts)))})
    path, first = folder / "table.parquet", 0
    with pq.ParquetWriter(path, table.schema) as writer:
        for n_rows in groups:
            writer.write_table(table.slice(first, n_rows), row_group_size=max(n_rows, 1))
            first += n_rows
    file = Parquet(path)
    assert str(joined(file, size)) == str(list(file.items()))  # reasons are errors, which are equal by their text
    found = ranges.ranges(file, size)
    if len(found) > 1:
        assert all(isinstance(one, RowGroups) for one in found)
        assert all(one.n_bytes >= size for one in found[:-1])


@pytest.mark.parametrize("name", ["a.jsonl.gz", "b.json", "c.csv", "d.jsonl"])
def test_what_cannot_be_entered_in_its_middle_is_one_range(tmp_path: Path, name: str) -> None:
    rows = [line(chat(f"It is {i}.")) for i in range(9)]
    content = {
        "a.jsonl.gz": gzip.compress(b"\n".join(rows)),
        "b.json": b"[" + b",\n".join(rows) + b"]",
        "c.csv": b'prompt,completion\n"a\nb",c\n' * 1 + b'"d\ne",f\n' * 9,
        "d.jsonl": b"{\n" + b"\n}\n{\n".join(row[1:-1] for row in rows) + b"\n}",  # objects over several lines
    }[name]
    file = READERS[name[1:]](written(tmp_path / name, content))
    assert isinstance(file, Json | Csv)
    assert list(ranges.ranges(file, 20)) == [file]


def test_a_line_that_is_too_long_is_named_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "LONGEST_LINE", 300)
    file = Json(written(tmp_path / "a.jsonl", b"\n".join([line(chat("Yes."))] * 7 + [b"x" * 400])))
    with pytest.raises(DataError, match="line 8: the line is longer than 300 bytes"):
        joined(file, 150)


class Ahead(Inline):
    """Does in this process what several workers would do."""

    parallel = True


def read(folder: Path, sources: list[str], engine: Inline | None) -> tuple[Path, dict[str, bytes]]:
    """The records of a pool, by file."""
    pool = open_pool(sources)
    stage = ReadPool(pool=pool, artifact=Store(folder).artifact("records", ingest.RECORDS_VERSION, pool=pool.digest))
    stage.run(SilentReporter(), engine)
    made = stage.artifact.folder
    return made, {path.name: path.read_bytes() for path in made.iterdir() if path.name != "seconds.jsonl"}


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files of 1 to 40 rows with ids that repeat within a range, a file and the pool, and rows that cannot be used."""
    monkeypatch.setattr(ingest, "SHARD_ROWS", 8)
    rows = [line(chat(f"It is {i % 17}.", **({"id": i % 11} if i % 3 else {}), rationale=i)) for i in range(40)]
    odd = [*BROKEN, *BLANK, line(chat("\u2028 \x85")) + b"\r", line(chat("", id=3)), line(chat("long " * 200))]
    mixed = [one for pair in zip(rows, odd * 4, strict=False) for one in pair]
    written(tmp_path / "b.jsonl", json_files.BYTE_ORDER_MARK + b"\n".join(mixed))
    written(tmp_path / "a.jsonl", b"\n\n")
    written(tmp_path / "c.jsonl.gz", gzip.compress(b"\n".join(rows[5:9])))
    written(tmp_path / "e.jsonl", b"\n".join([rows[0], *mixed[20:24]]))
    table = pa.table({"prompt": ["Q?"] * 30, "completion": [f"{i % 9}" if i != 4 else "" for i in range(30)]})
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=7)
    return sorted(map(str, tmp_path.glob("?.*")))


@pytest.mark.parametrize("size", [200, 700, 1 << 25])
def test_records_read_ahead_are_those_of_one_process(
    sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Every file of the artifact, with its counts and keys, has the same bytes."""
    monkeypatch.setattr(ranges, "RANGE_BYTES", size)
    alone, expected = read(tmp_path / "alone", sources, None)
    made, found = read(tmp_path / "ahead", sources, Ahead(Sources()))
    assert found == expected
    assert made.name == alone.name
    assert list((tmp_path / "ahead").iterdir()) == [made], "what was read ahead is gone"
    text = (made / "complete.json").read_text()
    assert '"n_renamed": 0' in text
    assert '"n_repeated_ids": 2' in text


def test_what_was_read_ahead_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run continues at its last range; a file that joins costs its own rows."""
    monkeypatch.setattr(ingest, "SHARD_ROWS", 8)
    monkeypatch.setattr(ranges, "RANGE_BYTES", 900)
    for name in "abc":
        written(tmp_path / f"{name}.jsonl", b"\n".join(line(chat(f"It is {i}.", id=f"{name}{i}")) for i in range(30)))
    sources = [str(tmp_path / f"{name}.jsonl") for name in "acb"]
    counted: Counter[str] = Counter()
    read_row, do = Reader._read, ReadAhead.do

    def counted_read(self: Reader, *arguments: Any) -> Any:
        counted["rows"] += 1
        return read_row(self, *arguments)

    def until_killed(self: ReadAhead, index: int, given: Sources) -> None:
        if index == 5:
            raise KeyboardInterrupt
        do(self, index, given)

    monkeypatch.setattr(Reader, "_read", counted_read)
    monkeypatch.setattr(ReadAhead, "do", until_killed)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path / "ahead", sources[:2], Ahead(Sources()))
    monkeypatch.setattr(ReadAhead, "do", do)
    assert 30 < counted["rows"] < 60
    before, _ = read(tmp_path / "ahead", sources[:2], Ahead(Sources()))
    assert counted["rows"] == 60
    after, found = read(tmp_path / "ahead", sources, Ahead(Sources()))
    assert counted["rows"] == 90
    assert found == read(tmp_path / "alone", sources, None)[1]
    assert {path.name for path in (tmp_path / "ahead").iterdir()} == {before.name, after.name}


def test_a_table_is_not_held_whole(tmp_path: Path) -> None:
    """What was read of earlier row groups is let go."""
    table = pa.table({"text": [f"{i:06}" * 200 for i in range(8000)]})  # 9.6 MB of texts that differ
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=600, compression="none", use_dictionary=False)
    del table
    start, most = pa.total_allocated_bytes(), 0
    for _ in Parquet(path).items():
        most = max(most, pa.total_allocated_bytes() - start)
    assert most < 4_000_000
