"""Passes over the pool: one for all pending cells that read the same thing, shard by shard.

A pass is a frozen description, and `work` does one shard of it in any process. The files it writes are the only
message: a shard that is there is done, whoever did it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gistselect.errors import ArtifactMismatchError
from gistselect.representations.interface import Features, GradientSource, HiddenSource, Reads, TextCollector
from gistselect.run import ingest
from gistselect.run.cells import Cell
from gistselect.run.earlier import Stretch, of_rows, taken, together
from gistselect.run.ingest import RecordRows, TokenRows
from gistselect.run.jobs import Job
from gistselect.run.sources import Sources, SourceSpec
from gistselect.run.store import LOST, Artifact, read_schema, read_table, write_table
from gistselect.types import Example, Record


@dataclass(frozen=True, kw_only=True)
class Pass(Job):
    """All pending cells with one source."""

    source: SourceSpec
    cells: tuple[Cell, ...]
    known: Mapping[str, tuple[Stretch, ...]] = field(default_factory=dict)
    """By the key of an output, the rows of which an earlier pool's is known."""

    @property
    def outputs(self) -> tuple[Artifact, ...]:
        """Everything that the pass writes: a shard each, for each shard of the pool."""
        measured = dict.fromkeys(cell.measured for cell in self.cells if cell.measured is not None)
        return (*(cell.features for cell in self.cells), *measured)

    @property
    def unit(self) -> str:
        """What `amounts` counts."""
        return self.source.rows.unit

    @property
    def amounts(self) -> list[int]:
        """How much there is to read in each shard."""
        return self.source.rows.amounts

    @property
    def n_rows(self) -> int:
        """Usable rows of the pool."""
        return self.source.rows.facts["n_usable"]

    @property
    def needs_live_model(self) -> bool:
        """See `SourceSpec`."""
        return self.source.needs_live_model

    def pending(self, index: int) -> bool:
        """Whether some output of this shard is missing."""
        return not all(artifact.shard(index).is_file() for artifact in self.outputs)

    def open(self, sources: Sources) -> None:
        """Load the model."""
        sources.open(self.source)

    def do(self, index: int, sources: Sources) -> None:
        """See `work`."""
        work(self, index, sources)

    def describe(self, index: int) -> str:
        """The rows of a shard by number and id."""
        table = self.source.rows.table(index, ["row", "id"])
        rows, ids = table["row"], table["id"]
        if not len(rows):
            return f"shard {index}, without a usable row"
        return f"shard {index}, pool rows {rows[0]} to {rows[-1]}, ids {ids[0].as_py()!r} to {ids[-1].as_py()!r}"

    def give_up(self, index: int, reason: str) -> bool:
        """Leave not-a-number for every row of a shard, with the reason, so that scoring lists them as lost."""
        rows = self.source.rows.table(index, ["row"])["row"].to_numpy()
        missing = [cell for cell in self.cells if not cell.features.shard(index).is_file()]
        widths = [self._width(cell) for cell in missing]
        if None in widths:
            return False
        for cell, width in zip(missing, widths, strict=True):
            lost = _features_table(rows, np.full((len(rows), width or 0), np.nan, dtype=np.float32))
            write_table(cell.features.shard(index), lost.replace_schema_metadata({LOST: reason}))
        names = _MEASURED[self.source.reads]
        for artifact in dict.fromkeys(cell.measured for cell in self.cells if cell.measured is not None):
            if not artifact.shard(index).is_file():
                columns = {name: np.full(len(rows), np.nan, dtype=np.float32) for name in names}
                write_table(artifact.shard(index), pa.table({"row": rows, **columns}))
        return True

    def _width(self, cell: Cell) -> int | None:
        """Numbers that a cell keeps of a row, as some shard of it has them; None if there is none."""
        for shard in range(len(self.amounts)):
            if (path := cell.features.shard(shard)).is_file() and read_table(path, ["row"]).num_rows:
                return read_schema(path).field("features").type.list_size
        return None

    def complete(self) -> None:
        """Mark all outputs as done.

        Raises `ArtifactMismatchError` if a shard is missing: coverage is proved at the end.
        """
        n_shards = len(self.amounts)
        for artifact in self.outputs:
            artifact.refuse_gaps(n_shards)
            if not artifact.is_complete:
                artifact.complete(n_shards=n_shards)


