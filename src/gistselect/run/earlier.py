"""Rows that an earlier pool of the same run folder had too: what is known of them is taken over, not computed again.

Two pools that are read in the same way share the files with the same bytes, wherever these stand in their order, so
their common rows are a few stretches. What is kept of a row depends on the row, and on what the key of its artifact
says beside the pool: an artifact with the same inputs but for its rows holds what would be computed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gistselect.errors import ArtifactMismatchError
from gistselect.run.store import COMPLETE, INPUTS, LOST, Artifact, Store, read_schema, read_table

ROWS = ("records", "tokens", "rows", "kept")
"""Inputs of an artifact that say which rows it is of."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Rows that stand one after the other in this pool, and in an earlier one."""

    first: int
    stop: int
    at: int
    """The row that `first` was."""
    artifact: Artifact
    """What is known of the earlier pool's rows."""


def stretches(artifact: Artifact, records: Artifact) -> tuple[Stretch, ...]:
    """What the store knows of the rows of an artifact, which is over `records`; none once the artifact is complete.

    Where several earlier pools have a file, the one that shares most rows counts.
    """
    reading = records.facts.get("reading")
    if artifact.is_complete or reading is None:
        return ()
    own = records.facts["parts"]
    root, wanted = Store(artifact.folder.parent, artifact.bucket), _beside_rows(json.loads(artifact.inputs))
    found: list[list[Stretch]] = []
    for other in _complete(root, artifact.folder.name.partition("-")[0]):
        if other.key != artifact.key and _beside_rows(json.loads(other.inputs)) == wanted:
            found.append(_shared(own, _parts(root, other, reading), other))
    known: dict[int, Stretch] = {}
    for shared in sorted(found, key=lambda one: -sum(stretch.stop - stretch.first for stretch in one)):
        for stretch in shared:
            known.setdefault(stretch.first, stretch)
    return tuple(known[first] for first in sorted(known))


def taken(
    known: Sequence[Stretch], rows: NDArray[np.int64], shard_rows: int
) -> tuple[NDArray[np.bool_], pa.Table | None]:
    """Which of these pool rows (n,) are known, and a table of what is known of them, in their order; None if none are.

    Rows that were given up are not known. Raises `ArtifactMismatchError` for a damaged file.
    """
    mask, pieces = np.zeros(len(rows), dtype=np.bool_), []
    for stretch in known:
        inside = np.flatnonzero((rows >= stretch.first) & (rows < stretch.stop))
        were = rows[inside] - stretch.first + stretch.at
        for shard in np.unique(were // shard_rows).tolist():
            path = stretch.artifact.shard(shard)
            if LOST in (read_schema(path).metadata or {}):
                continue
            table = read_table(path)
            here = were // shard_rows == shard
            _, at, ours = np.intersect1d(table["row"].to_numpy(), were[here], assume_unique=True, return_indices=True)
            if not len(at):
                continue
            places = inside[here][ours]
            mask[places] = True
            pieces.append(renumbered(table.take(pa.array(at)), rows[places]))
    return mask, pa.concat_tables(pieces).combine_chunks() if pieces else None


def renumbered(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """A table whose rows have other numbers now."""
    return table.set_column(table.column_names.index("row"), "row", pa.array(rows))


def of_rows(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """What a table says of these pool rows (n,)."""
    return table.filter(pa.array(np.isin(table["row"].to_numpy(), rows)))


def together(made: pa.Table, known: pa.Table | None) -> pa.Table:
    """What was computed and what was known, in the order of the rows."""
    if known is None or not known.num_rows:
        return made
    return pa.concat_tables([made, known.cast(made.schema)]).sort_by("row").combine_chunks()


def share_known(
    known: Mapping[str, Sequence[Stretch]], outputs: Sequence[Artifact], n_pool: int, shard_rows: int
) -> NDArray[np.float64]:
    """(n_shard,) of the pool's rows in each shard, the share of which every output is known."""
    everywhere = np.ones(n_pool, dtype=np.bool_)
    for artifact in outputs:
        own = np.zeros(n_pool, dtype=np.bool_)
        for stretch in known.get(artifact.key, ()):
            own[stretch.first : stretch.stop] = True
        everywhere &= own
    starts = np.arange(0, n_pool, shard_rows)
    return np.add.reduceat(everywhere, starts, dtype=np.float64) / np.diff(np.append(starts, n_pool))


def n_rows(known: Sequence[Stretch]) -> int:
    """Rows of the pool that these are."""
    return sum(stretch.stop - stretch.first for stretch in known)


@dataclass(frozen=True, kw_only=True)
class Read:
    """A file of an earlier pool as it was read."""

    artifact: Artifact
    first: int
    n_rows: int
    detected: Mapping[str, Any]


def files_read(store: Store, reading: str) -> dict[tuple[str, str, str], Read]:
    """Every file of an earlier pool that was read as `reading` says, by name, source and digest of its bytes."""
    found: dict[tuple[str, str, str], Read] = {}
    for artifact in _complete(store, "records"):
        facts = artifact.facts
        for part in facts.get("parts", ()) if facts.get("reading") == reading else ():
            read = Read(artifact=artifact, first=part["first"], n_rows=part["n_rows"], detected=part["detected"])
            found[part["name"], part["source"], part["digest"]] = read
    return found


def _complete(root: Store, stage: str) -> list[Artifact]:
    """Finished artifacts of a stage; what cannot be read helps nobody, and whoever needs it will say so."""
    found = []
    for folder in sorted(root.root.glob(f"{stage}-*")):
        if (folder / COMPLETE).is_file() and (folder / INPUTS).is_file():
            try:
                artifact = root.existing(folder.name)
                if not artifact.is_complete:
                    continue
                _ = artifact.facts
            except ArtifactMismatchError:
                continue
            found.append(artifact)
    return found


def _beside_rows(described: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in described.items() if name not in ROWS}


def _records(root: Store, artifact: Artifact) -> Artifact | None:
    """The records behind an artifact; None if they are gone."""
    described = json.loads(artifact.inputs)
    try:
        while "records" not in described:
            tokens = described.get("tokens", described.get("rows"))
            described = json.loads(root.existing(f"tokens-{tokens[:16]}").inputs)
        return root.existing(f"records-{described['records'][:16]}")
    except (ArtifactMismatchError, TypeError):
        return None


def _parts(root: Store, artifact: Artifact, reading: str) -> Sequence[Any]:
    """The files behind an artifact, if they were read in the same way."""
    records = _records(root, artifact)
    facts = records.facts if records is not None and records.is_complete else {}
    return facts["parts"] if facts.get("reading") == reading else ()


def _shared(own: Sequence[Any], earlier: Sequence[Any], other: Artifact) -> list[Stretch]:
    """Stretches of the files with the same bytes. The row numbers of a file are those of its place in the pool."""
    was = {part["digest"]: part["first"] for part in earlier}
    return [
        Stretch(first=part["first"], stop=part["first"] + part["n_rows"], at=was[part["digest"]], artifact=other)
        for part in own
        if part["digest"] in was and part["n_rows"]
    ]
