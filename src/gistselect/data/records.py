"""Files to records: JSONL, Parquet, hub data sets and Python rows become one stream, in pool order.

A row that cannot be used becomes a `Rejected` with its place and reason, never a gap: row numbers count
every data row, so the bytes of row 17 are always the bytes that row 17 was read from.
"""

from __future__ import annotations

import base64
import glob
import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from gistselect.errors import ConfigError, DataError
from gistselect.types import Message, Record, Rejected

ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {role: role for role in ROLES} | {"human": "user", "gpt": "assistant"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Row = Mapping[str, Any]
Conversation = tuple[tuple[Message, ...], bool]
"""Messages, and whether they are plain text (prompt/completion) rather than a chat."""


# Row shapes. One function and one line of FORMATS each.


def _from_messages(row: Row) -> Conversation:
    return _turns(row["messages"], "role", "content", {role: role for role in ROLES}), False


def _from_prompt_completion(row: Row) -> Conversation:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list | tuple) and isinstance(completion, list | tuple):
        return _from_messages({"messages": [*prompt, *completion]})
    return _exchange(prompt, completion), True


def _from_alpaca(row: Row) -> Conversation:
    instruction, context = _text(row["instruction"], "'instruction'"), row.get("input")
    if context is not None and _text(context, "'input'").strip():
        instruction = f"{instruction}\n{context}"
    return _exchange(instruction, row["output"]), False


def _from_sharegpt(row: Row) -> Conversation:
    return _turns(row["conversations"], "from", "value", SHAREGPT_ROLES), False


@dataclass(frozen=True, kw_only=True)
class RowShape:
    """One way in which data sets write a conversation down."""

    columns: tuple[str, ...]
    """Columns that a row of this shape must have."""
    read: Callable[[Row], Conversation]
    """Raises `DataError` with the reason if the row cannot be used."""


FORMATS: dict[str, RowShape] = {
    "messages": RowShape(columns=("messages",), read=_from_messages),
    "prompt_completion": RowShape(columns=("prompt", "completion"), read=_from_prompt_completion),
    "alpaca": RowShape(columns=("instruction", "output"), read=_from_alpaca),
    "sharegpt": RowShape(columns=("conversations",), read=_from_sharegpt),
}


def _conversation(row: Row, format: str) -> Conversation:
    """The conversation in a row; `auto` takes the first format of FORMATS whose columns are all there."""
    candidates = FORMATS if format == "auto" else {format: FORMATS[format]}
    for shape in candidates.values():
        if all(row.get(column) is not None for column in shape.columns):
            messages, plain = shape.read(row)
            return _checked(messages), plain
    accepted = "; ".join(f"{name} ({', '.join(shape.columns)})" for name, shape in candidates.items())
    raise DataError(f"its columns {_shorten(sorted(row))} fit none of the accepted shapes: {accepted}")


def _turns(turns: Any, role_key: str, text_key: str, roles: Mapping[str, str]) -> tuple[Message, ...]:
    if not isinstance(turns, list | tuple):
        raise DataError(f"the conversation is a {type(turns).__name__}, not a list of turns")
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping) or role_key not in turn or text_key not in turn:
            raise DataError(f"turn {number} is not an object with {role_key!r} and {text_key!r}")
        role = turn[role_key]
        if not isinstance(role, str) or role not in roles:
            raise DataError(f"turn {number} has the role {_shorten(role)}; allowed: {', '.join(roles)}")
        messages.append(Message(role=roles[role], content=_text(turn[text_key], f"turn {number}")))
    return tuple(messages)


def _exchange(prompt: Any, answer: Any) -> tuple[Message, ...]:
    return (
        Message(role="user", content=_text(prompt, "the prompt")),
        Message(role="assistant", content=_text(answer, "the answer")),
    )


def _checked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if not messages:
        raise DataError("the list of messages is empty")
    answers = [message for message in messages if message.role == "assistant"]
    if not answers:
        raise DataError("it has no assistant turn, so there is nothing to learn from it")
    if any(not answer.content.strip() for answer in answers):
        raise DataError("an assistant turn is empty")
    return messages


