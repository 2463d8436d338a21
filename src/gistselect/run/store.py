"""Artifacts on disk, keyed by everything they depend on, and the lock on the folder they lie in."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from gistselect.errors import ArtifactMismatchError, ConfigError, GistSelectError
from gistselect.files import (
    FORBIDDEN,
    digest,
    file_digest,
    json_line,
    read_json,
    remove_leftovers,
    replacing,
    writable,
    write_json,
)

IfBusy = Literal["wait", "refuse"]
COMPLETE, INPUTS, LOCK = "complete.json", "inputs.json", ".lock"
WRITTEN = ("artifacts", "methods", "combinations", "planted")
"""Folders of a run folder that only the holder of its lock writes to: not `inputs`, where rows in memory are put before
the lock is asked for."""
LOST = b"lost"
"""Key of the reason for which a shard's rows were given up, in the metadata of its table."""
SPENT = "seconds.jsonl"
"""What an artifact took, a line for each piece of work. No key, checksum or result depends on it."""
STORED = "stored_bytes"
"""Note of what the shards of a cleaned artifact had taken on the disk."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """The folder of one result, made or not. It counts as done once `complete.json` is there."""

    folder: Path
    key: str
    inputs: str
    """What the key stands for, as JSON text."""

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def shard(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.parquet"

    @property
    def is_complete(self) -> bool:
        return (self / COMPLETE).is_file()

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
        checksum = digest([self.key, facts, files])
        write_json(self / COMPLETE, {"facts": facts, "files": files, "checksum": checksum})

    @property
    def facts(self) -> dict[str, Any]:
        """Raises `ArtifactMismatchError` if the file is missing, damaged or of another artifact."""
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

    def artifact(self, stage: str, version: int, **inputs: Any) -> Artifact:
        """The artifact of a stage for these inputs. Nothing is written: a forecast may ask for any."""
        described = {"stage": stage, "version": version, **inputs}
        key = digest(described)
        text = json.dumps(described, sort_keys=True, ensure_ascii=False)
        return Artifact(folder=self.root / f"{stage}-{key[:16]}", key=key, inputs=text)

    def existing(self, name: str) -> Artifact:
        """The artifact in the folder of this name. Raises `ArtifactMismatchError` if there is none."""
        described = read_json(self.root / name / INPUTS)
        text = json.dumps(described, sort_keys=True, ensure_ascii=False)
        return Artifact(folder=self.root / name, key=digest(described), inputs=text)


@contextmanager
def locked(folder: Path, if_busy: IfBusy, say: Callable[[str], None]) -> Iterator[None]:
    """The only writer of a run folder, for as long as the block runs.

    Raises `ConfigError` if the folder cannot be made, `GistSelectError` if another process has it and `if_busy`
    is `refuse`, or if the block is refused room in it.
    """
    if folder.parts[:1] and folder.parts[0].startswith("~"):
        raise ConfigError(f"--output {folder} begins with ~, which only a shell makes a folder of; write it out.")
    try:
        str(folder).encode()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        said = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(f"--output {str(folder)!r} cannot be made: {said}; choose another folder.") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--output {folder} cannot be written to; choose another folder or change its permissions.")
    lock = FileLock(folder / LOCK)
    try:
        with writable(folder / LOCK, also=FORBIDDEN):
            lock.acquire(timeout=0)
    except Timeout:
        if if_busy == "refuse":
            raise GistSelectError(
                f"another process is at work in {folder}; wait for it, choose another --output, or leave out "
                "--if-busy refuse."
            ) from None
        say(f"Another process is at work in {folder}; waiting for it to finish.")
        lock.acquire()
    try:
        remove_leftovers(folder, below=WRITTEN)
        with writable(folder):
            yield
    finally:
        lock.release()


def verify(path: Path) -> None:
    """Prove that a file, or every file of a folder, of a finished artifact is what its stage left.

    Raises `ArtifactMismatchError` that names the file otherwise. What belongs to no finished artifact is not judged.
    """
    folder = next((parent for parent in (path, *path.parents[:4]) if (parent / COMPLETE).is_file()), None)
    if folder is None:
        return
    state = (folder / COMPLETE).stat()
    known = _written(folder / COMPLETE, state.st_size, state.st_mtime_ns, state.st_ino)
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


@lru_cache(maxsize=64)
def _written(path: Path, *state: int) -> dict[str, str]:
    """Digests by file name, of a `complete.json` in this state; none in those of earlier releases."""
    stored = read_json(path)
    found = stored.get("files") if isinstance(stored, dict) else None
    return found if isinstance(found, dict) else {}


def write_table(path: Path, table: pa.Table) -> None:
    """One table as Parquet; see `table_writer`."""
    with table_writer(path, table.schema) as writer:
        writer.write_table(table)


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Parquet with page checksums, written whole or not at all; floats are byte-split, which compresses them best."""
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    with (
        replacing(path) as part,
        # By a relative name such as `runs:a/…` Arrow would look for a file system of that name, here and below.
        part.open("wb") as file,
        pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            use_byte_stream_split=floats,  # pyright: ignore[reportArgumentType]
            write_page_checksum=True,
        ) as writer,
    ):
        yield writer


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Raises `ArtifactMismatchError` if the file is missing or damaged."""
    verify(path)
    try:
        # Not pq.read_table, whose way over data sets of many files takes three times as long for a small one.
        with pq.ParquetFile(path.absolute(), page_checksum_verification=True) as file:
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


def read_schema(path: Path) -> pa.Schema:
    """Names, types and metadata of a table. Raises `ArtifactMismatchError` if the file is missing or damaged."""
    verify(path)
    try:
        return pq.read_schema(path.absolute())
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


def publish(source: Path, path: Path) -> None:
    """Put a file of an artifact where people look for it.

    Tables are the same file under a second name, where the file system can; text is a copy, since people edit it.
    """
    verify(source)
    with replacing(path) as part:
        if source.suffix == ".parquet":
            with suppress(OSError):
                os.link(source, part)
        if not part.exists():
            shutil.copyfile(source, part)
