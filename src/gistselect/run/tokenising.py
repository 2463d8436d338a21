"""The pool's conversations become one tokenizer's tokens, shard by shard, on any worker."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gistselect.run import ingest
from gistselect.run.earlier import Stretch, taken
from gistselect.run.ingest import COUNTS, IDENTITY, TOKENS_SCHEMA, RecordRows, identity
from gistselect.run.jobs import Job
from gistselect.run.sources import Sources
from gistselect.run.store import LOST, Artifact, read_table, write_table
from gistselect.types import Rejected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gistselect.data.templates import Template

KEPT_REASONS, REASON_LENGTH = 20, 200
"""Kinds of reasons that are counted, and their characters."""
_PLACE = re.compile(r"^[^\n]*?, (?:line|row|object|item) \d+: ")
"""The file and the place at which a reason begins."""


@dataclass(frozen=True, kw_only=True)
class Tokenising(Job):
    """The records of a pool, and what makes them tokens."""

    records: RecordRows
    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_length: int
    artifact: Artifact
    known: tuple[Stretch, ...] = ()
    """Rows whose tokens an earlier pool had."""

    @property
    def unit(self) -> str:
        return self.records.unit

    @property
    def amounts(self) -> list[int]:
        """Rows of each shard, usable or not."""
        n_rows, size = self.records.facts["n_rows"], ingest.SHARD_ROWS
        return [min(size, n_rows - size * index) for index in range(self.records.n_shards)]

    def pending(self, index: int) -> bool:
        """Whether a shard is missing."""
        return not self.artifact.shard(index).is_file()

    def do(self, index: int, sources: Sources) -> None:
        """Tokenise one shard."""
        write_table(self.artifact.shard(index), self._shard(index))

    def describe(self, index: int) -> str:
        """The rows of a shard."""
        first = index * ingest.SHARD_ROWS
        return f"shard {index}, pool rows {first} to {first + self.amounts[index] - 1}"

    def give_up(self, index: int, reason: str) -> bool:
        """List the rows of a shard as unusable."""
        usable, rejected = self.records.split_records(index)
        lost = [Rejected(id=one.id, source=one.source, row=one.row, reason=reason) for one in usable]
        table = _table([_nothing(one) for one in (*rejected, *lost)])
        write_table(self.artifact.shard(index), table.replace_schema_metadata({LOST: reason}))
        return True

    def complete(self) -> None:
        """Count, and mark as done."""
        n_shards = self.records.n_shards
        self.artifact.complete(n_shards=n_shards, **_count(self.artifact, n_shards))

    def _shard(self, shard: int) -> pa.Table:
        from gistselect.data.tokens import encode

        usable, rejected = self.records.split(shard, IDENTITY)
        is_known, known = taken(self.known, usable["row"].to_numpy(), ingest.SHARD_ROWS)
        records = [] if is_known.all() else self.records.records(shard)
        records = [record for record, there in zip(records, is_known, strict=False) if not there]
        encoded = encode(records, self.template, self.tokenizer, self.max_length)
        rows = [_nothing(one) for one in rejected]
        for record, outcome in zip(records, encoded, strict=True):
            if isinstance(outcome, Rejected):
                rows.append(_nothing(outcome))
            else:
                rows.append(
                    {
                        **identity(record),
                        "n_tokens": outcome.n_tokens,
                        "n_supervised": outcome.n_supervised,
                        "n_cut": outcome.n_cut,
                        "unshown": outcome.unshown or None,
                        "input_ids": outcome.input_ids,
                        "supervised": outcome.supervised,
                    }
                )
        table = _table(rows)
        if known is None:
            return table
        for name in IDENTITY:  # of this pool, where an id may be another
            column = usable[name].filter(pa.array(is_known))
            known = known.set_column(known.column_names.index(name), TOKENS_SCHEMA.field(name), column)
        return pa.concat_tables([table, known.cast(TOKENS_SCHEMA)]).sort_by("row").combine_chunks()


def _nothing(row: Rejected) -> dict[str, Any]:
    return {**identity(row), "n_tokens": 0, "n_supervised": 0, "n_cut": 0}


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["row"]), schema=TOKENS_SCHEMA)


def _count(artifact: Artifact, n_shards: int) -> dict[str, Any]:
    """Counts over all shards, and the tokens of each."""
    totals: dict[str, int] = dict.fromkeys(
        ("n_rows", "n_usable", "n_rejected", "n_tokens", "n_supervised", "n_truncated", "longest"), 0
    )
    tokens_of_shards = []
    reasons: Counter[str] = Counter()
    unshown: Counter[str] = Counter()
    for index in range(n_shards):
        table = read_table(artifact.shard(index), [*COUNTS, "unshown", "reason"])
        n_rejected = table.num_rows - table["reason"].null_count
        lengths = table["n_tokens"].to_numpy()
        tokens_of_shards.append(int(lengths.sum()))
        reasons.update(map(kind_of_reason, table["reason"].drop_null().to_pylist()))
        unshown.update(table["unshown"].drop_null().to_pylist())
        totals["n_rows"] += table.num_rows
        totals["n_rejected"] += n_rejected
        totals["n_usable"] += table.num_rows - n_rejected
        totals["n_tokens"] += tokens_of_shards[-1]
        totals["n_supervised"] += int(table["n_supervised"].to_numpy().sum())
        totals["n_truncated"] += int((table["n_cut"].to_numpy() > 0).sum())
        totals["longest"] = max(totals["longest"], int(lengths.max(initial=0)))
    common = dict(reasons.most_common(KEPT_REASONS))
    return {**totals, "tokens_of_shards": tokens_of_shards, "reasons": common, "unshown": dict(unshown)}


def kind_of_reason(reason: str) -> str:
    """A reason without its place and its numbers, so that rows of one fault count together."""
    return re.sub(r"\d+(?:[.,]\d+)*", "N", _PLACE.sub("", reason, count=1))[:REASON_LENGTH]
