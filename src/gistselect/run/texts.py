"""The pool's text against itself and against items to judge by: digests, MinHash signatures and shared passages.

One pass over the records makes whatever is asked for, a shard at a time on any worker, and keeps it by row: made once
for a pool, it serves every method, selector and budget. Of a row it keeps 16 bytes (digest), 512 bytes (signature), and
of one that shares a passage the name of the item.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gistselect.data.overlap import HASHES, Passages, Signatures, hashed_blocks, repeats, text_digest
from gistselect.run import ingest
from gistselect.run.earlier import Stretch, of_rows, stretches, taken, together
from gistselect.run.ingest import RecordRows
from gistselect.run.jobs import Job
from gistselect.run.store import Artifact, Store, read_table, write_table

if TYPE_CHECKING:
    from gistselect.run.engine import Engine
    from gistselect.run.progress import Reporter
    from gistselect.run.sources import Sources

VERSION = 1
REPEATED, SHARING = "repeated.parquet", "sharing.parquet"
_DIGEST, _SIGNATURE = pa.binary(16), pa.list_(pa.uint32(), HASHES)


@dataclass(frozen=True, kw_only=True)
class TextPass(Job):
    """A job; what is not asked for is None."""

    records: RecordRows
    digests: Artifact | None
    signatures: Artifact | None
    sharing: Artifact | None
    passages: Passages | None
    known: Mapping[str, tuple[Stretch, ...]] = field(default_factory=dict)
    """By the key of an output, the rows of which an earlier pool's is known."""

    @classmethod
    def planned(cls, store: Store, records: RecordRows, dedup: str | None, passages: Passages | None) -> TextPass:
        """The pass with its keys, for `--dedup` and for the passages that no row must share."""
        key = records.artifact.key
        return cls(
            records=records,
            digests=store.artifact("digests", VERSION, records=key) if dedup == "exact" else None,
            signatures=store.artifact("minhash", VERSION, records=key) if dedup == "near" else None,
            sharing=store.artifact("sharing", VERSION, records=key, items=passages.digest) if passages else None,
            passages=passages,
        )

    @property
    def outputs(self) -> list[Artifact]:
        """Everything that is asked for."""
        return [one for one in (self.digests, self.signatures, self.sharing) if one is not None]

    @property
    def inputs(self) -> dict[str, str]:
        """What a selection's key holds of it."""
        named = {"digests": self.digests, "signatures": self.signatures, "sharing": self.sharing}
        return {name: artifact.key for name, artifact in named.items() if artifact is not None}

    def run(self, reporter: Reporter, engine: Engine) -> None:
        """Do what is missing."""
        left = replace(
            self,
            **{
                name: None
                for name in ("digests", "signatures", "sharing")
                if (artifact := getattr(self, name)) is not None and artifact.is_complete
            },
        )
        if not left.outputs:
            return
        known = {artifact.key: stretches(artifact, self.records.artifact) for artifact in left.outputs}
        left = replace(left, known=known)
        for artifact in left.outputs:
            artifact.begin()
        with left.outputs[0].timed():
            engine.run(left, "repeats and overlaps of texts", reporter)

    # A job; see `run.jobs`.

    @property
    def unit(self) -> str:
        return self.records.unit

    @property
    def amounts(self) -> list[int]:
        """Usable rows of each shard."""
        return self.records.amounts

    def pending(self, index: int) -> bool:
        """Whether a shard of some output is missing."""
        return not all(artifact.shard(index).is_file() for artifact in self.outputs)

    def do(self, index: int, sources: Sources) -> None:
        """Read one shard, and write what is missing of it; what earlier pools know of its rows is taken over."""
        digests, signatures, sharing = (
            artifact if artifact and not artifact.shard(index).is_file() else None
            for artifact in (self.digests, self.signatures, self.sharing)
        )
        missing = [one for one in (digests, signatures, sharing) if one is not None]
        numbers = self.records.table(index, ["row"])["row"].to_numpy()
        earlier = {one.key: self._earlier(one, numbers) for one in missing}
        is_known = np.logical_and.reduce([mask for mask, _ in earlier.values()])
        unknown = set(numbers[~is_known].tolist())
        records = [one for one in self.records.records(index) if one.row in unknown] if unknown else []
        rows = pa.array(numbers[~is_known])

        def write(artifact: Artifact, table: pa.Table) -> None:
            before = earlier[artifact.key][1]
            known = None if before is None else of_rows(before, numbers[is_known])
            write_table(artifact.shard(index), together(table, known))

        if digests:
            write(digests, pa.table({"row": rows, "digest": pa.array(map(text_digest, records), type=_DIGEST)}))
        makes, shares = Signatures() if signatures else None, self.passages if sharing else None
        made: list[NDArray[np.uint32]] = []
        items: list[NDArray[np.intp]] = []
        for block, hashed in hashed_blocks(records) if makes or shares else ():
            if makes:
                made.append(makes.of(block, hashed))
            if shares:
                items.append(shares.shared(hashed))
        if signatures:
            flat = np.concatenate([np.zeros((0, HASHES), dtype=np.uint32), *made]).reshape(-1)
            values = pa.FixedSizeListArray.from_arrays(pa.array(flat), HASHES)
            write(signatures, pa.table({"row": rows, "signature": values}))
        if sharing and shares:
            found = np.concatenate([np.zeros(0, dtype=np.intp), *items])
            names = pa.array([shares.names[item] for item in found[found >= 0]], type=pa.string())
            write(sharing, pa.table({"row": rows.filter(pa.array(found >= 0)), "item": names}))

    def _earlier(self, artifact: Artifact, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], pa.Table | None]:
        """Which rows (n,) an output knows from an earlier pool, and what."""
        known = self.known.get(artifact.key, ())
        mask, table = taken(known, rows, ingest.SHARD_ROWS)
        if artifact is self.sharing:  # Of a row that shares nothing, nothing is kept.
            for stretch in known:
                mask |= (rows >= stretch.first) & (rows < stretch.stop)
        return mask, table

    def describe(self, index: int) -> str:
        """The rows of a shard."""
        return f"shard {index} of the records"

    def complete(self) -> None:
        """Gather what was found over all shards, and mark as done."""
        n_shards = self.records.n_shards
        for artifact in self.outputs:
            artifact.refuse_gaps(n_shards)
        if self.digests:
            rows = _column(self.digests, n_shards, "row").to_numpy()
            digests = _column(self.digests, n_shards, "digest")
            places, groups = repeats(np.frombuffer(digests.buffers()[1] or b"", dtype="V16", count=len(digests)))
            write_table(self.digests / REPEATED, pa.table({"row": rows[places], "group": groups}))
            n_texts = int(groups.max()) + 1 if len(groups) else 0
            self.digests.complete(n_shards=n_shards, n_rows=len(rows), n_repeats=len(places) - n_texts)
        if self.signatures:
            self.signatures.complete(n_shards=n_shards)
        if self.sharing:
            tables = [read_table(self.sharing.shard(shard)) for shard in range(n_shards)]
            found = pa.concat_tables(tables)
            write_table(self.sharing / SHARING, found)
            self.sharing.complete(n_shards=n_shards, n_rows=found.num_rows)

    # What gates ask for.

    def groups(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """(n,) a number for each text that the pool has more than once, for ascending pool rows; -1 for all others."""
        assert self.digests is not None
        table = read_table(self.digests / REPEATED)
        return _at(rows, table["row"].to_numpy(), table["group"].to_numpy(), -1)

    def shares(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) whether the texts of ascending pool rows share a passage with an item."""
        assert self.sharing is not None
        found = read_table(self.sharing / SHARING, ["row"])["row"].to_numpy()
        return _at(rows, found, np.ones(len(found), dtype=np.bool_), False)

    def signatures_of(self, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
        """(k, HASHES) of pool rows in any order; each shard is read once."""
        assert self.signatures is not None
        found = np.empty((len(rows), HASHES), dtype=np.uint32)
        order = np.argsort(rows, kind="stable")
        shards = rows[order] // ingest.SHARD_ROWS
        numbers, starts = np.unique(shards, return_index=True)
        for shard, places in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            table = read_table(self.signatures.shard(shard))
            values = table["signature"].combine_chunks().values.to_numpy().reshape(-1, HASHES)
            found[places] = values[np.searchsorted(table["row"].to_numpy(), rows[places])]
        return found


def _column(artifact: Artifact, n_shards: int, name: str) -> pa.Array:
    tables = [read_table(artifact.shard(shard), [name]) for shard in range(n_shards)]
    return pa.concat_tables(tables)[name].combine_chunks()


def _at(rows: NDArray[np.int64], some: NDArray[np.int64], values: NDArray, other: int | bool) -> NDArray:
    """(n,) the value of each of these rows that is among `some`, both ascending, and another for the rest."""
    found = np.full(len(rows), other, dtype=values.dtype)
    at = np.searchsorted(rows, some)
    there = at < len(rows)
    there[there] = rows[at[there]] == some[there]
    found[at[there]] = values[there]
    return found
