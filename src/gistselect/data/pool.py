"""Identity, place and bytes of rows: a pool is a stream of records whose rows can be fetched again and proved.

A row that cannot be used becomes a `Rejected` with its place and reason, never a gap: row numbers count
every data row, so the bytes of row 17 are always the bytes that row 17 was read from.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from gistselect.data.config import ReadOptions
from gistselect.data.ids import Ids
from gistselect.data.parts import File, Part, name_to_keep, serialised
from gistselect.data.shapes import Conversation, Row, conversation, renamed
from gistselect.data.sources import open_parts
from gistselect.data.summary import Detected, shown
from gistselect.data.turns import is_missing, kind, shorten, text
from gistselect.errors import DataError
from gistselect.types import Place, Record, Rejected


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Rows of one or more sources, read anew at every pass. Built by `open_pool`."""

    parts: tuple[Part, ...]
    options: ReadOptions = field(default_factory=ReadOptions)
    group_column: str | None = None
    """Column that every row must have for its group; if none is named, `group` is used where it exists."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files behind the parts; hub data sets and rows in memory have none."""
        return tuple(part.path for part in self.parts if isinstance(part, File))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what the records depend on: content and source of the parts in order, the options."""
        digest = hashlib.sha256(self._read_as)
        for part, content in zip(self.parts, self.part_digests, strict=True):
            digest.update(json.dumps([part.source, content]).encode())
        return digest.hexdigest()

    @cached_property
    def part_digests(self) -> tuple[str, ...]:
        """SHA-256 of the content of each part."""
        return tuple(part.digest() for part in self.parts)

    @property
    def reading(self) -> str:
        """SHA-256 over how parts are read, whatever they hold."""
        return hashlib.sha256(self._read_as).hexdigest()

    @property
    def _read_as(self) -> bytes:
        return json.dumps([self.options.model_dump(mode="json"), self.group_column]).encode()

    def rows(self) -> Iterator[Record | Rejected]:
        """Every data row in order; raises `DataError` if a source is unreadable or there is no row at all.

        Memory is bounded: many ids are told apart on disk (`data.ids`). A repeated id gets its source and place added,
        and so does not depend on how often it was seen before.
        """
        reader = Reader(self)
        for index in range(len(self.parts)):
            yield from reader.part(index)
        reader.end()

    def fetch(self, places: Mapping[int, Place]) -> dict[int, bytes]:
        """The bytes at these places without line feed, by the same keys: lines as they stand, others as one object.

        Plain files are read at these places alone. Raises `DataError` that names the file if what stands there is
        not what was read before.
        """
        by_part: dict[int, dict[int, Place]] = defaultdict(dict)
        for row, place in places.items():
            by_part[place.part][row] = place
        found: dict[int, bytes] = {}
        for index, wanted in sorted(by_part.items()):
            if not 0 <= index < len(self.parts):
                raise DataError(f"the pool has {len(self.parts)} parts, none numbered {index}; did its sources change?")
            part = self.parts[index]
            proved = {row: data for row, data in part.fetch(wanted) if _is_at(data, wanted[row])}
            if missing := wanted.keys() - proved.keys():
                row = min(missing)
                raise DataError(
                    f"{part.name} changed since it was scored: row {row} of the pool is no longer what it was. "
                    "Restore the file, or run the same command again to score it anew."
                )
            found |= proved
        return found


class Reader:
    """One pass over the parts of a pool, in their order; it alone knows which ids are taken."""

    def __init__(self, pool: Pool, folder: Path | None = None, *, apart: bool = False) -> None:
        """Ids that are too many for memory are kept in `folder`, without a name.

        Rows read `apart` have the ids that they have by themselves; another reader finds in `adopt` which are taken.
        """
        self._pool, self._ids, self._apart = pool, Ids(folder), apart
        self.n_rows = 0
        """Rows so far, which is the number of the next one."""
        self.found: list[Detected] = []
        """What was found in each part."""

    def begin(self, index: int) -> Detected:
        """What is found in the next part, as yet nothing."""
        self.found.append(Detected(name=name_to_keep(self._pool.parts[index])))
        return self.found[-1]

    def part(self, index: int) -> Iterator[Record | Rejected]:
        """The rows of the next part. Raises `DataError` if it is unreadable."""
        part, detected = self._pool.parts[index], self.begin(index)
        for number, offset, item in part.items():
            content = serialised(item)
            place = Place(part=index, offset=offset, length=len(content), crc=zlib.crc32(content), number=number)
            yield self._read(part, number, item, place, detected)
            self.n_rows += 1

    def take(self, ids: Callable[[], Iterable[str]], detected: Detected) -> bool:
        """Go past a part that was read before and has these ids, unless an earlier row has one of them.

        They are read twice, and never all in memory.
        """
        if detected.n_renamed or any(id in self._ids for id in ids()):
            return False
        for id in ids():
            self._ids.claim(id)
            self.n_rows += 1
        self.found.append(detected)
        return True

    def adopt(self, rows: pa.Table) -> pa.Table:
        """The next rows of the part that has begun, which were read apart, under the ids that they have in the pool.

        Columns: the `id` that a row has by itself, its `key`, `is_own` if it is the user's, `number` in the part.
        """
        if self._ids.claim_all(rows["key"].to_numpy()):
            self.n_rows += len(rows)
            return rows
        part, ids = self._pool.parts[len(self.found) - 1], []
        for id, is_own, number in zip(*(rows[name].to_pylist() for name in ("id", "is_own", "number")), strict=True):
            ids.append(self._claimed(id, is_own, part, number))
            self.n_rows += 1
        return rows.set_column(rows.column_names.index("id"), "id", pa.array(ids, pa.string()))

    def end(self) -> None:
        """Raises `DataError` if there was no row."""
        if self.n_rows == 0:
            names = ", ".join(part.name for part in self._pool.parts)
            raise DataError(f"there is no data row in {names}; give a source that has some.")

    def _read(self, part: Part, number: int, item: Any, place: Place, detected: Detected) -> Record | Rejected:
        own, source, reason, group, read = None, part.source, "", "", None
        options, row = self._pool.options, self.n_rows
        try:
            content = _parsed(item)
            named = renamed(content, options.columns)
            own = _own_id(named)
            source = _named_source(named) or source
            read = conversation(named, options)
            group = self._group(content)
        except DataError as error:
            reason = str(error)
        id = own or _fallback_id(item, read)
        if not self._apart:
            id = self._claimed(id, own is not None, part, number)
        detected.n_rows += 1
        if read is None or reason:
            detected.n_rejected += 1
            reason = f"{detected.name}, {part.unit} {number}: {reason}"
            return Rejected(id=id, source=source, row=row, reason=reason, user_id=own, place=place)
        detected.shapes[read.shape] += 1
        detected.count_unread(read.unread)
        detected.example = detected.example or shown(read.messages)
        return Record(
            id=id,
            source=source,
            row=row,
            messages=read.messages,
            tools=read.tools,
            plain=read.plain,
            group=group,
            user_id=own,
            place=place,
        )

    def _claimed(self, id: str, is_own: bool, part: Part, number: int) -> str:
        """The id under which the next row is kept: a longer one where an earlier row has its own."""
        if not self._ids.claim(id):
            self.found[-1].n_repeated_ids += is_own
            self.found[-1].n_renamed += 1
            id = f"{id}@{part.source}:{number}"
            while not self._ids.claim(id):
                id = f"{id}@{self.n_rows}"
        return id

    def _group(self, row: Row) -> str:
        column = self._pool.group_column
        value = row.get(column or "group")
        if isinstance(value, str | int | float) and not is_missing(value):
            return text(str(value), "the group")
        if column:
            raise DataError(f"it has no group in {column!r}; its columns: {shorten(sorted(row))}")
        return ""


def _is_at(data: bytes, place: Place) -> bool:
    return len(data) == place.length and zlib.crc32(data) == place.crc


def _parsed(item: Any) -> Row:
    """The row object in an item; raises `DataError` with the reason if there is none."""
    if isinstance(item, bytes):
        try:
            item = json.loads(item.decode())
            if isinstance(item, dict):
                return item
        except UnicodeDecodeError as error:
            raise DataError(f"the line is not UTF-8 (byte {error.start} of the line)") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"the line is not readable JSON: {error}") from None
    elif isinstance(item, DataError):
        raise item
    if not isinstance(item, Mapping) or any(not isinstance(key, str) for key in item):
        raise DataError(f"the row is {kind(item)}, not an object with named columns")
    return item


def _own_id(row: Row) -> str | None:
    """The row's `id` as text: JSON for what is neither text nor a whole number; None if missing, empty or NaN."""
    value = row.get("id")
    if is_missing(value) or value == "":
        return None
    if not isinstance(value, str):
        value = serialised(value).decode()
    return value.encode(errors="backslashreplace").decode()