def _text(value: Any, what: str) -> str:
    """The value if it is text that UTF-8 can hold (JSON can smuggle in half of a surrogate pair)."""
    if not isinstance(value, str):
        raise DataError(f"{what} is a {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} is not valid Unicode: lone surrogate at character {error.start}") from None
    return value


def _shorten(value: Any, limit: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


# Parts of a pool. Each yields (place, item); an item is the bytes of a JSON line, a row object, or the
# `DataError` that says why there is none.


class Part(Protocol):
    """One file or data set of a pool."""

    name: str
    """For messages: a path, or the name of a data set."""
    source: str
    """Data set name of the rows that do not say theirs."""

    def items(self) -> Iterator[tuple[str, Any]]:
        """Every data row and where it stands; raises `DataError` if the whole part cannot be read."""
        ...

    def digest(self) -> str:
        """SHA-256 of the content."""
        ...


class _File:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = _encodable(str(path))
        self.source = _encodable(f"{path.resolve().parent.name}/{path.name.split('.')[0]}")

    def digest(self) -> str:
        try:
            with self.path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(self.name, error) from error


class _JsonLines(_File):
    """Lines end at a line feed only. A byte order mark belongs to the file, not to its first row."""

    def items(self) -> Iterator[tuple[str, bytes]]:
        try:
            with pa.input_stream(str(self.path)) as raw, io.BufferedReader(raw, 1 << 20) as stream:  # pyright: ignore[reportArgumentType]
                for number, line in enumerate(stream, start=1):
                    line = line.removesuffix(b"\n")
                    if number == 1:
                        line = line.removeprefix(BYTE_ORDER_MARK)
                        self._refuse_array(line)
                    if line.strip():
                        yield f"line {number}", line
        except OSError as error:
            raise _unreadable(self.name, error) from error

    def _refuse_array(self, line: bytes) -> None:
        if self.path.suffix == ".json" and line.lstrip().startswith(b"["):
            raise DataError(
                f"{self.name} is one JSON array, not one object per line; "
                f"convert it, for example with: jq -c '.[]' {self.path.name} > {self.path.stem}.jsonl"
            )


class _Parquet(_File):
    def items(self) -> Iterator[tuple[str, Any]]:
        row = 0
        try:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(batch_size=512):
                    for item in _batch_rows(batch):
                        yield f"row {row}", item
                        row += 1
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(self.name, error) from error


def _batch_rows(batch: pa.RecordBatch) -> list[Any]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            return [DataError(f"a text column is not UTF-8 ({error})")]
        return [row for i in range(len(batch)) for row in _batch_rows(batch.slice(i, 1))]


class _Rows:
    """Rows that are Python objects already, as those of a hub data set."""

    def __init__(self, name: str, rows: Iterable[Any]) -> None:
        self.name = self.source = name
        self._rows = rows

    def items(self) -> Iterator[tuple[str, Any]]:
        for number, row in enumerate(self._rows):
            yield f"row {number}", row

    def digest(self) -> str:
        digest = hashlib.sha256()
        for _, row in self.items():
            digest.update(serialised(row) + b"\n")
        return digest.hexdigest()


READERS: dict[str, type[_JsonLines | _Parquet]] = {
    ".jsonl": _JsonLines,
    ".jsonl.gz": _JsonLines,
    ".jsonl.zst": _JsonLines,
    ".json": _JsonLines,
    ".parquet": _Parquet,
}
FOLDER_SUFFIXES = tuple(suffix for suffix in READERS if suffix != ".json")
"""Folders hold all kinds of `.json` beside their data, so there only these count."""


def _encodable(name: str) -> str:
    """A file name as text that can be written down: file systems allow names that are not UTF-8."""
    return name.encode(errors="replace").decode()


def _unreadable(name: str, error: Exception) -> DataError:
    return DataError(f"cannot read {name}: {error}. Check that the file is complete and not damaged.")


# Rows: parsing, identity, bytes.


def _parsed(item: Any) -> Row:
    """The row object in an item; raises `DataError` with the reason if there is none."""
    if isinstance(item, bytes):
        try:
            item = json.loads(item.decode())
        except UnicodeDecodeError as error:
            raise DataError(f"the line is not UTF-8 (byte {error.start} of the line)") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"the line is not readable JSON: {error}") from None
    elif isinstance(item, DataError):
        raise item
    if not isinstance(item, Mapping) or any(not isinstance(key, str) for key in item):
        raise DataError(f"the row is a {type(item).__name__}, not an object with named columns")
    return item


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