_MEASURED = {"gradient": ("loss", "n_supervised", "gradient_norm"), "hidden": ("loss",), "text": ()}
"""Columns of what is measured of every row, in a pass of each kind."""


def lost_because(cell: Cell, shard: int) -> str | None:
    """Why the rows of a shard were given up; None if they were not."""
    reason = (read_schema(cell.features.shard(shard)).metadata or {}).get(LOST)
    return reason.decode() if reason else None


def work(job: Pass, shard: int, sources: Sources) -> None:
    """Do one shard of a pass: read its rows once, hand them to every cell whose file is missing, write the files.

    What an earlier pool's outputs know of its rows is taken from there: of a pass through a model if all know a row, of
    text whatever each knows.
    """
    started = time.perf_counter()
    missing = [cell for cell in job.cells if not cell.features.shard(shard).is_file()]
    measures = dict.fromkeys(cell.measured for cell in job.cells if cell.measured is not None)
    measures = [artifact for artifact in measures if not artifact.shard(shard).is_file()]
    read = cache(lambda: _rows(job.source.rows, shard))
    # Where something is known, the rows themselves may not be needed.
    numbers = job.source.rows.table(shard, ["row"])["row"].to_numpy() if job.known else read()[0]
    own: list[float] = []
    for cells in [[cell] for cell in missing] if job.source.reads == "text" else [missing]:
        own += _write(job, shard, cells, measures, numbers, lambda: read()[1], sources)
    shared = time.perf_counter() - started - sum(own)
    for cell, seconds in zip(missing, own, strict=True):
        cell.features.spend(shared=shared, own=seconds)


def _write(
    job: Pass,
    shard: int,
    cells: Sequence[Cell],
    measures: Sequence[Artifact],
    numbers: NDArray[np.int64],
    items: Callable[[], Sequence[Any]],
    sources: Sources,
) -> list[float]:
    """Write a shard of these cells and of what is measured; seconds of each cell's own arithmetic."""
    outputs = [*(cell.features for cell in cells), *measures]
    is_known, known = _known(job, outputs, numbers)
    own = [0.0] * len(cells)
    if not is_known.all() or not len(numbers):
        new = [item for item, there in zip(items(), is_known, strict=True) if not there]
        source = sources.open(job.source)
        collectors = [sources.collector(cell, source) for cell in cells]
        with _own_seconds(collectors) as own:
            kept, measured = _RUN[job.source.reads](source, new, collectors)
        made = [_features_table(numbers[~is_known], values) for values in kept]
        made += [pa.table({"row": numbers[~is_known], **measured})] * len(measures)
    else:
        made = [known[artifact.key].slice(0, 0) for artifact in outputs]
    for artifact, table in zip(outputs, made, strict=True):
        write_table(artifact.shard(shard), together(table, known.get(artifact.key)))
    return own


def _rows(rows: RecordRows | TokenRows, shard: int) -> tuple[NDArray[np.int64], Sequence[Any]]:
    """Pool rows (n,) of a shard, and their examples or records."""
    if isinstance(rows, TokenRows):
        return rows.examples(shard)
    records = rows.records(shard)
    return np.array([record.row for record in records], dtype=np.int64), records


def _known(
    job: Pass, outputs: Sequence[Artifact], rows: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], dict[str, pa.Table]]:
    """Which pool rows (n,) every output knows from an earlier pool, and what it knows of them, by its key."""
    is_known = np.full(len(rows), bool(outputs) and all(artifact.key in job.known for artifact in outputs))
    tables: dict[str, pa.Table] = {}
    for artifact in outputs if is_known.any() else ():
        mask, table = taken(job.known[artifact.key], rows, ingest.SHARD_ROWS)
        is_known &= mask
        if table is not None:
            tables[artifact.key] = table
    return is_known, {key: of_rows(table, rows[is_known]) for key, table in tables.items()}


