"""Stage `score`: every pool row against every target of one method, a shard at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gistselect.errors import ArtifactMismatchError, DataError
from gistselect.files import json_line, replacing
from gistselect.representations.interface import Fitted, Representation, Scores
from gistselect.run.cells import Column, load_fit
from gistselect.run.ingest import COUNTS, IDENTITY, RecordRows, TokenRows
from gistselect.run.passes import lost_because, read_features
from gistselect.run.progress import Reporter
from gistselect.run.store import Artifact, table_writer
from gistselect.run.threads import in_order, n_threads
from gistselect.run.warmup import Given, WarmUp
from gistselect.streams import Stream, generator
from gistselect.types import Rejected

if TYPE_CHECKING:
    from gistselect.run.prefilter import Prefilter

VERSION = 1
GROUP_SHARDS = 64
"""Shards in a row group of the table of scores."""
SCORES, QUARANTINE = "scores.parquet", "quarantine.jsonl"
SAMPLED = "sampled.parquet"
"""Of a narrowed pool: the scores of rows that are never selected, which tell what the prefilter loses."""
QUANTILES = (0.5, 0.95, 0.99)
SCORE = "score/"
"""Start of the name of a column with one target's scores."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """The scores of one method."""

    label: str
    representation: Representation
    columns: tuple[Column, ...]
    rows: RecordRows | TokenRows
    """The candidates: the rows that every method of the run can use, or what a prefilter leaves of them."""
    warmup: WarmUp | Given | None
    strict: bool
    seed: int
    artifact: Artifact
    prefilter: Prefilter | None = None
    """What narrowed the rows."""
    name: ClassVar[str] = "score"

    @property
    def n_pool(self) -> int:
        """Rows of the pool, scored or not."""
        return self.rows.facts["n_rows"]

    def run(self, reporter: Reporter) -> None:
        """Write the table of scores and the quarantine, or find that done.

        Raises `DataError` at the first row without a score in a strict run.
        """
        if not self.artifact.is_complete:
            self.artifact.begin()
            with self.artifact.timed():
                self._make(reporter)
        self._check_strict()

    def _make(self, reporter: Reporter) -> None:
        weights = self.weights()
        targets = [_Target(column, weights) for column in self.columns]
        with reporter.step(f"score ({self.representation.title})", total=self.rows.n_shards, unit="shards") as step:
            n_scored, n_rejected = self._write(targets, step.advance)
        n_left_out = self.rows.kept.facts["n_left_out"] if self.rows.kept else 0
        if n_scored + n_rejected + n_left_out != self.n_pool:
            raise ArtifactMismatchError(
                f"{n_scored} scored, {n_rejected} quarantined and {n_left_out} left out rows are not the {self.n_pool} "
                "of the pool."
            )
        self.artifact.complete(
            targets=[name for target in targets for name in target.names],
            n_scored=n_scored,
            n_rejected=n_rejected,
            **({"n_left_out": n_left_out} if self.rows.kept else {}),
            null_score_quantiles={target.column.target: target.null_level(self.seed) for target in targets},
        )

    def weights(self) -> NDArray[np.float64]:
        """(n_checkpoint,) weights of the checkpoints; one without any."""
        if self.representation.reads != "gradient":
            return np.ones(1)
        assert self.warmup is not None
        return np.asarray([one.weight for one in self.warmup.placed()])

    def _write(self, targets: Sequence[_Target], advance: Any) -> tuple[int, int]:
        n_scored = n_rejected = 0
        with ExitStack() as stack:
            quarantine = stack.enter_context(stack.enter_context(replacing(self.artifact / QUARANTINE)).open("wb"))
            scores = stack.enter_context(_growing(self.artifact / SCORES))
            sampled = stack.enter_context(_growing(self.artifact / SAMPLED)) if self.rows.kept else None
            # Threads of the shards' own: what follows here is done in their order, by this one.
            shards = in_order(partial(self._shard, targets), self.rows.n_shards, n_threads())
            for shard, (table, rejected) in enumerate(shards):
                if table is not None and sampled is not None:
                    table, others, rejected = self._apart(shard, table, rejected)
                    sampled(others)
                for one in sorted(rejected, key=lambda row: row.row):
                    quarantine.write(json_line(quarantine_entry(one)) + b"\n")
                    n_rejected += 1
                if table is not None:
                    scores(table)
                    n_scored += table.num_rows
                advance(1)
        return n_scored, n_rejected

    def _apart(
        self, shard: int, table: pa.Table, rejected: Sequence[Rejected]
    ) -> tuple[pa.Table, pa.Table, list[Rejected]]:
        """The rows of a shard that may be selected, those that only tell what is lost, and the quarantined ones.

        A sampled row that cannot be scored is lost to nobody: it was left out.
        """
        choice = self.rows.choice(shard)
        of_sample = set(choice["row"].to_numpy()[choice["sampled"].to_numpy()].tolist())
        is_sample = np.array([row in of_sample for row in table["row"].to_pylist()], dtype=np.bool_)
        quarantined = [one for one in rejected if one.row not in of_sample]
        return table.filter(pa.array(~is_sample)), table.filter(pa.array(is_sample)), quarantined

    def _shard(self, targets: Sequence[_Target], shard: int) -> tuple[pa.Table | None, list[Rejected]]:
        """The scored rows of a shard, and those that cannot be used or whose representation is not finite.

        None if there is no row to score.
        """
        has_tokens = isinstance(self.rows, TokenRows)
        rows, rejected = self.rows.split(shard, [*IDENTITY, *(COUNTS if has_tokens else [])])
        if not rows.num_rows:
            return None, rejected
        numbers = rows["row"].to_numpy()
        scored = [target.score(shard, numbers) for target in targets]
        values = np.concatenate([one.values for one, _ in scored], axis=1)
        finite = np.isfinite(values).all(axis=1)
        kept, lost = rows, rows.slice(0, 0)
        if not finite.all():
            kept, lost = rows.filter(pa.array(finite)), rows.filter(pa.array(~finite))
            values = values[finite]
        # A column after the other in memory, which Arrow takes as it is.
        of_name = np.ascontiguousarray(values.T)
        names = [name for target in targets for name in target.names]
        best = values.argmax(axis=1)
        owner = np.repeat(np.arange(len(targets)), [len(target.names) for target in targets])[best]
        columns: dict[str, Any] = {
            **{name: kept[name] for name in IDENTITY},
            "score": values.max(axis=1),
            "best_target": pa.array(names, type=pa.string()).take(pa.array(best)),
            **{f"{SCORE}{name}": column for name, column in zip(names, of_name, strict=True)},
            **{name: column[finite] for name, column in scored[0][1].items()},
        }
        if has_tokens:
            columns |= {name: kept[name] for name in COUNTS}
        for name in scored[0][0].columns:
            stacked = np.stack([one.columns[name][finite] for one, _ in scored], axis=1)
            columns[name] = np.take_along_axis(stacked, owner[:, None], axis=1)[:, 0]
        given_up = (lost_because(cell, shard) for target in targets for _, cell in target.column.entries)
        reason = next(filter(None, given_up), self.representation.unscored) if lost.num_rows else ""
        rejected += [Rejected(**row, reason=reason) for row in lost.select(IDENTITY).to_pylist()]
        return pa.table(columns), rejected

    def _check_strict(self) -> None:
        if self.strict and self.artifact.facts["n_rejected"]:
            with (self.artifact / QUARANTINE).open(encoding="utf-8") as file:
                first = file.readline()
            raise DataError(
                f"--strict: {self.artifact.facts['n_rejected']} rows cannot be scored, the first: {first.strip()}"
            )


