"""Stability: how often each selected row stays selected when the queries of the targets are drawn anew.

A bootstrap over queries within their groups, from what the pass over the pool has kept: no gradient is taken again.
Some methods keep too little for it in their scores, and so more beside them (`run/apart.py`).
What the queries determine beside the direction of their group is held fixed: for GIST the subspace itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gistselect.report.alerts import UNSTABLE
from gistselect.run.apart import none_to_draw, too_many
from gistselect.run.cells import Column
from gistselect.run.choosing import SELECTION, Select
from gistselect.run.progress import Reporter
from gistselect.run.rescored import DrawnPool, Rescored
from gistselect.run.store import Artifact, Store, write_table
from gistselect.selection.gates import Room, choose
from gistselect.selection.orders import TopK
from gistselect.selection.selector import FloatArray, Selector

VERSION = 1
COLUMN = "stability"
HELD = 1 << 28
"""Bytes of scores held at a time; for draws that do not fit the kept features are read again."""


@dataclass(frozen=True, kw_only=True)
class Stability:
    """The selection of one method with a column more: in which share of the draws each row is selected."""

    select: Select
    draws: int
    seed: int
    most: int
    """Most numbers of a row and target that may be kept for this alone."""
    apart: tuple[Column, ...]
    """What is kept for this alone, target by target; empty where the features of the scores say all, or nothing."""
    artifact: Artifact
    name: ClassVar[str] = "stability"

    @classmethod
    def planned(
        cls, select: Select, apart: tuple[Column, ...], *, draws: int, most: int, seed: int, store: Store
    ) -> Stability:
        """The stage with its key, in which what is kept apart stands where a method has need of it."""
        beside = {}
        if select.score.representation.apart is not None:
            beside = {"apart": [[cell.features.key for _, cell in column.entries] for column in apart] or most}
        artifact = store.artifact("stability", VERSION, selection=select.artifact.key, draws=draws, seed=seed, **beside)
        return cls(select=select, draws=draws, seed=seed, most=most, apart=apart, artifact=artifact)

    def run(self, reporter: Reporter) -> None:
        """Write selection.parquet with the column into the artifact, or find that done.

        Nothing is written where what the pass kept was cleaned away: no pass is made for this alone.
        """
        reason = self._impossible
        if self.artifact.is_complete or not (reason or self._has_features):
            return
        self.artifact.begin()
        with self.artifact.timed():
            table = self.select.table
            shares = None if reason else self._shares(reporter)
            column = pa.nulls(table.num_rows, pa.float64()) if shares is None else pa.array(shares)
            write_table(self.artifact / SELECTION, table.append_column(COLUMN, column))
        facts: dict[str, Any] = {"draws": self.draws, "reason": reason, "selector": self._selector_name}
        if shares is not None:
            facts |= {"mean": float(shares.mean()), "n_unstable": int((shares < UNSTABLE).sum())}
        self.artifact.complete(**facts)

    @property
    def _impossible(self) -> str | None:
        """Why the method cannot say what other queries would have given; None if it can."""
        score = self.select.score
        if not score.representation.can_be_resampled:
            return score.representation.not_resampled
        queries = [column.entries[0][0].queries for column in score.columns]
        beside = too_many(score.representation, queries, self.draws, self.most) if score.representation.apart else None
        return none_to_draw(queries) or beside

    @property
    def _has_features(self) -> bool:
        entries = (entry for column in self.apart or self.select.score.columns for entry in column.entries)
        return all(fit.artifact.is_complete and cell.features.is_complete for fit, cell in entries)

    @property
    def _selector_name(self) -> str:
        return "top_k" if isinstance(self._selector, TopK) else self.select.options.selector

    @property
    def _selector(self) -> Selector:
        """The run's own where an order needs no more than scores; else the best scores stand in for it."""
        own = self.select.options.order
        return TopK() if own.needs_points else own

    @property
    def _size(self) -> int:
        """Rows that the selection went through: those that it took, and those that a constraint refused. A selected row
        stays where the order comes to it as early."""
        facts = self.select.artifact.facts
        return facts.get("accounting", {}).get("n_looked_at", facts["n_selected"])

    def _shares(self, reporter: Reporter) -> FloatArray:
        """(n_selected,) share of the draws in which each row is selected, in the order of the selection."""
        rescored = Rescored(self.select.score, self.apart, self.draws, self.seed)
        selected = self.select.table["row"].to_numpy()
        chosen = np.searchsorted(rescored.pool.rows, selected)
        one_column = isinstance(self._selector, TopK)
        of_a_draw = 4 * len(rescored.pool.rows) * (1 if one_column else rescored.width)
        together = max(1, HELD // of_a_draw)
        count = self._by_best if one_column else self._by_columns
        found = np.zeros(len(chosen))
        title = f"stability ({self.select.score.representation.title})"
        with reporter.step(title, total=self.draws, unit="draws") as step:
            for first in range(0, self.draws, together):
                draws = slice(first, min(first + together, self.draws))
                found += count(rescored, draws, chosen)
                step.advance(draws.stop - first)
        return found / self.draws

    def _by_best(self, rescored: Rescored, draws: slice, chosen: NDArray[np.intp]) -> NDArray[np.intp]:
        """(n_selected,) draws in which the row is among the best, by the lowest score that still is."""
        pool, size = rescored.pool, self._size
        best = np.empty((draws.stop - draws.start, len(pool.rows)), dtype=np.float32)
        for start, block in rescored.best(draws):
            best[:, start : start + len(block)] = block.T
        stays = np.zeros(len(chosen), dtype=np.intp)
        for scores in best:
            lowest = np.partition(scores, len(scores) - size)[len(scores) - size]
            inside, equal = scores > lowest, np.flatnonzero(scores == lowest)
            if len(equal) > (room := size - int(inside.sum())):
                equal = equal[np.argsort(pool.id_ranks()[equal])[:room]]
            inside[equal] = True
            stays += inside[chosen]
        return stays

    def _by_columns(self, rescored: Rescored, draws: slice, chosen: NDArray[np.intp]) -> NDArray[np.intp]:
        """As `_by_best`, for selectors that read the scores of single targets."""
        pool = DrawnPool(self.select.score, rescored)
        held = None
        if 4 * len(pool.rows) * rescored.width <= HELD:
            held = np.empty((draws.stop - draws.start, len(pool.rows), rescored.width), dtype=np.float32)
            for start, block in rescored.every(draws):
                held[:, start : start + block.shape[1]] = block
        stays = np.zeros(len(chosen), dtype=np.intp)
        for draw in range(draws.start, draws.stop):
            pool.turn_to(draw, None if held is None else held[draw - draws.start])
            taken = choose(self._selector.order(pool), Room(self._size), ()).positions
            stays += np.isin(chosen, taken)
        return stays

    @property
    def facts(self) -> dict[str, Any]:
        """`draws` and either `mean` and `n_unstable` or a `reason`, for the manifest."""
        return self.artifact.facts

    def told(self) -> str:
        """What came of it, in a sentence."""
        title = self.select.score.representation.title
        if not self.artifact.is_complete:
            return (
                f"The stability of {title} is not measured: what it takes of the rows is not stored, or no longer "
                "('gistselect features' makes it in a pass)."
            )
        facts = self.facts
        if facts["reason"]:
            return f"The stability of {title} is not measured: {facts['reason']}."
        own = self.select.options.selector
        by = "" if facts["selector"] == own else f" (by {facts['selector']}; {own} compares rows with each other)"
        return (
            f"Stability of {title}: over {facts['draws']:,} draws of the queries a selected row stays selected in "
            f"{facts['mean']:.0%} of them on average{by}; {facts['n_unstable']:,} of "
            f"{self.select.artifact.facts['n_selected']:,} rows in less than half."
        )
