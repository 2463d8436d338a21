"""A target of one's own: a file of records, in any shape that a pool may have."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from gistselect.data.config import ReadOptions
from gistselect.data.pool import read_records
from gistselect.data.sources import READERS
from gistselect.errors import DataError
from gistselect.types import Record, Rejected


def is_file_name(name: str) -> bool:
    """Whether a target's name can only be that of a file or of a hub data set."""
    return name.endswith(tuple(READERS)) or name.startswith("hf:")


class Custom:
    """Records of a file as queries, grouped by a column; `heldout`, a second such file, evaluates it."""

    version = 1

    def __init__(
        self,
        path: str | Path,
        group_column: str | None,
        name: str,
        heldout: Path | None,
        options: ReadOptions | None = None,
    ) -> None:
        self.path = path
        self.options = options or ReadOptions()
        """How the files are read."""
        self.group_column = group_column
        """None takes the column `group` where a row has it."""
        self.name = name
        self.heldout = heldout

    def queries(self) -> list[Record]:
        """All rows. Raises `DataError` if one of them cannot be used: a target is small and must be whole."""
        return list(self._queries)

    def evaluation(self) -> list[Record]:
        """All rows of `heldout`, if there is one. Raises `DataError` if a target row is among them."""
        if self.heldout is None:
            return []
        asked = {record.messages: record.id for record in self._queries}
        records = _whole(self.heldout, self.group_column, self.options)
        shared = [record for record in records if record.messages in asked]
        if shared:
            raise DataError(
                f"{len(shared)} rows of {self.heldout} are also in the target {self.path}, for example "
                f"{asked[shared[0].messages]!r}; a held-out file must not hold target rows, so remove them."
            )
        return records

    @cached_property
    def _queries(self) -> list[Record]:
        return _whole(self.path, self.group_column, self.options)


def _whole(path: str | Path, group_column: str | None, options: ReadOptions) -> list[Record]:
    rows = read_records(path, options, group_column=group_column)
    rejected = [row for row in rows if isinstance(row, Rejected)]
    if rejected:
        raise DataError(
            f"{len(rejected)} of {len(rows)} target rows in {path} cannot be used; correct or remove them. "
            f"The first is row {rejected[0].row}: {rejected[0].reason}"
        )
    return [row for row in rows if isinstance(row, Record)]