@contextmanager
def _growing(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """A table on disk that grows by a shard at a time, many of them in a row group."""
    waiting: list[pa.Table] = []
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None

        def write() -> None:
            assert writer is not None
            together = pa.concat_tables(waiting)
            writer.write_table(together, row_group_size=max(1, together.num_rows))
            waiting.clear()

        def add(table: pa.Table) -> None:
            nonlocal writer
            writer = writer or stack.enter_context(table_writer(path, table.schema))
            waiting.append(table)
            if len(waiting) == GROUP_SHARDS:
                write()

        yield add
        if waiting:
            write()


class _Target:
    """One target of a method while its scores are made."""

    def __init__(self, column: Column, weights: NDArray[np.float64]) -> None:
        self.column, self.weights = column, weights
        self.fitted: list[Fitted] = [load_fit(fit.artifact) for fit, _ in column.entries]
        self.names = [target_name(column.target, group) for group in self.fitted[0].groups]

    def score(self, shard: int, rows: NDArray[np.int64]) -> tuple[Scores, dict[str, NDArray[np.float64]]]:
        """Scores of the given rows of a shard, and loss and gradient norm (n,) over checkpoints."""
        features = [read_features(cell, shard, rows) for _, cell in self.column.entries]
        measured = {
            name: self.weights @ np.stack([one.measured[name].astype(np.float64) for one in features])
            for name in ("loss", "gradient_norm")
            if name in features[0].measured
        }
        return self.column.representation.score(features, self.fitted, self.weights), measured

    def null_level(self, seed: int) -> dict[str, float] | None:
        """Quantiles of the best score of rows without signal."""
        rng = generator(seed, Stream.NULL_LEVEL)
        draws = self.column.representation.null_level(self.fitted, self.weights, rng)
        return None if draws is None else {str(level): float(np.quantile(draws, level)) for level in QUANTILES}


def target_name(task: str, group: str) -> str:
    """`task` or `task/group`."""
    return f"{task}/{group}" if group else task


def quarantine_entry(row: Rejected) -> dict[str, Any]:
    """A line of `quarantine.jsonl`."""
    return {name: value for name, value in asdict(row).items() if name in ("id", "source", "row", "reason")}