def _explicit_id(row: Row) -> str | None:
    value = row.get("id")
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value, "'id'")


def _named_source(row: Row) -> str | None:
    named = (row[column] for column in ("dataset", "source") if isinstance(row.get(column), str) and row[column])
    return next((_text(value, "the data set name") for value in named), None)


def _content_id(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


class _Ids:
    """Ids seen so far, kept as 16-byte digests: the only memory that grows with the pool."""

    def __init__(self) -> None:
        self._first: dict[bytes, int] = {}
        self._copies: dict[bytes, int] = {}

    def claim(self, id: str, row: int) -> tuple[str, int | None]:
        """A name no earlier row has (`id`, or `id-2`, `id-3` …), and the row that had `id` first, if any."""
        key = self._key(id)
        if (first := self._first.setdefault(key, row)) == row:
            return id, None
        while True:
            number = self._copies[key] = self._copies.get(key, 1) + 1
            copy = f"{id}-{number}"
            if self._first.setdefault(self._key(copy), row) == row:
                return copy, first

    @staticmethod
    def _key(id: str) -> bytes:
        return hashlib.blake2b(id.encode(), digest_size=16).digest()


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Rows of one or more sources, read anew at every pass. Built by `open_pool`."""

    parts: tuple[Part, ...]
    format: str = "auto"
    """A key of FORMATS, or `auto`."""
    group_column: str | None = None
    """Column that every row must have for its group; if none is named, `group` is used where it exists."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what the records depend on: content and source of the parts in order, the options."""
        digest = hashlib.sha256(json.dumps([self.format, self.group_column]).encode())
        for part in self.parts:
            digest.update(json.dumps([part.source, part.digest()]).encode())
        return digest.hexdigest()

    def rows(self) -> Iterator[Record | Rejected]:
        """Every data row in order; raises `DataError` if a source is unreadable or there is no row at all."""
        ids, row = _Ids(), -1
        for row, (part, place, item) in enumerate(self._items()):
            yield self._read(part, place, item, row, ids)
        if row < 0:
            names = ", ".join(part.name for part in self.parts)
            raise DataError(f"the pool is empty: no data row in {names}. Give a source that has rows.")

    def raw(self, rows: Collection[int]) -> dict[int, bytes]:
        """The bytes of these rows without line feed: a JSON line as it stands, others as one JSON object.

        Raises `DataError` if the pool has no such row.
        """
        wanted, found = set(rows), {}
        for row, (_, _, item) in enumerate(self._items()):
            if len(found) == len(wanted):
                break
            if row in wanted:
                found[row] = serialised(item)
        if missing := wanted - found.keys():
            raise DataError(f"the pool has no row {min(missing)}; did its files change since the first pass?")
        return found

    def _items(self) -> Iterator[tuple[Part, str, Any]]:
        for part in self.parts:
            for place, item in part.items():
                yield part, place, item

    def _read(self, part: Part, place: str, item: Any, row: int, ids: _Ids) -> Record | Rejected:
        explicit, source, reason, group = None, part.source, "", ""
        messages, plain = (), False
        try:
            content = _parsed(item)
            explicit = _explicit_id(content)
            source = _named_source(content) or source
            messages, plain = _conversation(content, self.format)
            group = self._group(content)
        except DataError as error:
            reason = str(error)
        id, first = ids.claim(explicit or _fallback_id(item, messages, plain), row)
        if explicit and first is not None:
            reason = f"the id {_shorten(explicit)} is that of row {first} of the pool; ids must be unique"
        if reason:
            return Rejected(id=id, source=source, row=row, reason=f"{part.name}, {place}: {reason}")
        return Record(id=id, source=source, row=row, messages=messages, plain=plain, group=group)

    def _group(self, row: Row) -> str:
        value = row.get(self.group_column or "group")
        if isinstance(value, str | int):
            return _text(str(value), "the group")
        if self.group_column:
            raise DataError(f"it has no group in {self.group_column!r}; its columns: {_shorten(sorted(row))}")
        return ""


def _fallback_id(item: Any, messages: tuple[Message, ...], plain: bool) -> str:
    """Depends on what the record says, so that it survives a move to another file or file format."""
    if messages:
        return _content_id(json.dumps([plain, [[m.role, m.content] for m in messages]]).encode())
    return _content_id(serialised(item))


# Opening.


def open_pool(sources: Sequence[str | Path], *, format: str = "auto", group_column: str | None = None) -> Pool:
    """A pool over files, folders, globs and `hf:owner/name[:split]` data sets, in the order given.

    Files: `.jsonl`, `.jsonl.gz`, `.jsonl.zst`, `.json` (one object per line) and `.parquet`; folders are
    searched recursively in sorted order. Raises `DataError` for a source that is missing, of another kind or
    named twice, `ConfigError` for an unknown format.
    """
    if format != "auto" and format not in FORMATS:
        close = get_close_matches(format, ["auto", *FORMATS], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"there is no format {format!r}; known: auto, {', '.join(FORMATS)}.{hint}")
    parts = [part for source in sources for part in _open(source)]
    seen: set[str] = set()
    for part in parts:
        name = str(part.path.resolve()) if isinstance(part, _File) else part.name
        if name in seen:
            raise DataError(f"{part.name} is named twice among the sources; name it once.")
        seen.add(name)
    return Pool(parts=tuple(parts), format=format, group_column=group_column)


def read_records(path: str | Path, *, format: str = "auto", group_column: str | None = None) -> list[Record | Rejected]:
    """All rows of one source, such as a target; see `open_pool`."""
    return list(open_pool([path], format=format, group_column=group_column).rows())


def normalised(record: Record) -> dict[str, Any]:
    """A record as a chat row, whatever shape it was read from."""
    messages = [{"role": message.role, "content": message.content} for message in record.messages]
    return {"id": record.id, "dataset": record.source, "messages": messages}


def _open(source: str | Path) -> list[Part]:
    text = str(source)
    if text.startswith("hf:"):
        return [_hub_data_set(text.removeprefix("hf:"))]
    path = Path(text)
    if path.exists():
        return _open_path(path)
    if not glob.has_magic(text):
        raise DataError(f"there is no file or folder {text!r}; for a hub data set write hf:owner/name.")
    matches = sorted(glob.glob(text, recursive=True))
    if not matches:
        raise DataError(f"no file matches {text!r}; the pattern is relative to {Path.cwd()}.")
    return [part for match in matches for part in _open_path(Path(match))]


def _open_path(path: Path) -> list[Part]:
    if not path.is_dir():
        return [_open_file(path)]
    files = sorted(file for file in path.rglob("*") if file.name.endswith(FOLDER_SUFFIXES) and file.is_file())
    if not files:
        raise DataError(f"the folder {path} holds no data; looked for {', '.join(FOLDER_SUFFIXES)} below it.")
    return [_open_file(file) for file in files]


def _open_file(path: Path) -> Part:
    for suffix, reader in READERS.items():
        if path.name.endswith(suffix):
            return reader(path)
    raise DataError(f"{path} is of no known kind; known: {', '.join(READERS)}. Convert or rename it.")


def _hub_data_set(name: str) -> _Rows:
    """One split (`train` if none is named) of a data set on the hub, in a folder, or from `save_to_disk`."""
    import datasets
    from datasets.exceptions import DatasetsError

    path, split = name, None
    if not Path(name).exists() and ":" in name:
        path, _, split = name.rpartition(":")
    try:
        if any((Path(path) / file).is_file() for file in ("state.json", "dataset_dict.json")):
            data = datasets.load_from_disk(path)
        else:
            data = datasets.load_dataset(path)
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(f"cannot load the data set {path!r}: {error}") from error
    if not isinstance(data, datasets.DatasetDict):
        if split is not None:
            raise DataError(f"the data set {path!r} has no splits, so leave out {split!r}")
        return _Rows(name, data)
    split = split or ("train" if "train" in data or len(data) != 1 else next(iter(data)))
    if split not in data:
        raise DataError(f"the data set {path!r} has no split {split!r}; it has: {', '.join(map(str, data))}.")
    return _Rows(name, data[split])
