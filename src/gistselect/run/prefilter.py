"""Stage `prefilter`: a cheap representation puts the pool in order, and the dear ones read its best share alone.

Targets take turns, as in `--selector round_robin`: each takes the best row for it that is left, so that the kept rows
are those that `--representation bm25 --selector round_robin --budget 20%` would select. A random sample of the others
is read too. It is never selected; it tells which share of the best rows was left out (`linalg.cascade`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gistselect.errors import ConfigError, DataError
from gistselect.files import read_json_lines
from gistselect.linalg.cascade import lost_share
from gistselect.linalg.hashing import fingerprints
from gistselect.linalg.intervals import LEVEL, Interval
from gistselect.run.engine import Engine
from gistselect.run.features import Features
from gistselect.run.prefilter_config import Narrowing
from gistselect.run.progress import Reporter
from gistselect.run.scored import ScoredPool
from gistselect.run.scoring import QUARANTINE, SAMPLED, SCORES, Score
from gistselect.run.sources import Sources
from gistselect.run.store import Artifact, read_batches, read_table, table_writer, write_table
from gistselect.selection.budget import COLUMNS, parse_budget, rows_for_budget
from gistselect.selection.turns import RoundRobin
from gistselect.shares import rows_of
from gistselect.streams import Stream, uniforms

VERSION = 1
PLACED = "prefilter.parquet"
FATES = ("kept", "sampled", "left out")
SAMPLED_SHARE, LEAST_SAMPLED = 0.02, 200
"""Of the rows that are left out: which are scored all the same."""


@dataclass(frozen=True, kw_only=True)
class Prefilter:
    """What the dear representations of a run read of its pool."""

    narrowing: Narrowing
    narrowed: tuple[str, ...]
    """Titles of the representations that read no more than what is left."""
    features: Features
    score: Score
    """Of the cheap representation, over the whole pool."""
    budgets: tuple[str | int | float, ...]
    """Of the selections that are made of what is left."""
    seed: int
    artifact: Artifact
    name: ClassVar[str] = "prefilter"

    def run(self, reporter: Reporter, engine: Engine, sources: Sources) -> None:
        """Score the pool by the cheap representation and choose what the others read, or find that done.

        Raises `ConfigError` if a budget is larger than what is left.
        """
        if not self.artifact.is_complete:
            self.features.run(reporter, engine, sources)
            self.score.run(reporter)
            self.artifact.begin()
            with self.artifact.timed():
                self._make()
        reporter.say(self.told())
        facts = self.artifact.facts
        self._refuse(facts["n_kept"], facts["kept_tokens"])

    @property
    def part(self) -> float:
        """Share of the usable rows that the dear passes read; before that is decided, what is to be expected."""
        n_usable = max(self.score.rows.facts["n_usable"], 1)
        if self.artifact.is_complete:
            facts = self.artifact.facts
            return (facts["n_kept"] + facts["n_sampled"]) / n_usable
        n_kept = min(self._wanted, n_usable)
        return (n_kept + min(self._n_sampled(n_usable - n_kept), n_usable - n_kept)) / n_usable

    def refuse_small(self) -> None:
        """Raises `ConfigError` if what can be left is fewer rows than a budget; the pool must have been read."""
        self._refuse(min(self._wanted, self.score.rows.facts["n_usable"]), {})

    @property
    def _wanted(self) -> int:
        """Rows of the share; as of a budget, it is one of the pool."""
        return rows_of(self.narrowing.share, self.score.n_pool)

    def _refuse(self, n_kept: int, kept_tokens: Mapping[str, int]) -> None:
        pool, n_pool = self.score.rows.facts, self.score.n_pool
        for budget in self.budgets:
            amount = parse_budget(budget)
            if amount.unit == "rows":
                asked, left, there = rows_for_budget(budget, pool, n_pool), n_kept, n_pool
            elif not kept_tokens:
                continue  # Known once the rows are.
            else:
                name = COLUMNS[amount.unit]
                asked, left, there = int(amount.number), kept_tokens[name], pool[name]
            if asked > left:
                percent = math.ceil(1000 * asked / there) / 10
                raise ConfigError(
                    f"the budget {budget!r} asks for {asked:,} {amount.unit}, but --prefilter {self.narrowing.text} "
                    f"leaves {left:,} of the pool's {there:,} to {', '.join(self.narrowed)}; use a prefilter of at "
                    f"least {percent:g}%, better several times that, or a budget of at most {left:,}."
                )

    def _make(self) -> None:
        pool = ScoredPool(self.score)
        if not len(pool.best):
            raise DataError(f"--prefilter {self.narrowing.text} gives no row of the pool a score.")
        order = np.fromiter(RoundRobin().order(pool), dtype=np.intp)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(1, len(order) + 1)
        n_kept = min(self._wanted, len(order))
        fate = np.where(place <= n_kept, 0, 2).astype(np.int8)
        rest = np.flatnonzero(fate)
        fate[self._drawn(pool, rest)] = 1
        self._write_places(pool, place, fate)
        n_lost, kept_tokens, tokens = self._write_shards(fate)
        self.artifact.complete(
            n_shards=len(tokens),
            n_placed=len(order),
            n_kept=n_kept,
            n_left_out=len(rest),
            n_sampled=int((fate == 1).sum()),
            n_lost=n_lost,
            kept_tokens=kept_tokens,
            n_tokens=sum(tokens),
            tokens_of_shards=tokens,
        )

    def _drawn(self, pool: ScoredPool, rest: NDArray[np.intp]) -> NDArray[np.intp]:
        """Positions of the sample. The draw belongs to a row's id, so that the order of the pool does not matter."""
        draws = [
            uniforms(fingerprints(batch.column(0).to_pylist()), self.seed, Stream.CASCADE_SAMPLE)
            for batch in read_batches(pool.path, ["id"])
        ]
        return rest[np.argsort(np.concatenate(draws)[rest], kind="stable")[: self._n_sampled(len(rest))]]

    def _n_sampled(self, n_rest: int) -> int:
        """Rows to draw of those that are left out, if there are as many."""
        wanted = self.narrowing.n_sampled
        return max(LEAST_SAMPLED, rows_of(SAMPLED_SHARE, n_rest)) if wanted is None else wanted

    def _write_places(self, pool: ScoredPool, place: NDArray[np.int64], fate: NDArray[np.int8]) -> None:
        """The order of the pool for people: every row that has a place."""
        names = pa.array(FATES, type=pa.string())
        columns, start = ["id", "source", "row", "score", "best_target"], 0
        schema = pa.schema(
            {
                **dict.fromkeys(("id", "source"), pa.string()),
                "row": pa.int64(),
                "score": pa.float64(),
                "best_target": pa.string(),
                "place": pa.int64(),
                "fate": pa.string(),
            }
        )
        with table_writer(self.artifact / PLACED, schema) as writer:
            for batch in read_batches(pool.path, columns):
                part = slice(start, start + len(batch))
                table = pa.Table.from_batches([batch]).select(columns)
                table = table.append_column("place", pa.array(place[part]))
                table = table.append_column("fate", names.take(pa.array(fate[part])))
                writer.write_table(table.cast(schema))
                start += len(batch)

    def _write_shards(self, fate: NDArray[np.int8]) -> tuple[int, dict[str, int], list[int]]:
        """What passes are told; the number of rows without a place, the tokens of the kept rows, as budgets count them,
        and the tokens to read in each shard."""
        scored = read_table(self.score.artifact / SCORES, ["row", *COLUMNS.values()])
        kept_tokens = {name: int(scored[name].to_numpy()[fate == 0].sum()) for name in COLUMNS.values()}
        rows, lengths = scored["row"].to_numpy(), scored["n_tokens"].to_numpy()
        reasons = {one["row"]: one["reason"] for one in read_json_lines(self.score.artifact / QUARANTINE)}
        n_lost, tokens = 0, []
        for shard in range(self.score.rows.n_shards):
            usable = self.score.rows.table(shard, ["row"])["row"].to_numpy()
            here = slice(*np.searchsorted(rows, [usable.min(initial=0), usable.max(initial=-1) + 1]))
            read = fate[here] < 2
            lost = np.setdiff1d(usable, rows[here])
            n_lost += len(lost)
            tokens.append(int(lengths[here][read].sum()))
            write_table(
                self.artifact.shard(shard), self._choice(rows[here][read], fate[here][read] == 1, lost, reasons)
            )
        return n_lost, kept_tokens, tokens

    def _choice(
        self, rows: NDArray[np.int64], sampled: NDArray[np.bool_], lost: NDArray[np.int64], reasons: dict[int, str]
    ) -> pa.Table:
        """See `Rows.choice`."""
        why = [f"the prefilter {self.narrowing.representation.title}: {reasons[row]}" for row in lost.tolist()]
        table = pa.table(
            {
                "row": pa.array(np.concatenate([rows, lost]), type=pa.int64()),
                "sampled": pa.array(np.concatenate([sampled, np.zeros(len(lost), dtype=np.bool_)])),
                "reason": pa.array([None] * len(rows) + why, type=pa.string()),
            }
        )
        return table.sort_by("row")

    def described(self) -> dict[str, Any]:
        """What was left of the pool, as JSON."""
        facts = self.artifact.facts
        counts = {name: facts[f"n_{name}"] for name in ("placed", "kept", "left_out", "sampled")}
        return {
            "representation": self.narrowing.text.rpartition(":")[0],
            "title": self.narrowing.representation.title,
            "share": self.narrowing.share,
            "narrowed": list(self.narrowed),
            "artifact": self.artifact.folder.name,
            **counts,
        }

    def told(self) -> str:
        """What was left of the pool, as a sentence."""
        facts = self.artifact.facts
        kept = f"{facts['n_kept']:,} of {facts['n_placed']:,} rows are left to {', '.join(self.narrowed)}"
        title = self.narrowing.representation.title
        if not facts["n_left_out"]:
            return f"Prefilter {title}: all {kept}."
        sample = f"{facts['n_sampled']:,} of the {facts['n_left_out']:,} others are scored to measure what is lost"
        return f"Prefilter {title}: {kept}; {sample}."


