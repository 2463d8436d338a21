"""The pool as shards on disk, every row usable or rejected with a reason.

Records know no model: text methods, selection and export read them. Tokens belong to one tokenizer and template. Both
hold every row at the same place. See `run.reading` for the stages that make them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gistselect.data.stored import record_from_json
from gistselect.errors import ArtifactMismatchError, DataError
from gistselect.run.store import Artifact, read_table
from gistselect.types import Example, Place, Record, Rejected

RECORDS_VERSION = 1
TOKENS_VERSION = 3
SHARD_ROWS = 1024
"""Pool rows in a shard. Shards are cut by row, never by worker, so that nothing depends on the number of workers."""

_IDENTITY: dict[str, pa.DataType] = {
    "id": pa.string(),
    "source": pa.string(),
    "row": pa.int64(),
    "reason": pa.string(),
}
RECORDS_SCHEMA = pa.schema(
    {
        **_IDENTITY,
        "part": pa.int32(),
        "offset": pa.int64(),
        "length": pa.int64(),
        "crc": pa.uint32(),
        "conversation": pa.string(),
    }
)
TOKENS_SCHEMA = pa.schema(
    {
        **_IDENTITY,
        "n_tokens": pa.int32(),
        "n_supervised": pa.int32(),
        "n_cut": pa.int32(),
        "unshown": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        "supervised": pa.list_(pa.bool_()),
    }
)
IDENTITY = ["id", "source", "row"]
COUNTS = ["n_tokens", "n_supervised", "n_cut"]


@dataclass(frozen=True)
class Rows:
    """The pool's rows on disk, as records or as tokens; only one shard at a time is in memory."""

    artifact: Artifact
    kept: Artifact | None = None
    """What a prefilter left of them (see `run.prefilter`), which then counts as all that is usable; None for all."""
    unit: ClassVar[str]
    """In what the work of a pass is counted."""

    @property
    def facts(self) -> dict[str, Any]:
        """Counts over the whole pool: n_rows, n_usable, n_rejected, n_shards, and of tokens their numbers."""
        return self.artifact.facts

    @property
    def n_shards(self) -> int:
        return self.facts["n_shards"]

    @property
    def amounts(self) -> list[int]:
        """What a pass has to do in each shard, counted in `unit`."""
        return (self.kept or self.artifact).facts[f"{self.unit}_of_shards"]

    def table(self, shard: int, columns: Sequence[str]) -> pa.Table:
        """These columns of the usable rows of a shard, in pool order."""
        table = read_table(self.artifact.shard(shard), list(dict.fromkeys([*columns, "row", "reason"])))
        table = table.filter(pc.field("reason").is_null())
        if self.kept is not None:
            table = _of_rows(table, self.choice(shard).filter(pc.field("reason").is_null()))
        return table.select(list(columns))

    def split(self, shard: int, columns: Sequence[str]) -> tuple[pa.Table, list[Rejected]]:
        """These columns of the usable rows of a shard, and the rows that cannot be used, both in pool order.

        Rows that a prefilter left out are neither.
        """
        table = read_table(self.artifact.shard(shard), list(dict.fromkeys([*IDENTITY, *columns, "reason"])))
        usable, rejected = table, []
        if table["reason"].null_count < len(table):
            usable = table.filter(pc.field("reason").is_null())
            rejected = table.filter(pc.field("reason").is_valid()).select([*IDENTITY, "reason"]).to_pylist()
        if self.kept is not None:
            choice = self.choice(shard)
            lost = choice.filter(pc.field("reason").is_valid())
            whole = _of_rows(usable, lost).select(IDENTITY).append_column("reason", lost["reason"])
            rejected = sorted([*rejected, *whole.to_pylist()], key=lambda row: row["row"])
            usable = _of_rows(usable, choice.filter(pc.field("reason").is_null()))
        return usable.select(list(columns)), [Rejected(**row) for row in rejected]

    def choice(self, shard: int) -> pa.Table:
        """row, sampled, reason of what a prefilter left of a shard, in pool order: without a reason, rows to read."""
        assert self.kept is not None
        return read_table(self.kept.shard(shard))

    def all_rejected(self) -> Iterator[Rejected]:
        """Every row that cannot be used, in pool order."""
        for shard in range(self.n_shards):
            yield from self.split(shard, IDENTITY)[1]

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Columns of every usable row of the pool, in pool order: for narrow columns only."""
        return pa.concat_tables(self.table(shard, names) for shard in range(self.n_shards)).combine_chunks()


def _of_rows(table: pa.Table, chosen: pa.Table) -> pa.Table:
    """The rows of a table whose number is among the chosen ones."""
    return table.filter(pa.array(np.isin(table["row"].to_numpy(), chosen["row"].to_numpy())))


class RecordRows(Rows):
    """The pool's conversations."""

    unit: ClassVar[str] = "rows"

    def records(self, shard: int) -> list[Record]:
        """The usable records of a shard, in pool order."""
        return self.split_records(shard)[0]

    def split_records(self, shard: int) -> tuple[list[Record], list[Rejected]]:
        """The usable records of a shard, and the rows that cannot be used, both in pool order."""
        table, rejected = self.split(shard, [*IDENTITY, "conversation"])
        rows = table.to_pylist()
        return [Record(**record_from_json(row.pop("conversation")), **row) for row in rows], rejected

    def shards(self) -> Iterator[list[Record]]:
        """The usable records of each shard in turn."""
        return map(self.records, range(self.n_shards))

    def places(self, rows: Sequence[int]) -> dict[int, Place]:
        """Where the given pool rows stand in their files. Raises `ArtifactMismatchError` for a row that is missing."""
        wanted = np.unique(np.asarray(rows, dtype=np.int64))
        found: dict[int, Place] = {}
        for shard, members in itertools.groupby(wanted.tolist(), lambda row: row // SHARD_ROWS):
            table = read_table(self.artifact.shard(shard), ["row", "part", "offset", "length", "crc"])
            places = {row.pop("row"): Place(**row) for row in table.to_pylist()}
            found |= {row: places[row] for row in members if row in places}
        if missing := set(wanted.tolist()) - found.keys():
            raise ArtifactMismatchError(f"{self.artifact.folder} has no row {min(missing)}; delete it and run again.")
        return found

    def select(self, rows: Sequence[int]) -> list[Record]:
        """The records of the given pool rows, in the given order."""
        wanted = np.unique(np.asarray(rows, dtype=np.int64))
        found: dict[int, Record] = {}
        for shard, members in itertools.groupby(wanted.tolist(), lambda row: row // SHARD_ROWS):
            table = self.table(shard, [*IDENTITY, "conversation"])
            for row in table.filter(pa.array(np.isin(table["row"].to_numpy(), list(members)))).to_pylist():
                found[row["row"]] = Record(**record_from_json(row.pop("conversation")), **row)
        return [found[row] for row in rows]


class TokenRows(Rows):
    """The pool's token ids and labels."""

    unit: ClassVar[str] = "tokens"

    def examples(self, shard: int) -> tuple[NDArray[np.int64], list[Example]]:
        """Pool rows (n,) and examples of a shard, in pool order."""
        table = self.table(shard, ["row", "id", "n_cut", "input_ids", "supervised"])
        examples = [
            Example(
                id=identity,
                input_ids=np.asarray(ids.values.to_numpy(zero_copy_only=False), dtype=np.int32),
                supervised=np.asarray(mask.values.to_numpy(zero_copy_only=False), dtype=bool),
                n_cut=n_cut,
            )
            for identity, n_cut, ids, mask in zip(
                table["id"].to_pylist(),
                table["n_cut"].to_pylist(),
                table["input_ids"],
                table["supervised"],
                strict=True,
            )
        ]
        return table["row"].to_numpy(), examples

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens (n,) of the given usable pool rows (n,), in their order."""
        table = self.columns(["row", "n_tokens"])
        at = np.searchsorted(table["row"].to_numpy(), rows)
        return table["n_tokens"].to_numpy()[at].astype(np.int64)

    def select(self, rows: Sequence[int]) -> list[Example]:
        """The examples of the given pool rows, in the given order. Raises `DataError` for a row without one."""
        wanted = set(rows)
        found: dict[int, Example] = {}
        for shard in sorted({row // SHARD_ROWS for row in wanted}):
            here, examples = self.examples(shard)
            found |= {row: one for row, one in zip(here.tolist(), examples, strict=True) if row in wanted}
        if missing := wanted - found.keys():
            raise DataError(f"row {min(missing)} of the pool has no example to train on; select again.")
        return [found[row] for row in rows]


def identity(row: Record | Rejected) -> dict[str, Any]:
    return {"id": row.id, "source": row.source, "row": row.row, "reason": getattr(row, "reason", None)}


def refuse_unusable(rows: Rows, *, strict: bool) -> None:
    """Raises `DataError` if no row of the pool can be used, or at the first rejected row of a strict run."""
    facts = rows.facts
    if facts["n_usable"] == 0:
        reasons = "; ".join(f"{one.id}: {one.reason}" for one in itertools.islice(rows.all_rejected(), 3))
        raise DataError(f"none of the pool's {facts['n_rows']:,} rows can be scored. {reasons}")
    if strict and facts["n_rejected"]:
        first = next(rows.all_rejected())
        raise DataError(
            f"--strict: {facts['n_rejected']:,} of {facts['n_rows']:,} pool rows cannot be scored, first {first.id!r} "
            f"of {first.source!r} (row {first.row}): {first.reason} Mend them, or run without --strict."
        )
