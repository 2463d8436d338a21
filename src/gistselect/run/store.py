"""Artifacts on disk, keyed by everything they depend on, and written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gistselect.errors import ArtifactMismatchError
from gistselect.types import Rejected


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Raises `ArtifactMismatchError` if the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactMismatchError(
            f"{path} is missing or damaged ({error}); delete its folder and run again."
        ) from None


def write_lines(path: Path, lines: Iterator[bytes]) -> None:
    """One line for each element, in order."""
    with replacing(path) as part, part.open("wb") as file:
        for line in lines:
            file.write(line + b"\n")


def write_quarantine(path: Path, rejected: Iterable[Rejected]) -> None:
    """One line for each row that cannot be used: id, source, row, reason."""
    rows = ({"id": one.id, "source": one.source, "row": one.row, "reason": one.reason} for one in rejected)
    write_lines(path, (json.dumps(row, ensure_ascii=False).encode() for row in rows))


def write_table(path: Path, table: pa.Table) -> None:
    """Parquet with page checksums; floats are byte-split, which compresses them best."""
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    with replacing(path) as part:
        pq.write_table(
            table,
            part,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            use_byte_stream_split=floats,  # pyright: ignore[reportArgumentType]
            write_page_checksum=True,
        )


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Raises `ArtifactMismatchError` if the file is missing or damaged."""
    try:
        return pq.read_table(path, columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactMismatchError(f"{path} is missing or damaged ({error}); delete it and run again.") from None


class Artifact:
    """The folder of one stage's result. It counts as done once `complete.json` is there."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def shard(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.parquet"

    @property
    def is_complete(self) -> bool:
        return (self / "complete.json").is_file()

    def complete(self, **facts: Any) -> None:
        """Mark as done, with facts about the result that later stages and people read."""
        write_json(self / "complete.json", facts)

    @property
    def facts(self) -> dict[str, Any]:
        return read_json(self / "complete.json")


class Store:
    """Artifacts by stage and key: another model, row or option gives another key, and so another folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def artifact(self, stage: str, version: int, **inputs: Any) -> Artifact:
        """The artifact of a stage for these inputs, made or not. What the key stands for is kept beside it."""
        described = {"stage": stage, "version": version, **inputs}
        key = digest(described)
        artifact = Artifact(self.root / f"{stage}-{key[:16]}", key)
        if not (artifact / "inputs.json").is_file():
            write_json(artifact / "inputs.json", described)
        elif digest(read_json(artifact / "inputs.json")) != key:
            raise ArtifactMismatchError(f"{artifact.folder} holds the result of other inputs; delete it and run again.")
        return artifact

    @contextmanager
    def folder(self, artifact: Artifact, name: str) -> Iterator[Path]:
        """A temporary folder that becomes `artifact/name` only if the block succeeds."""
        temporary = artifact / f".{name}.part"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(artifact / name, ignore_errors=True)
        temporary.replace(artifact / name)
