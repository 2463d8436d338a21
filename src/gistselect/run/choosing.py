"""Stage `select`: the best rows within the budget, as a table and as a training file with the pool's own bytes."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from gistselect.data.pool import Pool
from gistselect.data.stored import normalised
from gistselect.errors import ConfigError
from gistselect.files import write_json_lines, write_lines
from gistselect.registry import names, resolve
from gistselect.representations.interface import Representation
from gistselect.run.ingest import RecordRows
from gistselect.run.progress import Reporter
from gistselect.run.scored import ScoredPool
from gistselect.run.scoring import SCORES, Score
from gistselect.run.store import Artifact, read_batches, read_names, read_table, write_table
from gistselect.selection.budget import rows_for_budget
from gistselect.selection.gates import RowBudget, choose
from gistselect.selection.options import SelectionOptions

VERSION = 1
SELECTION, SELECTED = "selection.parquet", "selected.jsonl"
COLUMNS = ["id", "source", "row", "score", "best_target"]
FETCHED = 1 << 14
"""Rows whose bytes are held at a time."""
SHOWN_SOURCES = 8


@dataclass(frozen=True, kw_only=True)
class Select:
    """The selection of one method."""

    score: Score
    records: RecordRows
    pool: Pool
    options: SelectionOptions
    output_format: Literal["pool", "messages"]
    artifact: Artifact
    name: ClassVar[str] = "select"

    def run(self, reporter: Reporter) -> None:
        """Write selection.parquet and selected.jsonl into the artifact, or find that done.

        Raises `ConfigError` if the budget asks for more rows than have a score, `DataError` naming a pool file that
        changed after it was read.
        """
        if self.artifact.is_complete:
            return
        started = time.monotonic()
        table = self.ranked()
        self.artifact.begin()
        self.artifact.spend(seconds=time.monotonic() - started)
        write_table(self.artifact / SELECTION, table)
        self._write_rows(table["row"].to_pylist())
        self.artifact.complete(n_selected=table.num_rows)

    def ranked(self) -> pa.Table:
        """rank, id, source, row, score, best_target (and captured_energy) of the rows within the budget, best first."""
        facts = self.score.artifact.facts
        n_pool, n_scored = facts["n_scored"] + facts["n_rejected"], facts["n_scored"]
        n_rows = rows_for_budget(self.options.budget, n_pool, n_scored)
        scores = ScoredPool(self.score)
        chosen = choose(self.options.order.order(scores), RowBudget(n_rows), ()).positions
        if len(chosen) < n_rows:
            raise ConfigError(
                f"--selector {self.options.selector} looks at the {len(chosen):,} best rows only, "
                f"{n_rows - len(chosen):,} fewer than the budget; give it more candidates "
                f"({self.options.selector.split(':')[0]}:candidates=0.5)."
            )
        ascending = np.argsort(chosen)
        extra = [name for name in ("captured_energy",) if name in read_names(scores.path)]
        table = scores.take([*COLUMNS, *extra], chosen[ascending]).take(pa.array(np.argsort(ascending)))
        return table.add_column(0, "rank", pa.array(np.arange(1, n_rows + 1)))

    def _write_rows(self, rows: list[int]) -> None:
        """Pool rows in rank order: as they stand in the pool, byte by byte, or normalised to messages."""
        if self.output_format == "messages":
            records = (record for part in _parts(rows) for record in self.records.select(part))
            write_json_lines(self.artifact / SELECTED, (normalised(record) for record in records))
            return
        lines = (
            raw[row] for part in _parts(rows) for raw in [self.pool.fetch(self.records.places(part))] for row in part
        )
        write_lines(self.artifact / SELECTED, lines)

    @property
    def table(self) -> pa.Table:
        """rank, id, source, row, score, best_target (and captured_energy) of the selected rows, best first."""
        return read_table(self.artifact / SELECTION)

    def mix(self) -> str:
        """Where the selection came from, against the scored rows' own mix, largest share first."""
        sources = read_batches(self.score.artifact / SCORES, ["source"])
        of_pool = Counter(itertools.chain.from_iterable(batch.column(0).to_pylist() for batch in sources))
        chosen = Counter(self.table["source"].to_pylist())
        lines = [
            f"{self.score.representation.title} selected {chosen.total():,} of {of_pool.total():,} rows. Sources, "
            "share of the selection (of the pool):"
        ]
        score = f"Its score: {self.score.representation.definition}."
        for source, count in sorted(chosen.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_SOURCES]:
            lines.append(f"  {source:<24} {count / chosen.total():6.1%}  ({of_pool[source] / of_pool.total():.1%})")
        if len(chosen) > SHOWN_SOURCES:
            lines.append(f"  and {len(chosen) - SHOWN_SOURCES} more sources")
        return "\n".join([*lines, score])


def refuse_unfit(options: SelectionOptions, representation: Representation) -> None:
    """Raises `ConfigError` if the selector compares rows as points, and the representation keeps none."""
    if options.order.needs_points and not representation.has_points:
        usable = [name for name in names("selector") if not resolve("selector", name)().needs_points]
        raise ConfigError(
            f"--selector {options.selector} compares rows as points of a space, and {representation.title} keeps only "
            f"scores; with it use {', '.join(usable)}."
        )


def _parts(rows: list[int]) -> list[list[int]]:
    return [rows[start : start + FETCHED] for start in range(0, len(rows), FETCHED)]