def measured_loss(score: Score, n_selected: int) -> Interval | None:
    """Share of the `n_selected` best rows of the pool by a method that its prefilter left out, with its interval.

    None without a prefilter, or where it has no sample.
    """
    if score.prefilter is None or not n_selected:
        return None
    facts = score.prefilter.artifact.facts
    found = read_table(score.artifact / SAMPLED, ["score"])["score"].to_numpy()
    sampled = np.full(facts["n_sampled"], -np.inf)
    sampled[: len(found)] = found
    return lost_share(ScoredPool(score).best, sampled, n_rest=facts["n_left_out"], n_selected=n_selected)


def loss_described(score: Score, n_selected: int) -> dict[str, Any] | None:
    """The measured loss as JSON."""
    if (lost := measured_loss(score, n_selected)) is None:
        return None
    return {"share": lost.mean, "low": lost.low, "high": lost.high, "level": LEVEL, "of_best_rows": n_selected}


def loss_told(score: Score, n_selected: int) -> str:
    """The measured loss as a sentence; empty if there is no prefilter."""
    if score.prefilter is None:
        return ""
    title, cheap = score.representation.title, score.prefilter.narrowing.representation.title
    if (lost := loss_described(score, n_selected)) is None:
        return f"What prefilter {cheap} lost for {title} is not known: no row that it left out was scored."
    n_sampled = score.prefilter.artifact.facts["n_sampled"]
    return (
        f"Prefilter {cheap}: it left out about {lost['share']:.1%} of the pool's {n_selected:,} best rows by {title} "
        f"({lost['level']:.0%} interval {lost['low']:.1%} to {lost['high']:.1%}, measured on {n_sampled:,} rows)."
    )
