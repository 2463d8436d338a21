"""Tables as parts of a pool: Parquet, and CSV or TSV with a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gistselect.data.parts import File, Item, readable, scan
from gistselect.errors import DataError
from gistselect.types import Place

PARQUET_BATCH = 512
"""Rows of a Parquet file that are Python objects at one time."""

LONGEST_CELL = 1 << 30
"""Bytes of a CSV cell; Python's own limit of 128 KiB is shorter than many answers."""


class Parquet(File):
    """Only the row groups that hold a wanted row are read again."""

    def items(self) -> Iterator[Item]:
        with readable(self.name), self.opened() as file:
            yield from self.rows(file, range(file.num_row_groups), 0)

    def fetch(self, places: Mapping[int, Place]) -> Iterator[tuple[int, bytes]]:
        with readable(self.name), self.opened() as file:
            first = 0
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                here = {row: place for row, place in places.items() if first <= place.offset < end}
                if here:
                    yield from scan(self.rows(file, [group], first), here)
                first = end

    def opened(self) -> pq.ParquetFile:
        """The file, whose pages are proved as they are read."""
        # Buffered ahead, every row group that was read would stay in memory until the last.
        return pq.ParquetFile(self.path.absolute(), page_checksum_verification=True, pre_buffer=False)

    def rows(self, file: pq.ParquetFile, groups: Iterable[int], row: int) -> Iterator[Item]:
        """The rows of these row groups, of which the first has this number."""
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


class Csv(File):
    """Cells are text, and a blank cell is empty text. The tab separates cells of `.tsv`, the comma those of others."""

    def items(self) -> Iterator[Item]:
        csv.field_size_limit(LONGEST_CELL)
        delimiter = "\t" if ".tsv" in self.path.name else ","
        with readable(self.name), self.open() as stream:
            lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
            cells = csv.reader(lines, delimiter=delimiter, strict=True)
            header = next(cells, None)
            if header is None:
                return
            if len(set(header)) != len(header) or "" in header:
                raise DataError(f"{self.name} has a header with empty or repeated names: {', '.join(header)}.")
            row = 0
            for values in cells:
                if values:
                    yield row, row, self._row(header, values)
                    row += 1

    def fetch(self, places: Mapping[int, Place]) -> Iterator[tuple[int, bytes]]:
        return scan(self.items(), places)

    def _row(self, header: list[str], values: list[str]) -> dict[str, str] | DataError:
        if len(values) != len(header):
            return DataError(f"it has {len(values)} cells where the header has {len(header)}")
        return dict(zip(header, values, strict=True))
