"""Artifacts on disk, keyed by everything they depend on, and the lock on the folder they lie in."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from gistselect.errors import ArtifactMismatchError
from gistselect.files import (
    digest,
    file_digest,
    json_line,
    read_json,
    replacing,
    write_json,
)
from gistselect.run.objects import (
    COMPLETE,
    INPUTS,
    Bucket,
    ShardObject,
    digests_of_shards,
    settle,
    shard_name,
    shards_in,
    share,
)

LOST = b"lost"
"""Key of the reason for which a shard's rows were given up, in the metadata of its table."""
SPENT = "seconds.jsonl"
"""What an artifact took, a line for each piece of work. No key, checksum or result depends on it."""
STORED = "stored_bytes"
"""Note of what the shards of a cleaned artifact had taken on the disk."""
SHARED = frozenset(
    {"records", "tokens", "digests", "minhash", "sharing", "prefilter", "prepared", "fit", "features", "measured"}
    | {"warmup", "train", "losses"}
)
"""Stages that workers read or make: their artifacts go to an object store where there is one, all others stay here."""
ShardPlace = Path | ShardObject


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """The folder of one result, made or not. It counts as done once `complete.json` is there."""

    folder: Path
    key: str
    inputs: str
    """What the key stands for, as JSON text."""
    bucket: Bucket | None = None
    """The object store that holds its shards, and a copy of its other files; None if all is in the folder."""

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def shard(self, index: int) -> ShardPlace:
        """Where a shard is, or will be."""
        if self.bucket is not None:
            return ShardObject(bucket=self.bucket, folder=self.folder, index=index)
        return self / shard_name(index)

    def refuse_gaps(self, n_shards: int) -> None:
        """Raises `ArtifactMismatchError` if one of so many shards is missing: coverage is proved at the end."""
        if self.bucket is not None:
            self.bucket.listed(self.folder.name, fresh=True)
        if missing := [index for index in range(n_shards) if not self.shard(index).is_file()]:
            raise ArtifactMismatchError(f"{self.folder} lacks shard {missing[0]} of {n_shards}; run again.")

    @property
    def shard_bytes(self) -> int:
        """Bytes of all shards that are there."""
        if self.bucket is None:
            return sum(path.stat().st_size for path in self.folder.glob("shard-*"))
        listed = self.bucket.listed(self.folder.name)
        return sum(listed[next(iter(one.values()))] for one in shards_in(listed).values())

    @property
    def is_complete(self) -> bool:
        """Whether it is made; from an object store its files but for the shards are here then."""
        return settle(self.bucket, self.folder, self.key) if self.bucket else (self / COMPLETE).is_file()

    def bring(self) -> None:
        """Have its files but for the shards here, which another machine may have made and left in the object store."""
        if self.bucket and not (self / COMPLETE).is_file():
            settle(self.bucket, self.folder, self.key)

    def begin(self) -> None:
        """Make the folder and say in it what it is for.

        Raises `ArtifactMismatchError` if it holds the result of other inputs.
        """
        described = json.loads(self.inputs)
        if not (self / INPUTS).is_file():
            write_json(self / INPUTS, described)
        elif digest(read_json(self / INPUTS)) != self.key:
            raise ArtifactMismatchError(f"{self.folder} holds the result of other inputs; delete it and run again.")

    def complete(self, **facts: Any) -> None:
        """Mark as done, with facts about the result that later stages and people read, and a digest of every file."""
        files = {
            path.relative_to(self.folder).as_posix(): file_digest(path)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name not in (COMPLETE, INPUTS, SPENT) and not path.name.startswith(".")
        }
        if self.bucket is not None:
            files = dict(sorted((files | digests_of_shards(self.bucket, self.folder.name)).items()))
        checksum = digest([self.key, facts, files])
        write_json(self / COMPLETE, {"facts": facts, "files": files, "checksum": checksum})
        if self.bucket is not None:
            share(self.bucket, self.folder)

    @property
    def facts(self) -> dict[str, Any]:
        """Raises `ArtifactMismatchError` if the file is missing, damaged or of another artifact."""
        self.bring()
        stored = read_json(self / COMPLETE)
        known = [stored[name] for name in ("facts", "files") if name in stored] if isinstance(stored, dict) else []
        if not known or stored.get("checksum") != digest([self.key, *known]):
            raise ArtifactMismatchError(f"{self / COMPLETE} is damaged; delete {self.folder} and run again.")
        return stored["facts"]

    def spend(self, **seconds: float) -> None:
        """Note wall seconds by what they were spent on; notes of several processes and attempts add up.

        A line is one write at the end of the file, and starts a new line: one that was cut off spoils no other. Where
        there is no room for it, it is missing.
        """
        with suppress(OSError), (self / SPENT).open("ab", buffering=0) as file:
            file.write(b"\n" + json_line({name: round(value, 4) for name, value in seconds.items()}))

    @contextmanager
    def timed(self, name: str = "seconds") -> Iterator[None]:
        """Note what the block took, also if it is interrupted."""
        started = time.monotonic()
        try:
            yield
        finally:
            if self.folder.is_dir():
                self.spend(**{name: time.monotonic() - started})

    @property
    def spent(self) -> dict[str, float]:
        """Wall seconds by what they were spent on, over all attempts; empty if nobody noted any."""
        total: dict[str, float] = {}
        if (self / SPENT).is_file():
            for line in (self / SPENT).read_bytes().splitlines():
                with suppress(ValueError):
                    for name, value in json.loads(line).items():
                        total[name] = total.get(name, 0.0) + value
        return total


