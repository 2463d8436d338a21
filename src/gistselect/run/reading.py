"""Stages `records` and `tokens`: the pool read, and made one tokenizer's tokens.

Tokens are made from records, so a second tokenizer reads no pool file again. What an earlier pool of the same store had
is taken over: a file that was added to the pool costs its own rows.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from gistselect.data.parts import File
from gistselect.data.pool import Pool, Reader
from gistselect.data.stored import record_json
from gistselect.data.summary import Detected, together
from gistselect.errors import ArtifactMismatchError
from gistselect.run import ingest
from gistselect.run.earlier import Read, files_read, renumbered, stretches
from gistselect.run.ingest import RECORDS_SCHEMA, RecordRows, TokenRows, identity
from gistselect.run.jobs import Job
from gistselect.run.progress import Reporter, SilentReporter
from gistselect.run.store import Artifact, Store, read_table, write_table
from gistselect.types import Place, Record, Rejected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gistselect.data.templates import Template
    from gistselect.run.engine import Engine
    from gistselect.run.sources import Sources


@dataclass(frozen=True, kw_only=True)
class ReadPool:
    """Stage `records`."""

    pool: Pool
    artifact: Artifact
    is_part: bool = False
    """Whether this is a file of a larger pool, which may have no row."""
    name: ClassVar[str] = "records"

    @property
    def rows(self) -> RecordRows:
        return RecordRows(self.artifact)

    def run(self, reporter: Reporter, engine: Engine | None = None) -> None:
        """Read the pool, or find that done. Files that an earlier pool of the store had are not read again.

        Several workers of an engine read files ahead, each as a pool of its own.
        """
        artifact, pool = self.artifact, self.pool
        if artifact.is_complete:
            return
        artifact.begin()
        store = Store(artifact.folder.parent, artifact.bucket)
        earlier = files_read(store, pool.reading)
        # On other machines the pool's files need not be.
        ahead = self._files(earlier) if engine is not None and engine.parallel and not engine.elsewhere else ()
        if engine is not None and len(ahead) > 1:
            with artifact.timed():
                engine.run(ReadFiles(parts=ahead), "read files", reporter)
            earlier = files_read(store, pool.reading)
        reader, cutter = Reader(pool, artifact.folder), _Cutter(artifact)
        parts: list[dict[str, Any]] = []
        with artifact.timed(), reporter.step("read the pool", total=None, unit="rows") as step:
            for index, (part, digest) in enumerate(zip(pool.parts, pool.part_digests, strict=True)):
                first = reader.n_rows
                read = earlier.get((part.name, part.source, digest))
                if read is None or not _taken(read, index, reader, cutter):
                    rows = reader.part(index)
                    while batch := tuple(itertools.islice(rows, ingest.SHARD_ROWS)):
                        cutter.add(_table(batch))
                        step.advance(len(batch))
                known = {"name": part.name, "source": part.source, "digest": digest, "first": first}
                parts.append(known | {"n_rows": reader.n_rows - first, "detected": reader.found[index].described})
            if not self.is_part:
                reader.end()
            cutter.end()
        artifact.complete(
            n_rows=reader.n_rows,
            n_usable=sum(cutter.usable),
            n_rejected=reader.n_rows - sum(cutter.usable),
            n_shards=len(cutter.usable),
            rows_of_shards=cutter.usable,
            found=[line for part in reader.found for line in part.lines],
            found_together=together(reader.found).lines,
            reading=pool.reading,
            parts=parts,
        )
        for one in ahead:
            shutil.rmtree(one.artifact.folder, ignore_errors=True)

    def _files(self, earlier: Mapping[tuple[str, str, str], Read]) -> tuple[ReadPool, ...]:
        """Each file that no earlier pool had, as a pool of its own."""
        parts = zip(self.pool.parts, self.pool.part_digests, strict=True)
        new = [one for one, known in parts if isinstance(one, File) and (one.name, one.source, known) not in earlier]
        pools = [replace(self.pool, parts=(one,)) for one in new]
        store = Store(self.artifact.folder.parent)
        return tuple(
            ReadPool(
                pool=pool,
                artifact=store.artifact("records", ingest.RECORDS_VERSION, pool=pool.digest, part=True),
                is_part=True,
            )
            for pool in pools
        )


@dataclass(frozen=True, kw_only=True)
class ReadFiles(Job):
    """Files as a job: each is read by one worker, whatever ids others have."""

    parts: tuple[ReadPool, ...]

    @property
    def unit(self) -> str:
        return "bytes"

    @property
    def amounts(self) -> list[int]:
        """Bytes of each file as it stands, compressed or not."""
        return [sum(path.stat().st_size for path in one.pool.files) for one in self.parts]

    @property
    def takes_its_time(self) -> bool:
        return True

    def pending(self, index: int) -> bool:
        """Whether a file has not been read."""
        return not self.parts[index].artifact.is_complete

    def do(self, index: int, sources: Sources) -> None:
        """Read one file."""
        self.parts[index].run(SilentReporter())

    def describe(self, index: int) -> str:
        """Its name."""
        return self.parts[index].pool.parts[0].name

    def complete(self) -> None:
        """Nothing: what is missing is read by the process that puts the files together."""


class _Cutter:
    """Cuts tables of records that follow each other into shards."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._waiting: list[pa.Table] = []
        self.usable: list[int] = []
        """Rows of each shard that can be used."""

    def add(self, table: pa.Table) -> None:
        """Rows that come next."""
        self._waiting.append(table)
        if sum(one.num_rows for one in self._waiting) >= ingest.SHARD_ROWS:
            together = pa.concat_tables(self._waiting)
            self._waiting = [together.slice(ingest.SHARD_ROWS)]
            self._write(together.slice(0, ingest.SHARD_ROWS))

    def end(self) -> None:
        """Write what is left."""
        if self._waiting and (rest := pa.concat_tables(self._waiting)).num_rows:
            self._write(rest)

    def _write(self, table: pa.Table) -> None:
        write_table(self._artifact.shard(len(self.usable)), table.combine_chunks())
        self.usable.append(table["reason"].null_count)