def _named_source(row: Row) -> str | None:
    named = (row[column] for column in ("dataset", "source") if isinstance(row.get(column), str) and row[column])
    return next((value.encode(errors="backslashreplace").decode() for value in named), None)


def _fallback_id(item: Any, read: Conversation | None) -> str:
    """Depends on what the record says, so that it survives a move to another file or file format."""
    content = serialised(item)
    if read is not None:
        said: list[Any] = [read.plain, [[message.role, message.content] for message in read.messages]]
        more = [message for message in read.messages if message.tool_calls or message.reasoning]
        if more or read.tools:
            said.append([[message.reasoning, message.tool_calls] for message in more] + [read.tools])
        content = json.dumps(said).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def open_pool(
    sources: Sequence[str | Path],
    options: ReadOptions | None = None,
    *,
    group_column: str | None = None,
    exclude: Path | None = None,
) -> Pool:
    """A pool over files, folders, globs and `hf:owner/name[:config][:split]` data sets, in the order given.

    Files: `.jsonl`, `.ndjson`, `.json` (lines, objects or an array; an array within an object as `file.json:key`),
    `.csv` and `.tsv`, all of them also with `.gz` or `.zst`, and `.parquet`. Folders are searched recursively in
    sorted order, hidden files aside; there `.json` counts only if there is nothing else. What lies below `exclude`,
    such as the run folder, is no part of folders and globs. Raises `DataError` for a source that is missing, of
    another kind, named twice, or a folder of several configurations or splits.
    """
    options = (options or ReadOptions()).reading
    parts = tuple(open_parts(sources, exclude, options.pool_revision))
    return Pool(parts=parts, options=options, group_column=group_column)


def read_records(
    path: str | Path, options: ReadOptions | None = None, *, group_column: str | None = None
) -> list[Record | Rejected]:
    """All rows of one source, such as a target; see `open_pool`."""
    return list(open_pool([path], options, group_column=group_column).rows())
