"""Stages `ingest` and `tokenize`: the pool as token shards, every row either an example or rejected with a reason."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gistselect.data.tokens import encode
from gistselect.errors import DataError
from gistselect.run.context import Run
from gistselect.run.store import Artifact, read_table, write_table
from gistselect.types import Example, Record, Rejected

VERSION = 1
SHARD_ROWS = 1024
"""Pool rows in a shard. Shards are cut by row, never by worker, so that nothing depends on the number of workers."""

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "row": pa.int64(),
        "n_tokens": pa.int32(),
        "n_supervised": pa.int32(),
        "input_ids": pa.list_(pa.int32()),
        "supervised": pa.list_(pa.bool_()),
        "reason": pa.string(),
    }
)


@dataclass(frozen=True)
class TokenizedPool:
    """The pool's token shards on disk; only one shard at a time is in memory."""

    artifact: Artifact

    @property
    def facts(self) -> dict[str, Any]:
        """Counts over the whole pool: rows, examples, rejected, tokens, supervised tokens, truncated, shards."""
        return self.artifact.facts

    @property
    def n_shards(self) -> int:
        return self.facts["n_shards"]

    def examples(self, shard: int) -> list[Example]:
        """The shard's examples, in pool order."""
        table = _accepted(read_table(self.artifact.shard(shard), ["id", "input_ids", "supervised", "reason"]))
        return [
            Example(
                id=identity,
                input_ids=np.asarray(ids, dtype=np.int32),
                supervised=np.asarray(mask, dtype=bool),
            )
            for identity, ids, mask in zip(
                table["id"].to_pylist(),
                (value.values.to_numpy(zero_copy_only=False) for value in table["input_ids"]),
                (value.values.to_numpy(zero_copy_only=False) for value in table["supervised"]),
                strict=True,
            )
        ]

    def rows(self) -> pa.Table:
        """id, source, row, n_tokens and n_supervised of every example of the pool, in pool order."""
        columns = ["id", "source", "row", "n_tokens", "n_supervised", "reason"]
        return pa.concat_tables(
            _accepted(read_table(self.artifact.shard(index), columns)).drop_columns("reason")
            for index in range(self.n_shards)
        ).combine_chunks()

    def rejected(self) -> list[Rejected]:
        """Every row without an example, in pool order."""
        found = []
        for index in range(self.n_shards):
            table = read_table(self.artifact.shard(index), ["id", "source", "row", "reason"])
            found += [Rejected(**row) for row in table.to_pylist() if row["reason"] is not None]
        return found

    def select(self, rows: np.ndarray) -> list[Example]:
        """The examples at the given positions among `rows()`, in the given order."""
        wanted = {int(position): place for place, position in enumerate(rows)}
        chosen: list[Example | None] = [None] * len(rows)
        position = 0
        for index in range(self.n_shards):
            n_here = _accepted(read_table(self.artifact.shard(index), ["reason"])).num_rows
            if any(position <= one < position + n_here for one in wanted):
                for offset, example in enumerate(self.examples(index)):
                    if (place := wanted.get(position + offset)) is not None:
                        chosen[place] = example
            position += n_here
        return [example for example in chosen if example is not None]


def _accepted(table: pa.Table) -> pa.Table:
    return table.filter(pc.field("reason").is_null())


def ingest(run: Run) -> TokenizedPool:
    """Read and tokenise the pool, or find that done.

    Raises `DataError` if nothing in the pool can be scored, or at the first rejected row of a strict run.
    """
    artifact = run.store.artifact("tokens", VERSION, **run.text_inputs, pool=run.pool.digest, format=run.config.format)
    tokenized = TokenizedPool(artifact)
    if not artifact.is_complete:
        n_shards = 0
        with run.reporter.step("tokenise", total=None, unit="rows") as step:
            for index, batch in enumerate(_batches(run.pool.rows())):
                if not artifact.shard(index).is_file():
                    write_table(artifact.shard(index), _shard_table(run, batch))
                step.advance(len(batch))
                n_shards = index + 1
        artifact.complete(n_shards=n_shards, **_count(artifact, n_shards))
    facts = tokenized.facts
    if facts["n_examples"] == 0:
        reasons = "; ".join(f"{one.id}: {one.reason}" for one in tokenized.rejected()[:3])
        raise DataError(f"none of the pool's {facts['n_rows']:,} rows can be scored. {reasons}")
    if run.config.strict and facts["n_rejected"]:
        first = tokenized.rejected()[0]
        raise DataError(
            f"--strict: {facts['n_rejected']:,} of {facts['n_rows']:,} pool rows cannot be scored, first {first.id!r} "
            f"of {first.source!r} (row {first.row}): {first.reason} Mend them, or run without --strict."
        )
    return tokenized


def _batches(rows: Iterator[Record | Rejected]) -> Iterator[tuple[Record | Rejected, ...]]:
    while batch := tuple(itertools.islice(rows, SHARD_ROWS)):
        yield batch


def _shard_table(run: Run, batch: tuple[Record | Rejected, ...]) -> pa.Table:
    records = [row for row in batch if isinstance(row, Record)]
    encoded = iter(encode(records, run.template, run.tokenizer, run.config.max_length))
    rows = []
    for row in batch:
        outcome = row if isinstance(row, Rejected) else next(encoded)
        described: dict[str, Any] = {"id": row.id, "source": row.source, "row": row.row}
        if isinstance(outcome, Rejected):
            described |= {"n_tokens": 0, "n_supervised": 0, "reason": outcome.reason}
        else:
            described |= {
                "n_tokens": outcome.n_tokens,
                "n_supervised": outcome.n_supervised,
                "input_ids": outcome.input_ids,
                "supervised": outcome.supervised,
            }
        rows.append(described)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _count(artifact: Artifact, n_shards: int) -> dict[str, int]:
    columns = ["n_tokens", "n_supervised", "reason"]
    totals = {"n_rows": 0, "n_examples": 0, "n_rejected": 0, "n_tokens": 0, "n_supervised": 0, "longest": 0}
    for index in range(n_shards):
        table = read_table(artifact.shard(index), columns)
        rejected = table.num_rows - table["reason"].null_count
        lengths = table["n_tokens"].to_numpy()
        totals["n_rows"] += table.num_rows
        totals["n_rejected"] += rejected
        totals["n_examples"] += table.num_rows - rejected
        totals["n_tokens"] += int(lengths.sum())
        totals["n_supervised"] += int(table["n_supervised"].to_numpy().sum())
        totals["longest"] = max(totals["longest"], int(lengths.max(initial=0)))
    return totals