def _table(rows: Sequence[Record | Rejected]) -> pa.Table:
    described = [identity(row) | _place(row.place) for row in rows]
    for row, columns in zip(rows, described, strict=True):
        if isinstance(row, Record):
            columns["conversation"] = record_json(row)
    return pa.Table.from_pylist(described, schema=RECORDS_SCHEMA)


def _taken(read: Read, part: int, reader: Reader, cutter: _Cutter) -> bool:
    """Take the rows of a file from an earlier pool, unless their ids are not free in this one."""
    first, stop = read.first, read.first + read.n_rows
    shards = range(first // ingest.SHARD_ROWS, -(-stop // ingest.SHARD_ROWS))

    def pieces(columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        for shard in shards:
            start = shard * ingest.SHARD_ROWS
            table = read_table(read.artifact.shard(shard), list(columns) if columns else None)
            yield table.slice(max(first - start, 0), min(stop, start + ingest.SHARD_ROWS) - max(first, start))

    def ids() -> Iterator[str]:
        for piece in pieces(["id"]):
            yield from piece["id"].to_pylist()

    row = reader.n_rows
    if not reader.take(ids, Detected.restored(read.detected)):
        return False
    for piece in pieces():
        piece = piece.set_column(
            piece.column_names.index("part"), RECORDS_SCHEMA.field("part"), pa.array([part] * len(piece), pa.int32())
        )
        cutter.add(renumbered(piece, np.arange(row, row + len(piece))).cast(RECORDS_SCHEMA))
        row += len(piece)
    return True


@dataclass(frozen=True, kw_only=True)
class Tokenise:
    """Stage `tokens`."""

    records: ReadPool
    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_length: int
    artifact: Artifact
    name: ClassVar[str] = "tokens"

    @property
    def rows(self) -> TokenRows:
        return TokenRows(self.artifact)

    def run(self, reporter: Reporter, engine: Engine) -> None:
        """Tokenise the records, or find that done; only what is missing is made."""
        from gistselect.run.tokenising import Tokenising

        if self.artifact.is_complete:
            return
        self.artifact.begin()
        job = Tokenising(
            records=self.records.rows,
            tokenizer=self.tokenizer,
            template=self.template,
            max_length=self.max_length,
            artifact=self.artifact,
            known=stretches(self.artifact, self.records.artifact),
        )
        with self.artifact.timed():
            engine.run(job, "tokenise", reporter)


def _place(place: Place | None) -> dict[str, int]:
    if place is None:
        raise ArtifactMismatchError("a row of the pool does not know its place; this is a defect of its reader.")
    return {"part": place.part, "offset": place.offset, "length": place.length, "crc": place.crc}
