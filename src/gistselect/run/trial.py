"""A trial of one source: its preparations, fits, pass and scores on a part of the pool, timed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gistselect.representations.interface import Features, Fitted, Prepared, Representation
from gistselect.representations.queries import Apart, Queries
from gistselect.run.cells import Cell, Fit, Preparation, load_fit
from gistselect.run.ingest import RecordRows, TokenRows
from gistselect.run.pass_groups import Group, fit_rate, pass_rate, takers, text_rate
from gistselect.run.passes import collect
from gistselect.run.plan import Plan
from gistselect.run.rates import Clock, Rate, Spent, Timer, stratified
from gistselect.run.scoring import Score
from gistselect.run.sources import SourceSpec
from gistselect.run.store import read_table, write_table
from gistselect.run.workload import lengths_of, score_rate, scores
from gistselect.types import Example, Record

PILOT_ROWS, MOST_ROWS = 16, 512
"""Rows of the first look at a pass, and most of the second, which is the one that counts."""
PILOT_QUERIES, FEW_SHARDS = 8, 4
OF_FIT, OF_PASS = 0.15, 0.25
"""Shares of the calibration's time for the second look at each part, where there is room for one."""


class Trial:
    """Times what an opened source serves."""

    def __init__(
        self, plan: Plan, spec: SourceSpec, source: Any, *, clock: Clock, scratch: Path, seconds: float
    ) -> None:
        self._plan, self._spec, self._source = plan, spec, source
        self._clock, self._scratch, self._seconds = clock, scratch, seconds
        self.rates: dict[str, Rate] = {}
        self.n_rows = 0
        """Rows of the pool that were read."""
        self._pool = _PoolPart(spec, clock)

    def measure(self, group: Group, loading: Spent) -> dict[str, Rate]:
        """The rates of a group; `loading` is what opening the source took."""
        prepared = {one.representation: self._prepared(one) for one in group.preparations}
        fitted: dict[Representation, Fitted] = {}
        for fit in sorted(group.fits, key=lambda one: (isinstance(one.queries, Apart), -len(one.queries.records))):
            if fit.representation not in fitted:
                fitted[fit.representation] = self._fitted(fit, prepared.get(fit.representation))
        if not group.cells:
            return self.rates
        kept, measured = self._pass(group, fitted, loading)
        for score in scores(self._plan):
            one = score.representation
            if one in fitted and one in kept:
                self._score(score, kept[one], measured, fitted[one])
        return self.rates

    def _folder(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{self._spec.reads}-", dir=self._scratch))

    # --- what the pool and the queries determine ------------------------------------------------------------

    def _prepared(self, one: Preparation) -> Prepared:
        if one.artifact.is_complete:
            return one.load()
        representation, key, timer = one.representation, fit_rate(self._plan, one), Timer(self._clock)
        if isinstance(self._pool.rows, RecordRows):
            (amount, spent), fixed, prepared = self._over_text(
                lambda at, folder: representation.prepare([], at, folder)
            )
            self.rates[key] = Rate(per_unit=spent * (1 / amount), fixed=fixed, measured_on=f"{amount:,} rows")
            return prepared
        lengths = lengths_of(self._pool.rows)
        drawn = representation.sample(len(lengths))
        n_rows = PILOT_ROWS
        while True:
            sample = self._pool.examples(drawn[stratified(lengths[drawn], n_rows)])
            folder = self._folder()
            with timer():
                prepared = replace(representation.prepare(sample, self._source, folder), folder=folder)
            n_more = self._more(OF_FIT, timer.spent, len(sample), len(drawn))
            if n_rows > PILOT_ROWS or n_more < 2 * len(sample):
                break
            n_rows = n_more
        read = _tokens(sample)
        self.rates[key] = Rate(per_unit=timer.spent * (1 / read), measured_on=f"{len(sample):,} rows")
        return prepared

    def _fitted(self, fit: Fit, prepared: Prepared | None) -> Fitted:
        if fit.artifact.is_complete:
            return load_fit(fit.artifact)
        one, key, timer = fit.representation, fit_rate(self._plan, fit), Timer(self._clock)
        if isinstance(self._pool.rows, RecordRows):
            (amount, spent), fixed, fitted = self._over_text(
                lambda at, folder: one.fit(fit.queries, at, folder, prepared)
            )
            self.rates[key] = Rate(per_unit=spent * (1 / amount), fixed=fixed, measured_on=f"{amount:,} rows")
            return fitted
        n_all = len(fit.queries.examples)
        lengths = np.array([example.n_tokens for example in fit.queries.examples])
        n_queries = PILOT_QUERIES
        while True:
            some = _part(fit.queries, stratified(lengths, n_queries))
            folder = self._folder()
            with timer():
                fitted = replace(one.fit(some, self._source, folder, prepared), folder=folder)
            n_more = self._more(OF_FIT, timer.spent, len(some.examples), n_all)
            if n_queries > PILOT_QUERIES or n_more < 2 * len(some.examples):
                break
            n_queries = n_more
        # More queries may take more passes.
        passes = one.passes(n_all, self._source) / one.passes(len(some.examples), self._source)
        per_unit = timer.spent * (passes / _tokens(some.examples))
        self.rates[key] = Rate(per_unit=per_unit, measured_on=f"{len(some.examples):,} queries")
        return fitted

    def _over_text(self, work: Any) -> tuple[tuple[int, Spent], Spent, Any]:
        """Work over the pool's text, on one shard and on several: rows and time of what the others added, and time of
        what does not depend on their number; exact where these are all shards."""
        timer, rows = Timer(self._clock), RecordRows(self._spec.records)
        few, more = _shards(rows.n_shards, 1), _shards(rows.n_shards, FEW_SHARDS)
        with timer():
            result = self._kept(work, _FewRecords(rows, few))
        first, n_first = timer.spent, sum(rows.amounts[index] for index in few)
        if len(more) == len(few):
            return (max(n_first, 1), first), Spent(), result
        with timer():
            result = self._kept(work, _FewRecords(rows, more))
        n_more = sum(rows.amounts[index] for index in more)
        self.n_rows += n_first + n_more
        added = timer.spent.beyond(first)
        return (n_more - n_first, added), first.beyond(added * (n_first / (n_more - n_first))), result

    def _kept(self, work: Any, at: _FewRecords) -> Any:
        folder = self._folder()
        return replace(work(at, folder), folder=folder)

    # --- the pass and the scores ------------------------------------------------------------------------------

    def _pass(
        self, group: Group, fitted: dict[Representation, Fitted], loading: Spent
    ) -> tuple[dict[Representation, NDArray[np.floating]], dict[str, NDArray[Any]]]:
        """Time the pass; what it kept of the rows for each representation, and what it measured."""
        cells = group.pending or group.cells
        if group.reads != "text":
            kept, measured, rate = self._taken(cells, fitted, OF_PASS)
            per_unit = rate.per_unit + self._pool.reading
            self.rates[pass_rate(self._plan, group)] = replace(rate, per_unit=per_unit, fixed=loading + rate.fixed)
            return kept, measured
        # Each takes the text by itself, since each has other rows to take where a pool has grown.
        read = Rate(per_unit=self._pool.reading, fixed=loading, measured_on=f"{self._pool.most:,} rows")
        self.rates[pass_rate(self._plan, group)] = read
        together: dict[Representation, NDArray[np.floating]] = {}
        apart = takers(cells).values()
        for own in apart:
            kept, _, self.rates[text_rate(own)] = self._taken(own, fitted, OF_PASS / len(apart))
            together |= kept
        return together, {}

    def _taken(
        self, cells: Sequence[Cell], fitted: dict[Representation, Fitted], share: float
    ) -> tuple[dict[Representation, NDArray[np.floating]], dict[str, NDArray[Any]], Rate]:
        """What these cells keep of some rows and what is measured of them, and the rate at which that is done."""
        timer, n_rows = Timer(self._clock), PILOT_ROWS
        with timer():
            collectors = [
                cell.representation.collector(fitted[cell.representation] if cell.fit else None, self._source)
                for cell in cells
            ]
        fixed = timer.spent
        while True:
            part = self._pool.part(n_rows)
            with timer():
                kept, measured = collect(self._spec.reads, self._source, part.items, collectors)
            n_read = len(part.items)
            self.n_rows += n_read
            n_more = self._more(share, timer.spent, n_read, self._pool.most)
            if n_rows > PILOT_ROWS or n_more < 2 * n_read:
                break
            n_rows = n_more
        rate = Rate(per_unit=timer.spent * (1 / max(part.amount, 1)), fixed=fixed, measured_on=f"{n_read:,} rows")
        values = {cell.representation: one for cell, one in zip(cells, kept, strict=True)}
        return values, dict(measured), rate

    def _score(
        self, score: Score, values: NDArray[np.floating], measured: dict[str, NDArray[Any]], fitted: Fitted
    ) -> None:
        """Time the scores of these rows for all targets at all checkpoints, and the files that they are read from."""
        path, timer = self._folder() / "features.parquet", Timer(self._clock)
        n_checkpoints = len(score.columns[0].entries)
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        write_table(path, pa.table({"features": pa.FixedSizeListArray.from_arrays(flat, values.shape[1])}))
        features = [Features(values=values, measured=measured)] * n_checkpoints
        weights = np.full(n_checkpoints, 1 / n_checkpoints)
        with timer():
            for _ in score.columns:
                for _ in range(n_checkpoints):
                    read_table(path)
                score.representation.score(features, [fitted] * n_checkpoints, weights)
        self.rates[score_rate(score)] = Rate(
            per_unit=timer.spent * (1 / max(len(values), 1)), measured_on=f"{len(values):,} rows"
        )

    def _more(self, share: float, spent: Spent, done: int, most: int) -> int:
        """How many units of such work fit into a share of the calibration's time."""
        return min(most, int(share * self._seconds * done / max(spent.wall, 1e-4)))


class _PoolPart:
    """The pool as a source reads it, and a few of its rows."""

    def __init__(self, spec: SourceSpec, clock: Clock) -> None:
        self.rows = spec.rows
        self.most = min(MOST_ROWS, self.rows.facts["n_usable"])
        """Most rows of a trial of the pass."""
        self.reading = Spent()
        """What it takes to read a row of text from its shard."""
        self._records: list[Record] = []
        if isinstance(self.rows, RecordRows):
            timer = Timer(clock)
            with timer():
                self._records = self.rows.records(0)
            self.most = len(self._records)
            self.reading = timer.spent * (1 / max(len(self._records), 1))

    def examples(self, positions: NDArray[np.intp]) -> list[Example]:
        """The examples at these places among the usable rows."""
        assert isinstance(self.rows, TokenRows)
        numbers = self.rows.columns(["row"])["row"].to_numpy()
        return self.rows.select(numbers[positions].tolist())

    def part(self, most: int) -> _Part:
        """At most so many rows, as a pass reads a shard, evenly over the order of their lengths."""
        if isinstance(self.rows, RecordRows):
            records = self._records[:most]
            return _Part(items=records, amount=len(records))
        examples = self.examples(stratified(lengths_of(self.rows), most))
        return _Part(items=examples, amount=_tokens(examples))


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Rows that stand for a shard: examples or records."""

    items: Sequence[Any]
    amount: int
    """In the unit of a pass."""


class _FewRecords:
    """Some shards of the pool's records."""

    def __init__(self, rows: RecordRows, shards: Sequence[int]) -> None:
        self._rows, self._shards = rows, shards

    def shards(self) -> Iterator[list[Record]]:
        """See `TextSource`."""
        return map(self._rows.records, self._shards)


def _shards(n_shards: int, most: int) -> list[int]:
    """At most so many shards, evenly."""
    return np.unique(np.linspace(0, n_shards - 1, min(most, n_shards)).astype(int)).tolist()


def _part(queries: Queries, positions: NDArray[np.intp]) -> Queries:
    """Some of the queries of a target."""
    return replace(
        queries,
        records=tuple(queries.records[index] for index in positions),
        examples=tuple(queries.examples[index] for index in positions),
        groups=tuple(queries.groups[index] for index in positions),
    )


def _tokens(examples: Sequence[Example]) -> int:
    return sum(example.n_tokens for example in examples)
