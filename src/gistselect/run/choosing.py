"""Stage `select`: the best rows within the budget, as a table and as a training file with the pool's own bytes."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from gistselect.data.pool import Pool
from gistselect.data.stored import normalised
from gistselect.errors import ConfigError
from gistselect.files import write_json_lines, write_lines
from gistselect.registry import names, resolve
from gistselect.representations.interface import Representation
from gistselect.run.constraints import Constraints
from gistselect.run.ingest import RecordRows
from gistselect.run.progress import Reporter
from gistselect.run.scored import ScoredPool
from gistselect.run.scoring import SCORES, Score
from gistselect.run.store import Artifact, Store, read_batches, read_names, read_table, write_table
from gistselect.run.texts import TextPass
from gistselect.selection.gates import Chosen, choose
from gistselect.selection.options import SelectionOptions

VERSION = 1
SELECTION, SELECTED, REFUSED = "selection.parquet", "selected.jsonl", "refused.parquet"
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
    texts: TextPass
    """What gates know of the rows' text; done before this stage."""
    artifact: Artifact
    name: ClassVar[str] = "select"

    @classmethod
    def planned(
        cls,
        store: Store,
        score: Score,
        *,
        records: RecordRows,
        pool: Pool,
        options: SelectionOptions,
        output_format: Literal["pool", "messages"],
        texts: TextPass,
    ) -> Select:
        """The stage with its key, to which options that are not used add nothing."""
        artifact = store.artifact(
            "selection",
            VERSION,
            scores=score.artifact.key,
            output_format=output_format,
            **options.selection_inputs,
            **texts.inputs,
        )
        return cls(
            score=score,
            records=records,
            pool=pool,
            options=options,
            output_format=output_format,
            texts=texts,
            artifact=artifact,
        )

    def run(self, reporter: Reporter) -> None:
        """Write selection.parquet, selected.jsonl and what was refused into the artifact, or find that done.

        Raises `ConfigError` if the budget or another constraint cannot be met, `DataError` naming a pool file that
        changed after it was read.
        """
        if self.artifact.is_complete:
            return
        started = time.monotonic()
        table, refused, accounting = self.ranked()
        self.artifact.begin()
        self.artifact.spend(seconds=time.monotonic() - started)
        write_table(self.artifact / SELECTION, table)
        if refused.num_rows:
            write_table(self.artifact / REFUSED, refused)
        self._write_rows(table["row"].to_pylist())
        self.artifact.complete(n_selected=table.num_rows, accounting=accounting)

    def ranked(self) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
        """rank, id, source, row, score, best_target (and captured_energy) of the rows within the budget, best first;
        id, source, row and reason of those that were refused; and counts of both."""
        scores = ScoredPool(self.score)
        constraints = Constraints(
            self.options,
            scores,
            self.texts,
            pool=self.score.rows.facts,
            n_scored=self.score.artifact.facts["n_scored"],
        )
        chosen = choose(self.options.order.order(scores), constraints.room, constraints.gates)
        accounting = constraints.accounting(chosen)
        ascending = np.argsort(chosen.positions)
        extra = [name for name in ("captured_energy",) if name in read_names(scores.path)]
        table = scores.take([*COLUMNS, *extra], chosen.positions[ascending]).take(pa.array(np.argsort(ascending)))
        ranks = pa.array(np.arange(1, table.num_rows + 1))
        return table.add_column(0, "rank", ranks), _refused(chosen, scores), accounting

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
        return "\n".join([*lines, *accounting_lines(self.artifact.facts), score])


def _refused(chosen: Chosen, scores: ScoredPool) -> pa.Table:
    """id, source, row, reason in pool order; empty if no gate refused a row."""
    positions = np.concatenate([np.zeros(0, dtype=np.intp), *chosen.refused.values()])
    reasons = np.repeat(np.arange(len(chosen.refused)), list(chosen.dropped.values()))
    ascending = np.argsort(positions)
    table = scores.take(["id", "source", "row"], positions[ascending])
    names = pa.array(list(chosen.refused), type=pa.string())
    return table.append_column("reason", names.take(pa.array(reasons[ascending].astype(np.int64))))


def accounting_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """What was taken of the budget, what was refused and why, and how the limits were met; nothing where all is plain:
    a budget in rows that nothing constrains."""
    found = facts.get("accounting", {})
    if found.get("unit", "rows") != "rows":
        yield f"Budget: {found['used']:,} of {found['budget']:,} {found['unit']}, {facts['n_selected']:,} rows."
    for reason, count in found.get("refused", {}).items():
        yield f"  {count:,} better ranked rows were refused: {reason}"
    # Those first that were likeliest to decide: a least, and a most that is reached or nearly so.
    limits = sorted(found.get("limits", {}).items(), key=lambda item: (item[1]["least"] is None, -_filled(item[1])))
    for source, one in limits[:SHOWN_SOURCES]:
        said = [
            f"{word} {one[key]:,}" for key, word in (("least", "at least"), ("most", "at most")) if one[key] is not None
        ]
        yield f"  {source}: {one['selected']:,} {found['unit']} ({', '.join(said)})"
    if len(limits) > SHOWN_SOURCES:
        yield f"  and {len(limits) - SHOWN_SOURCES} more sources with limits"


def _filled(limit: Mapping[str, Any]) -> float:
    """How near a source is to its most."""
    return limit["selected"] / max(limit["most"], 1) if limit["most"] is not None else 0.0


def refuse_unfit(options: SelectionOptions, representations: Iterable[Representation]) -> None:
    """Raises `ConfigError` naming all that keep no points, if the selector compares rows as such."""
    unfit = [one.title for one in representations if not one.has_points]
    if options.order.needs_points and unfit:
        usable = [name for name in names("selector") if not resolve("selector", name)().needs_points]
        raise ConfigError(
            f"--selector {options.selector} compares rows as points of a space, and {' and '.join(unfit)} "
            f"keep{'s' * (len(unfit) == 1)} only scores; leave {'it' if len(unfit) == 1 else 'them'} out, or use "
            f"{', '.join(usable)}."
        )


def _parts(rows: list[int]) -> list[list[int]]:
    return [rows[start : start + FETCHED] for start in range(0, len(rows), FETCHED)]
