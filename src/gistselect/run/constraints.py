"""The budget and the gates of one selection, from its options and the table of scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gistselect.data.overlap import HASHES, NearDuplicates
from gistselect.errors import ConfigError
from gistselect.run.ingest import Rows
from gistselect.run.scored import ScoredPool
from gistselect.run.store import read_names
from gistselect.run.texts import TextPass
from gistselect.selection.budget import COLUMNS, Unit, no_tokens, parse_budget, refuse_beyond, rows_for_budget
from gistselect.selection.gates import Apart, Chosen, Distinct, Gate, Room, SourceLeast, SourceMost
from gistselect.selection.limits import Limits
from gistselect.selection.options import SelectionOptions

AHEAD, PIECES = 1 << 16, 4
"""Rows whose signatures are read together, and how many such pieces are held (34 MB each)."""


def refuse_impossible(options: SelectionOptions, rows: Rows) -> None:
    """Raises `ConfigError` for a budget or limits that the usable rows cannot meet, before any score is made."""
    facts = rows.facts
    amount = parse_budget(options.budget)
    n_rows = rows_for_budget(options.budget, facts, facts["n_usable"])
    if not options.source_max and not options.source_min:
        return
    column = COLUMNS.get(amount.unit)
    table = rows.columns(["source", *([column] if column else [])])
    if column is None:
        table = table.append_column("rows", pa.array(np.ones(table.num_rows, dtype=np.int64)))
    sums = table.group_by("source").aggregate([(column or "rows", "sum")])
    there = dict(zip(sums["source"].to_pylist(), sums[f"{column or 'rows'}_sum"].to_pylist(), strict=True))
    total = int(amount.number) if column else n_rows
    Limits.of(options.most, options.least, there=there, total=total, unit=amount.unit)


class Constraints:
    """What the walk over the rows of one method is held to, and what came of it."""

    def __init__(
        self, options: SelectionOptions, scores: ScoredPool, texts: TextPass, *, pool: Mapping[str, Any], n_scored: int
    ) -> None:
        """`pool` are the facts of the whole pool.

        Raises `ConfigError` for a budget or limits that the scored rows cannot meet, and says by how much.
        """
        self._options, self._scores, self._n_scored = options, scores, n_scored
        self.unit: Unit = parse_budget(options.budget).unit
        costs = self._costs()
        if costs is None:
            self.total = rows_for_budget(options.budget, pool, n_scored)
        else:
            self.total = int(parse_budget(options.budget).number)
            refuse_beyond(options.budget, int(costs.sum()))
        self.room = Room(self.total, costs)
        self._limits = Limits(most={}, least={}, total=self.total, unit=self.unit)
        self._most: SourceMost | None = None
        self._least: SourceLeast | None = None
        self.gates = list(self._gates(costs, texts))

    def _costs(self) -> NDArray[np.integer] | None:
        """(n,) tokens of each row; None if the budget is in rows."""
        if self.unit == "rows":
            return None
        if COLUMNS[self.unit] not in read_names(self._scores.path):
            raise ConfigError(no_tokens(self._options.budget))
        return self._scores.numbers(COLUMNS[self.unit])

    def _gates(self, costs: NDArray[np.integer] | None, texts: TextPass) -> list[Gate]:
        """Those that know most first; what is kept for a source is asked last, of rows that could be taken."""
        options, gates = self._options, list[Gate]()
        if texts.sharing:
            gates.append(Apart(texts.shares(self._scores.rows)))
        if options.source_max or options.source_min:
            codes, names = self._scores.sources
            there = np.bincount(codes, weights=costs, minlength=len(names)).astype(np.int64).tolist()
            self._limits = Limits.of(
                options.most,
                options.least,
                there=dict(zip(names, there, strict=True)),
                total=self.total,
                unit=self.unit,
            )
            number = {name: code for code, name in enumerate(names)}
            most, least = (
                {number[name]: value for name, value in found.items()}
                for found in (self._limits.most, self._limits.least)
            )
            self._most, self._least = SourceMost(most, codes, self.room), SourceLeast(least, codes, self.room)
            gates.append(self._most)
        if texts.digests:
            groups = texts.groups(self._scores.rows)
            gates.append(Distinct(lambda position: None if groups[position] < 0 else int(groups[position]), _Numbers()))
        if texts.signatures:
            ahead = _Signatures(self._scores, texts)
            gates.append(Distinct(ahead.of, NearDuplicates(options.dedup_threshold)))
        return [*gates, self._least] if self._least is not None else gates

    def accounting(self, chosen: Chosen) -> dict[str, Any]:
        """What was taken and refused, as facts of the selection.

        Raises `ConfigError` that names each constraint that was not met, and by how much.
        """
        if problems := self._unmet(chosen) or self._not_full(chosen):
            raise ConfigError(" ".join(problems))
        facts: dict[str, Any] = {
            "unit": self.unit,
            "budget": self.total,
            "used": self.total - self.room.left,
            "n_looked_at": len(chosen.positions) + sum(chosen.dropped.values()),
            "refused": chosen.dropped,
        }
        names = read_names(self._scores.path)
        for name in COLUMNS.values():
            if name in names:
                facts[name] = int(self._scores.numbers(name)[chosen.positions].sum())
        if limited := dict.fromkeys([*self._limits.most, *self._limits.least]):
            codes, sources = self._scores.sources
            costs = None if self.unit == "rows" else self._scores.numbers(COLUMNS[self.unit])[chosen.positions]
            taken = np.bincount(codes[chosen.positions], weights=costs, minlength=len(sources))
            selected = dict(zip(sources, taken.astype(int).tolist(), strict=True))
            facts["limits"] = {
                source: {
                    "most": self._limits.most.get(source),
                    "least": self._limits.least.get(source),
                    "selected": selected[source],
                }
                for source in limited
            }
        return facts

    def _unmet(self, chosen: Chosen) -> list[str]:
        """A sentence for each source that did not get its least."""
        if self._least is None:
            return []
        codes, names = self._scores.sources
        said = []
        for code, missing in self._least.needed.items():
            if missing > 0:
                counts = {reason: int((codes[rows] == code).sum()) for reason, rows in chosen.refused.items()}
                refused = _refused(counts) or "the selector looked at no more of them"
                least = self._limits.least[names[code]]
                said.append(
                    f"Source {names[code]!r}: --source-min is missed by {missing:,} of {least:,} {self.unit}; of its "
                    f"{int((codes == code).sum()):,} rows with a score {refused}."
                )
        return said

    def _not_full(self, chosen: Chosen) -> list[str]:
        """Why the rows came to an end before the budget did, if they did."""
        if not len(chosen.positions):
            return [f"No row fits into the budget of {self.total:,} {self.unit}; raise it."]
        unused = sum(gate.unused for gate in (self._most, self._least) if gate is not None)
        if chosen.is_full or self.room.left <= unused:
            return []
        missing, taken = self.room.left, len(chosen.positions)
        refused = _refused(chosen.dropped)
        looked_at = taken + sum(chosen.dropped.values())
        if looked_at < self._n_scored:
            name = self._options.selector.split(":")[0]
            fewer = f"{missing:,} {self.unit} fewer" if self.unit != "rows" or refused else f"{missing:,} fewer"
            return [
                f"--selector {self._options.selector} looks at the {looked_at:,} best rows only, {fewer} than the "
                f"budget{f' ({refused})' if refused else ''}; give it more candidates ({name}:candidates=0.5)."
            ]
        return [
            f"The budget is missed by {missing:,} of {self.total:,} {self.unit}: of {self._n_scored:,} rows with a "
            f"score {taken:,} were taken. {refused or 'None were refused'}. Lower the budget, or refuse less."
        ]


def _refused(counts: Mapping[str, int]) -> str:
    """How many rows were refused, by reason."""
    return "; ".join(f"{count:,} were refused: {reason}" for reason, count in counts.items() if count)


class _Numbers(set[int]):
    """Texts that were taken, by their number."""

    def holds(self, one: int) -> bool:
        return one in self


class _Signatures:
    """Signatures by position, read many at a time in the order in which the selector said that it would propose."""

    def __init__(self, scores: ScoredPool, texts: TextPass) -> None:
        self._scores, self._texts = scores, texts
        self._pieces: list[tuple[dict[int, int], NDArray[np.uint32]]] = []
        """Places by position, and signatures; the last read first."""
        self._alone = (-1, np.zeros(HASHES, dtype=np.uint32))

    def of(self, position: int) -> NDArray[np.uint32]:
        """(HASHES,)"""
        for places, values in self._pieces:
            if (place := places.get(position)) is not None:
                return values[place]
        if self._alone[0] == position:
            return self._alone[1]
        ahead = self._ahead(position)
        values = self._texts.signatures_of(self._scores.rows[ahead])
        if len(ahead) == 1:
            self._alone = position, values[0]
        else:
            self._pieces.insert(0, ({one: place for place, one in enumerate(ahead.tolist())}, values))
            del self._pieces[PIECES:]
        return values[0]

    def _ahead(self, position: int) -> NDArray[np.intp]:
        """This position, and those that are expected after it."""
        for expected in reversed(self._scores.expected):
            at = np.flatnonzero(expected == position)
            if len(at):
                ahead = expected[at[0] : at[0] + AHEAD]
                return ahead[np.sort(np.unique(ahead, return_index=True)[1])]
        return np.array([position])
