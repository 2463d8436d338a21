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

from gistselect.data import ranges
from gistselect.data.ids import keys
from gistselect.data.parts import File
from gistselect.data.pool import Pool, Reader
from gistselect.data.stored import record_json
from gistselect.data.summary import Detected, together
from gistselect.errors import ArtifactMismatchError
from gistselect.run import ingest
from gistselect.run.earlier import Read, files_read, renumbered, stretches
from gistselect.run.ingest import RECORDS_SCHEMA, RecordRows, TokenRows, identity
from gistselect.run.jobs import Job
from gistselect.run.progress import Reporter, Step
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
    name: ClassVar[str] = "records"

    @property
    def rows(self) -> RecordRows:
        return RecordRows(self.artifact)

    def run(self, reporter: Reporter, engine: Engine | None = None) -> None:
        """Read the pool, or find that done. Files that an earlier pool of the store had are not read again.

        Several workers of an engine read files ahead, large ones in ranges; which ids are taken is found here.
        """
        artifact, pool = self.artifact, self.pool
        if artifact.is_complete:
            return
        artifact.begin()
        store = Store(artifact.folder.parent, artifact.bucket)
        earlier = files_read(store, pool.reading)
        ahead = self._read_ahead(earlier, reporter, engine)
        reader, cutter = Reader(pool, artifact.folder), _Cutter(artifact)
        parts: list[dict[str, Any]] = []
        with artifact.timed(), reporter.step("read the pool", total=None, unit="rows") as step:
            for index, (part, digest) in enumerate(zip(pool.parts, pool.part_digests, strict=True)):
                first = reader.n_rows
                read = earlier.get((part.name, part.source, digest))
                if index in ahead:
                    reader.begin(index)
                    for piece in ahead[index]:
                        _adopt(piece, reader, cutter, step)
                elif read is None or not _taken(read, index, reader, cutter):
                    for batch in _batches(reader.part(index)):
                        cutter.add(_table(batch))
                        step.advance(len(batch))
                known = {"name": part.name, "source": part.source, "digest": digest, "first": first}
                parts.append(known | {"n_rows": reader.n_rows - first, "detected": reader.found[index].described})
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
        for one in itertools.chain(*ahead.values()):
            shutil.rmtree(one.artifact.folder, ignore_errors=True)

    def _read_ahead(
        self, earlier: Mapping[tuple[str, str, str], Read], reporter: Reporter, engine: Engine | None
    ) -> dict[int, list[Piece]]:
        """What workers have read of files that no earlier pool had, by the index of the file."""
        # On other machines the pool's files need not be.
        if engine is None or not engine.parallel or engine.elsewhere:
            return {}
        pieces = self._pieces(earlier)
        if len(pieces) < 2:
            return {}
        with self.artifact.timed():
            engine.run(ReadAhead(pieces=pieces), "read files", reporter)
        return {part: list(ones) for part, ones in itertools.groupby(pieces, lambda one: one.part)}

    def _pieces(self, earlier: Mapping[tuple[str, str, str], Read]) -> tuple[Piece, ...]:
        """The files that no earlier pool had, in ranges."""
        store, found = Store(self.artifact.folder.parent), []
        for index, (part, digest) in enumerate(zip(self.pool.parts, self.pool.part_digests, strict=True)):
            known = [part.name, part.source, digest]
            if isinstance(part, File) and tuple(known) not in earlier:
                for one in ranges.ranges(part, ranges.RANGE_BYTES):
                    described = {"reading": self.pool.reading, "file": known, "part": [one.extent, one.n_bytes]}
                    artifact = store.artifact("records", ingest.RECORDS_VERSION, **described)
                    found.append(Piece(part=index, pool=replace(self.pool, parts=(one,)), file=one, artifact=artifact))
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A file of a pool or a range of one, read by itself whatever ids others have."""

    part: int
    """Index of the file in its pool."""
    pool: Pool
    """Of this piece alone."""
    file: File
    artifact: Artifact
    """What was read, with the columns of `_apart`."""


@dataclass(frozen=True, kw_only=True)
class ReadAhead(Job):
    """Pieces of files as a job: each is read by one worker."""

    pieces: tuple[Piece, ...]

    @property
    def unit(self) -> str:
        return "bytes"

    @property
    def amounts(self) -> list[int]:
        """Bytes of each piece as it stands, compressed or not."""
        return [one.file.n_bytes for one in self.pieces]

    @property
    def takes_its_time(self) -> bool:
        return True

    def pending(self, index: int) -> bool:
        """Whether a piece has not been read."""
        return not self.pieces[index].artifact.is_complete

    def do(self, index: int, sources: Sources) -> None:
        """Read one piece."""
        one = self.pieces[index]
        one.artifact.begin()
        reader, cutter = Reader(one.pool, apart=True), _Cutter(one.artifact)
        for batch in _batches(reader.part(0)):
            cutter.add(_apart(batch))
        cutter.end()
        one.artifact.complete(n_shards=len(cutter.usable), detected=reader.found[0].described)

    def describe(self, index: int) -> str:
        """Its file, and where it begins in it."""
        return self.pieces[index].file.extent

    def complete(self) -> None:
        """Nothing: the pieces are put together at once, and then are gone."""


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


def _apart(rows: Sequence[Record | Rejected]) -> pa.Table:
    """Records with what `Reader.adopt` asks for, which finds their ids in a larger pool."""
    table = _table(rows).append_column("key", pa.array(keys(row.id for row in rows)))
    table = table.append_column("is_own", pa.array([row.user_id is not None for row in rows]))
    return table.append_column("number", pa.array([row.place and row.place.number for row in rows], pa.int64()))


def _batches(rows: Iterator[Record | Rejected]) -> Iterator[tuple[Record | Rejected, ...]]:
    while batch := tuple(itertools.islice(rows, ingest.SHARD_ROWS)):
        yield batch


def _adopt(piece: Piece, reader: Reader, cutter: _Cutter, step: Step) -> None:
    """Take the rows that were read ahead, under the ids that they have in the pool."""
    facts = piece.artifact.facts
    reader.found[-1].add(Detected.restored(facts["detected"]))
    for shard in range(facts["n_shards"]):
        row = reader.n_rows
        table = reader.adopt(read_table(piece.artifact.shard(shard)))
        cutter.add(_placed(table, piece.part, row))
        step.advance(len(table))


def _placed(table: pa.Table, part: int, row: int) -> pa.Table:
    """Records of a part of the pool, of which the first is this row."""
    index = pa.array([part] * len(table), pa.int32())
    table = table.set_column(table.column_names.index("part"), RECORDS_SCHEMA.field("part"), index)
    return renumbered(table, np.arange(row, row + len(table))).select(RECORDS_SCHEMA.names).cast(RECORDS_SCHEMA)


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
        cutter.add(_placed(piece, part, row))
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