@dataclass(frozen=True)
class Store:
    """Artifacts by stage and key: another model, row or option gives another key, and so another folder."""

    root: Path
    bucket: Bucket | None = None
    """The object store in which workers leave what they make; None if all is in `root`."""

    def artifact(self, stage: str, version: int, **inputs: Any) -> Artifact:
        """The artifact of a stage for these inputs. Nothing is written: a forecast may ask for any."""
        described = {"stage": stage, "version": version, **inputs}
        key = digest(described)
        return self._named(f"{stage}-{key[:16]}", key, described)

    def existing(self, name: str) -> Artifact:
        """The artifact in the folder of this name. Raises `ArtifactMismatchError` if there is none."""
        described = read_json(self.root / name / INPUTS)
        return self._named(name, digest(described), described)

    def _named(self, name: str, key: str, described: dict[str, Any]) -> Artifact:
        text, bucket = json.dumps(described, sort_keys=True, ensure_ascii=False), self.bucket_of(name, described)
        return Artifact(folder=self.root / name, key=key, inputs=text, bucket=bucket)

    def bucket_of(self, name: str, described: Mapping[str, Any]) -> Bucket | None:
        """Where an artifact is put; files that are read for a larger pool are soon gone again."""
        return self.bucket if name.partition("-")[0] in SHARED and "part" not in described else None

    def bring(self, name: str) -> None:
        """Have the files of an artifact here which another machine may have made."""
        if (bucket := self.bucket_of(name, {})) is not None:
            settle(bucket, self.root / name, key="")


def verify(path: Path) -> None:
    """Prove that a file, or every file of a folder, of a finished artifact is what its stage left.

    Raises `ArtifactMismatchError` that names the file otherwise. What belongs to no finished artifact is not judged.
    """
    folder = next((parent for parent in (path, *path.parents[:4]) if (parent / COMPLETE).is_file()), None)
    if folder is None:
        return
    known = _written(folder / COMPLETE, *_state(folder / COMPLETE))
    name = path.relative_to(folder).as_posix()
    inside = [name] if name in known else [one for one in known if name == "." or one.startswith(f"{name}/")]
    for one in inside:
        try:
            is_same = file_digest(folder / one) == known[one]
        except OSError:
            is_same = False
        if not is_same:
            raise ArtifactMismatchError(
                f"{folder / one} is missing or damaged: it is not what was written; delete {folder} and run again."
            )


def _state(path: Path) -> tuple[int, int, int]:
    """What a file that was written anew has otherwise."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns, state.st_ino


@lru_cache(maxsize=64)
def _written(path: Path, *state: int) -> dict[str, str]:
    """Digests by file name, of a `complete.json` in this state; none in those of earlier releases."""
    stored = read_json(path)
    found = stored.get("files") if isinstance(stored, dict) else None
    return found if isinstance(found, dict) else {}


def write_table(path: ShardPlace, table: pa.Table) -> None:
    """One table as Parquet; see `table_writer`."""
    if isinstance(path, ShardObject):
        content = pa.BufferOutputStream()
        with _writer(content, table.schema) as writer:
            writer.write_table(table)
        path.write(content.getvalue().to_pybytes())
        return
    with table_writer(path, table.schema) as writer:
        writer.write_table(table)


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Parquet with page checksums, written whole or not at all; floats are byte-split, which compresses them best."""
    # By a relative name such as `runs:a/…` Arrow would look for a file system of that name, here and below.
    with replacing(path) as part, part.open("wb") as file, _writer(file, schema) as writer:
        yield writer


def _writer(target: BinaryIO | pa.BufferOutputStream, schema: pa.Schema) -> pq.ParquetWriter:
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    return pq.ParquetWriter(
        target,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        use_byte_stream_split=floats,  # pyright: ignore[reportArgumentType]
        write_page_checksum=True,
    )


def _proved(path: ShardPlace) -> Path | pa.BufferReader:
    """A table's file, or the bytes of its object, once it is what its stage left; see `verify`."""
    if isinstance(path, ShardObject):
        mark = path.folder / COMPLETE
        known = _written(mark, *_state(mark)) if mark.is_file() else {}
        return pa.BufferReader(path.read(known.get(path.name)))
    verify(path)
    return path.absolute()


def read_table(path: ShardPlace, columns: list[str] | None = None) -> pa.Table:
    """Raises `ArtifactMismatchError` if the file is missing or damaged."""
    content = _proved(path)
    try:
        # Not pq.read_table, whose way over data sets of many files takes three times as long for a small one.
        with pq.ParquetFile(content, page_checksum_verification=True) as file:
            if columns is None:
                return file.read()
            if missing := set(columns) - set(file.schema_arrow.names):
                raise pa.ArrowInvalid(f"it has no column {min(missing)!r}")
            return file.read(columns=columns).select(columns)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactMismatchError(f"{path} is missing or damaged ({error}); delete it and run again.") from None


def read_names(path: Path) -> list[str]:
    """Names of a table's columns. Raises `ArtifactMismatchError` if the file is missing or damaged."""
    return read_schema(path).names


def read_schema(path: ShardPlace) -> pa.Schema:
    """Names, types and metadata of a table. Raises `ArtifactMismatchError` if the file is missing or damaged."""
    content = _proved(path)
    try:
        return pq.read_schema(content)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactMismatchError(f"{path} is missing or damaged ({error}); delete it and run again.") from None


def read_batches(path: Path, columns: list[str], rows: int = 1 << 16) -> Iterator[pa.RecordBatch]:
    """A table a piece at a time. Raises `ArtifactMismatchError` if the file is missing or damaged."""
    verify(path)
    try:
        # Buffered ahead, every row group that was read would stay in memory until the last.
        with pq.ParquetFile(path.absolute(), page_checksum_verification=True, pre_buffer=False) as file:
            yield from file.iter_batches(batch_size=rows, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactMismatchError(f"{path} is missing or damaged ({error}); delete it and run again.") from None
