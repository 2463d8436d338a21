"""Parts of a pool: each file or data set as a stream of numbered items, and its rows' bytes by their places.

An item is the bytes of a JSON line, a row object, or the `DataError` that says why there is none.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from gistselect.errors import DataError
from gistselect.types import Place

Item = tuple[int, int, Any]
"""Number in the part for messages (see `Part.unit`), offset for `Place`, and the row."""


class Part(Protocol):
    """One file or data set of a pool."""

    name: str
    """For messages: a path, or the name of a data set."""
    source: str
    """Data set name of the rows that do not say theirs."""

    @property
    def unit(self) -> str:
        """What its items are numbered by: line (from 1), or row, item, object (from 0)."""
        ...

    def items(self) -> Iterator[Item]:
        """Every data row and where it stands; raises `DataError` if the whole part cannot be read."""
        ...

    def fetch(self, places: Mapping[int, Place]) -> Iterator[tuple[int, bytes]]:
        """Key and bytes of what stands at these places now, in any order; nothing for a place that is gone."""
        ...

    def digest(self) -> str:
        """SHA-256 of the content."""
        ...


class File(ABC):
    """What files have in common; see `Part`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = _encodable(str(path))
        self.source = _encodable(f"{path.resolve().parent.name}/{path.name.split('.')[0]}")

    @property
    def unit(self) -> str:
        return "row"

    @property
    def extent(self) -> str:
        """What of the file this is, for people."""
        return self.name

    @property
    def n_bytes(self) -> int:
        """Bytes as they stand, compressed or not."""
        return self.path.stat().st_size

    @abstractmethod
    def items(self) -> Iterator[Item]: ...

    @abstractmethod
    def fetch(self, places: Mapping[int, Place]) -> Iterator[tuple[int, bytes]]: ...

    def digest(self) -> str:
        with readable(self.name), self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def open(self) -> io.BufferedReader:
        """The decompressed content."""
        return io.BufferedReader(pa.input_stream(str(self.path)), 1 << 20)  # pyright: ignore[reportArgumentType]


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
        rows = self._rows
        if not isinstance(rows, Sequence) and not hasattr(rows, "__getitem__"):
            yield from scan(self.items(), places)
            return
        for row, place in places.items():
            if place.offset < len(rows):  # pyright: ignore[reportArgumentType]
                yield row, serialised(rows[place.offset])  # pyright: ignore[reportIndexIssue]

    def digest(self) -> str:
        digest = hashlib.sha256()
        for _, _, row in self.items():
            digest.update(serialised(row) + b"\n")
        return digest.hexdigest()


def name_to_keep(part: Part) -> str:
    """For what is written down, which is to hold after a move of the pool: a file with its folder's name alone."""
    if isinstance(part, File):
        return _encodable(f"{part.path.resolve().parent.name}/{part.path.name}")
    return part.name


def scan(items: Iterator[Item], places: Mapping[int, Place]) -> Iterator[tuple[int, bytes]]:
    """Key and bytes of the items at these places, by one pass that ends at the last of them."""
    wanted = {place.offset: row for row, place in places.items()}
    for _, offset, item in items:
        if not wanted:
            return
        if (row := wanted.pop(offset, None)) is not None:
            yield row, serialised(item)


def serialised(item: Any) -> bytes:
    """The bytes of a JSON line as they stand, of any other row one JSON object without NaN."""
    if isinstance(item, bytes):
        return item
    try:
        return json.dumps(item, ensure_ascii=False, allow_nan=False, default=_plain).encode()
    except UnicodeEncodeError:
        return json.dumps(_finite(item), default=_plain).encode()
    except ValueError:
        return json.dumps(_finite(item), ensure_ascii=False, default=_plain).encode(errors="backslashreplace")


def _finite(value: Any) -> Any:
    """The value with null for what JSON has no number for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


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
    except (OSError, EOFError, UnicodeError, zlib.error, pa.ArrowException, csv.Error) as error:
        raise DataError(f"cannot read {name}: {error}. Check that the file is complete and not damaged.") from error
