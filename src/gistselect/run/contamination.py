"""Passages that a selection shares with what the model is to be judged by: always counted, left out if asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gistselect.data.config import ReadOptions
from gistselect.data.overlap import Passages, hashed_blocks
from gistselect.errors import DataError
from gistselect.run.ingest import RecordRows
from gistselect.run.store import Artifact, Store, write_table
from gistselect.run.targets import load_tasks
from gistselect.types import Record, Task

VERSION = 1
OVERLAP = "overlap.parquet"
READ = 1 << 12
"""Rows whose text is held at a time."""
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Queries and held-out items of some tasks."""

    tasks: tuple[Task, ...]
    strict: bool = False
    """Whether held-out items that cannot be read are an error."""

    @cached_property
    def _found(self) -> tuple[list[tuple[str, Record]], list[str]]:
        items: list[tuple[str, Record]] = []
        unread: list[str] = []
        for task in self.tasks:
            items += [(f"{task.name}, query {record.id}", record) for record in task.queries()]
            try:
                items += [(f"{task.name}, held-out item {record.id}", record) for record in task.evaluation()]
            except DataError:
                if self.strict:
                    raise
                unread.append(task.name)
        return items, unread

    @cached_property
    def passages(self) -> Passages:
        """Their passages. Raises `DataError` naming a file whose queries cannot be read."""
        return Passages(self._found[0])

    @property
    def unread(self) -> list[str]:
        """Tasks whose held-out items could not be read."""
        return self._found[1]


def judged_by(names: Sequence[str], data_dir: Path | None, options: ReadOptions | None) -> Judged:
    """What --decontaminate names. Raises `ConfigError` for a name that is neither a task nor a file."""
    tasks = (task for name in names for task in load_tasks((name,), data_dir, None, (), options))
    return Judged(tasks=tuple(tasks), strict=True)


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """Which selected rows share a passage with the queries or held-out items of the run's targets."""

    store: Store
    records: RecordRows
    judged: Judged

    def of(self, selection: Artifact) -> Artifact:
        """Where the overlap of a selection is kept. Its key takes the items' text, which is read first."""
        return self.store.artifact("overlap", VERSION, selection=selection.key, items=self.judged.passages.digest)

    def run(self, selection: Artifact, rows: Sequence[int]) -> Artifact:
        """Look at the pool rows of a selection, or find that done."""
        artifact = self.of(selection)
        if not artifact.is_complete:
            artifact.begin()
            with artifact.timed():
                self._make(artifact, rows)
        return artifact

    def _make(self, artifact: Artifact, rows: Sequence[int]) -> None:
        passages = self.judged.passages
        found: list[dict[str, Any]] = []
        in_pool_order = sorted(rows)  # So that each shard is read once.
        for start in range(0, len(rows), READ):
            for block, hashed in hashed_blocks(self.records.select(in_pool_order[start : start + READ])):
                shared = passages.shared(hashed)
                found += [
                    {"row": block[index].row, "id": block[index].id, "item": passages.names[shared[index]]}
                    for index in np.flatnonzero(shared >= 0).tolist()
                ]
        schema = pa.schema({"row": pa.int64(), "id": pa.string(), "item": pa.string()})
        write_table(artifact / OVERLAP, pa.Table.from_pylist(found, schema=schema))
        artifact.complete(
            n_rows=len(found),
            n_selected=len(rows),
            n_items=len(passages.names),
            n_short=passages.n_short,
            unread=self.judged.unread,
            examples=found[:SHOWN],
        )


def overlap_line(facts: dict[str, Any]) -> str:
    """What was found, for people."""
    left_out = f", {facts['n_short']:,} of them too short to be compared" if facts["n_short"] else ""
    unread = f" Held-out items of {', '.join(facts['unread'])} could not be read." if facts["unread"] else ""
    line = (
        f"Overlap: {facts['n_rows']:,} of {facts['n_selected']:,} selected rows share 13 words in a row with a "
        f"query or held-out item of the targets ({facts['n_items']:,} items{left_out}).{unread}"
    )
    if facts["examples"]:
        first = facts["examples"][0]
        line += f" The first: {first['id']!r} and {first['item']!r}; --decontaminate leaves such rows out."
    return line
