"""A large file as ranges, which several workers read at a time: lines of JSON by bytes, tables by row groups.

A range is a part whose rows have the numbers and the places that they have in the file. What cannot be entered in its
middle (compressed text, arrays, CSV, whose cells may hold line feeds) is one range.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from gistselect.data.json_files import Json, lines
from gistselect.data.parts import File, Item, readable
from gistselect.data.tables import Parquet

RANGE_BYTES = 1 << 25
"""Bytes of a range, about: some seconds of work."""
CHUNK = 1 << 20
"""Bytes that are looked through at a time for the ends of lines."""


class LineRange(Json):
    """The lines that begin in `[start, stop)`, of which the first has this number in the file."""

    def __init__(self, file: Json, start: int, stop: int, number: int) -> None:
        super().__init__(file.path)
        self.start, self.stop, self.number = start, stop, number

    @property
    def unit(self) -> str:
        return "line"

    @property
    def extent(self) -> str:
        return f"{self.name} from line {self.number:,} on"

    @property
    def n_bytes(self) -> int:
        return self.stop - self.start

    def items(self) -> Iterator[Item]:
        with readable(self.name), self.path.open("rb") as stream:
            stream.seek(self.start)
            yield from lines(stream, self.name, self.start, self.number, self.stop)


class RowGroups(Parquet):
    """The row groups `[start, stop)`, of which the first row has this number in the file."""

    def __init__(self, file: Parquet, start: int, stop: int, row: int, n_bytes: int) -> None:
        super().__init__(file.path)
        self.start, self.stop, self.row, self._n_bytes = start, stop, row, n_bytes

    @property
    def extent(self) -> str:
        return f"{self.name} from row {self.row:,} on"

    @property
    def n_bytes(self) -> int:
        return self._n_bytes

    def items(self) -> Iterator[Item]:
        with readable(self.name), self.opened() as file:
            yield from self.rows(file, range(self.start, self.stop), self.row)


def ranges(file: File, size: int) -> Sequence[File]:
    """A file as ranges of at least about so many bytes, in their order; the file itself where that makes one.

    Lines are counted for it, by one pass at the speed of reading. Raises `DataError` for a file that cannot be read.
    """
    found: Sequence[File] = ()
    if file.n_bytes > size:
        if isinstance(file, Json) and file.has_plain_lines:
            found = _line_ranges(file, size)
        elif isinstance(file, Parquet):
            found = _row_ranges(file, size)
    return found if len(found) > 1 else (file,)


def _line_ranges(file: Json, size: int) -> list[LineRange]:
    starts = [*_line_starts(file, size), (file.n_bytes, 0)]
    return [LineRange(file, start, stop, number) for (start, number), (stop, _) in pairwise(starts)]


def _line_starts(file: Json, size: int) -> Iterator[tuple[int, int]]:
    """Offset and number of the first line that begins at or after each place to cut, and before the end of the file."""
    offset, number, due = 0, 1, size
    end = file.n_bytes
    yield 0, 1
    with readable(file.name), file.path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            at = 0
            while (feed := chunk.find(b"\n", max(at, due - 1 - offset))) >= 0:
                number += chunk.count(b"\n", at, feed + 1)
                at = feed + 1
                if offset + at < end:
                    yield offset + at, number
                due = offset + at + size
            number += chunk.count(b"\n", at)
            offset += len(chunk)


def _row_ranges(file: Parquet, size: int) -> list[RowGroups]:
    found: list[RowGroups] = []
    with readable(file.name), file.opened() as opened:
        start, row, n_rows, n_bytes = 0, 0, 0, 0
        for index in range(opened.num_row_groups):
            group = opened.metadata.row_group(index)
            n_rows += group.num_rows
            n_bytes += sum(group.column(column).total_compressed_size for column in range(group.num_columns))
            if n_bytes >= size or index == opened.num_row_groups - 1:
                found.append(RowGroups(file, start, index + 1, row, n_bytes))
                start, row, n_rows, n_bytes = index + 1, row + n_rows, 0, 0
    return found