@contextmanager
def _own_seconds(collectors: Sequence[Any]) -> Iterator[list[float]]:
    """Seconds of each collector's own arithmetic, known after the block; the rest of the pass is everybody's.

    On a GPU, where work is only handed over, what is measured is little and the rest counts as shared.
    """
    own = [0.0] * len(collectors)

    def clocked(index: int, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            # One of its methods may call another, which then counts within it.
            before, started = own[index], time.perf_counter()
            result = method(*arguments)
            own[index] = before + time.perf_counter() - started
            return result

        return call

    for index, collector in enumerate(collectors):
        for name in _WORKING & set(dir(collector)):
            vars(collector)[name] = clocked(index, getattr(collector, name))
    try:
        yield own
    finally:
        for collector in collectors:
            for name in _WORKING:
                vars(collector).pop(name, None)


_WORKING = {"start", "add", "take", "finish", "result"}
"""Methods in which a collector does its own arithmetic."""


Outcome = tuple[list[NDArray[np.floating]], Mapping[str, NDArray[Any]]]
"""What each collector kept (n, width), and what was measured of every row (n,)."""


def _gradients(source: GradientSource, examples: Sequence[Example], collectors: Sequence[Any]) -> Outcome:
    if not examples:
        return _nothing("gradient", collectors)
    measured = source.engine.collect(examples, collectors)
    columns = {
        "loss": measured.loss.astype(np.float32),
        "n_supervised": measured.n_supervised.astype(np.int32),
        "gradient_norm": measured.gradient_norm.astype(np.float32),
    }
    return [collector.result() for collector in collectors], columns


def _hidden(source: HiddenSource, examples: Sequence[Example], collectors: Sequence[Any]) -> Outcome:
    from gistselect.model.hidden import ExampleLoss, collect_hidden

    if not examples:
        return _nothing("hidden", collectors)
    loss = ExampleLoss()
    collect_hidden(source.forward, examples, [loss, *collectors])
    columns = {"loss": loss.result()[:, 0].astype(np.float32)}
    return [collector.result() for collector in collectors], columns


def _nothing(reads: str, collectors: Sequence[Any]) -> Outcome:
    """Of a shard without a row to read; how much would be kept of one is not known here."""
    columns = {name: np.zeros(0, dtype=np.int32 if name == "n_supervised" else np.float32) for name in _MEASURED[reads]}
    return [np.zeros((0, 1), dtype=np.float32) for _ in collectors], columns


def _text(source: RecordRows, records: Sequence[Record], collectors: Sequence[TextCollector]) -> Outcome:
    return [collector.take(records) for collector in collectors], {}


_RUN: dict[str, Callable[..., Outcome]] = {"gradient": _gradients, "hidden": _hidden, "text": _text}


def collect(reads: Reads, source: Any, items: Sequence[Any], collectors: Sequence[Any]) -> Outcome:
    """What a pass of a kind does with a shard's examples or records, without a file."""
    return _RUN[reads](source, items, collectors)


def _features_table(rows: NDArray[np.int64], values: NDArray[np.floating]) -> pa.Table:
    flat = np.ascontiguousarray(values, dtype=np.float32)
    return pa.table({"row": rows, "features": pa.FixedSizeListArray.from_arrays(flat.reshape(-1), flat.shape[1])})


def read_features(cell: Cell, shard: int, rows: NDArray[np.int64]) -> Features:
    """What a pass kept of the given pool rows (n,) of a shard, ascending.

    Raises `ArtifactMismatchError` if a row is missing or a file is damaged.
    """
    table = read_table(cell.features.shard(shard))
    at = _places(table["row"].to_numpy(), rows, cell.features)
    column = table["features"].combine_chunks()
    values = column.values.to_numpy().reshape(len(column), -1)
    measured: dict[str, NDArray[np.floating]] = {}
    if cell.measured is not None:
        table = read_table(cell.measured.shard(shard))
        there = _places(table["row"].to_numpy(), rows, cell.measured)
        measured = {name: table[name].to_numpy()[there] for name in table.column_names if name != "row"}
    return Features(values=values[at], measured=measured)


def _places(stored: NDArray[np.int64], rows: NDArray[np.int64], artifact: Artifact) -> NDArray[np.intp]:
    at = np.searchsorted(stored, rows)
    if len(at) and (at.max(initial=0) >= len(stored) or not (stored[at] == rows).all()):
        raise ArtifactMismatchError(f"{artifact.folder} holds other rows than the pool; delete it and run again.")
    return at
