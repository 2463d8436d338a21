"""Parts of a pool: each file or data set as a stream of numbered items, and its rows' bytes by their places.

An item is the bytes of a JSON line, a row object, or the `DataError` that says why there is none.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from gistselect.errors import DataError
from gistselect.types import Place

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PARQUET_BATCH = 512
"""Rows of a Parquet file that are Python objects at one time."""

Item = tuple[int, int, Any]
"""Number in the part for messages (see `Part.unit`), offset for `Place`, and the row."""


class Part(Protocol):
    """One file or data set of a pool."""

    name: str
    """For messages: a path, or the name of a data set."""
    source: str
    """Data set name of the rows that do not say theirs."""
    unit: str
    """What its items are numbered by: line (from 1), row (from 0)."""

    def items(self) -> Iterator[Item]:
        """Every data row and where it stands; raises `DataError` if the whole part cannot be read."""
        ...

    def fetch(self, places: Mapping[int, Place]) -> Iterator[tuple[int, bytes]]:
        """Key and bytes of what stands at these places now, in any order; nothing for a place that is gone."""
        ...

    def digest(self) -> str:
        """SHA-256 of the content."""
        ...


class File:
    """What files have in common."""

    unit = "row"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = _encodable(str(path))
        self.source = _encodable(f"{path.resolve().parent.name}/{path.name.split('.')[0]}")

    def digest(self) -> str:
        with readable(self.name), self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


class JsonLines(File):
    """Lines end at a line feed only. A byte order mark belongs to the file, not to its first row."""

    unit = "line"

    def items(self) -> Iterator[Item]:
        offset = 0
        with readable(self.name), self._stream() as stream:
            for number, line in enumerate(stream, start=1):
                start, offset = offset, offset + len(line)
                if number == 1 and line.startswith(BYTE_ORDER_MARK):
                    line, start = line.removeprefix(BYTE_ORDER_MARK), len(BYTE_ORDER_MARK)
                line = line.removesuffix(b"\n")
                if number == 1:
                    self._refuse_array(line)
                if line.strip():
                    yield number, start, line

    def fetch(self, places: Mapping[int, Place]) -> Iterator[tuple[int, bytes]]:
        if self.path.name.endswith((".gz", ".zst")):
            yield from scan(self.items(), places)
            return
        with readable(self.name), self.path.open("rb") as stream:
            for row, place in sorted(places.items(), key=lambda entry: entry[1].offset):
                stream.seek(place.offset)
                line = stream.read(place.length + 1)
                if line[place.length :] in (b"", b"\n"):
                    yield row, line[: place.length]

    def _stream(self) -> io.BufferedReader:
        return io.BufferedReader(pa.input_stream(str(self.path)), 1 << 20)  # pyright: ignore[reportArgumentType]

    def _refuse_array(self, line: bytes) -> None:
        if self.path.suffix == ".json" and line.lstrip().startswith(b"["):
            raise DataError(
                f"{self.name} is one JSON array, not one object per line; "
                f"convert it, for example with: jq -c '.[]' {self.path.name} > {self.path.stem}.jsonl"
            )


class Parquet(File):
    """Only the row groups that hold a wanted row are read again."""

    def items(self) -> Iterator[Item]:
        with readable(self.name), self._open() as file:
            yield from self._rows(file, range(file.num_row_groups), 0)

    def fetch(self, places: Mapping[int, Place]) -> Iterator[tuple[int, bytes]]:
        with readable(self.name), self._open() as file:
            first = 0
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                here = {row: place for row, place in places.items() if first <= place.offset < end}
                if here:
                    yield from scan(self._rows(file, [group], first), here)
                first = end

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path, page_checksum_verification=True)

    def _rows(self, file: pq.ParquetFile, groups: Iterable[int], row: int) -> Iterator[Item]:
        for batch in file.iter_batches(batch_size=PARQUET_BATCH, row_groups=list(groups)):
            for item in _batch_rows(batch):
                yield row, row, item
                row += 1


def _batch_rows(batch: pa.RecordBatch) -> list[Any]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            return [DataError(f"a text column is not UTF-8 ({error})")]
        return [row for i in range(len(batch)) for row in _batch_rows(batch.slice(i, 1))]


class Rows:
    """Rows that are Python objects already, as those of a hub data set."""

    unit = "row"

    def __init__(self, name: str, rows: Iterable[Any]) -> None:
        self.name = self.source = name
        self._rows = rows

    def items(self) -> Iterator[Item]:
        for number, row in enumerate(self._rows):
            yield number, number, row

    def fetch(self, places: Mapping[int, Place]) -> Iterator[tuple[int, bytes]]:
        return scan(self.items(), places)

    def digest(self) -> str:
        digest = hashlib.sha256()
        for _, _, row in self.items():
            digest.update(serialised(row) + b"\n")
        return digest.hexdigest()


def scan(items: Iterator[Item], places: Mapping[int, Place]) -> Iterator[tuple[int, bytes]]:
    """Key and bytes of the items at these places, by one pass that ends at the last of them."""
    wanted = {place.offset: row for row, place in places.items()}
    for _, offset, item in items:
        if not wanted:
            return
        if (row := wanted.pop(offset, None)) is not None:
            yield row, serialised(item)


def serialised(item: Any) -> bytes:
    """The bytes of a JSON line as they stand, of any other row one JSON object."""
    if isinstance(item, bytes):
        return item
    try:
        return json.dumps(item, ensure_ascii=False, default=_plain).encode()
    except UnicodeEncodeError:
        return json.dumps(item, default=_plain).encode()


def _plain(value: Any) -> Any:
    """What JSON has no form for: bytes as base64, dates and the like as text."""
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)


def _encodable(name: str) -> str:
    """A file name as text that can be written down: file systems allow names that are not UTF-8."""
    return name.encode(errors="replace").decode()


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Failures of reading become a `DataError` that names the part."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {name}: {error}. Check that the file is complete and not damaged.") from error
