"""Why a row was selected, or was not: for the page, the terminal and the Python API, from a finished run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gistselect.data.stored import normalised, record_from_json
from gistselect.errors import ArtifactMismatchError, ConfigError
from gistselect.files import read_json_lines
from gistselect.report.facts import Nearest, Reasons, Status, Turn
from gistselect.report.inert import visible
from gistselect.report.terminal import reason_lines
from gistselect.representations.bm25 import words
from gistselect.representations.interface import Representation
from gistselect.run import ingest
from gistselect.run.cells import Cell, load_fit
from gistselect.run.choosing import COLUMNS, REFUSED, SELECTION
from gistselect.run.finished import FinishedMethod, FinishedRun, turns_of
from gistselect.run.left_out import LeftOut
from gistselect.run.passes import read_features
from gistselect.run.remember import recall
from gistselect.run.scoring import QUARANTINE, SCORE, target_name
from gistselect.run.store import read_batches, read_names, read_table
from gistselect.types import Record

BORDERLINE_SHARE, BORDERLINE_LEAST = 0.1, 20
"""Rows that nearly made it: this share of the selection, and at least so many."""
SHARED_WORDS = "words in common, rare ones counting more"
COSINE = "cosine of their features"


def borderline_rows(n_selected: int) -> int:
    """How many rows next in line are called borderline."""
    return max(BORDERLINE_LEAST, round(BORDERLINE_SHARE * n_selected))


class Explainer:
    """Answers for the rows of a finished run; tables are read once."""

    def __init__(self, run: FinishedRun) -> None:
        self.run = run
        self.main = run.methods[0]

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """(n_scored,) pool row of each place of the table of scores, ascending."""
        return read_table(self.main.score_file, ["row"])["row"].to_numpy()

    @cached_property
    def selected(self) -> NDArray[np.bool_]:
        """(n_scored,) whether a row was selected."""
        return np.isin(self.rows, read_table(self.main.selection_file, ["row"])["row"].to_numpy())

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """(n_scored,) place of each row by its score, from 1; equal scores in the order of the pool."""
        return ranks(read_table(self.main.score_file, ["score"])["score"].to_numpy())

    @cached_property
    def _stability(self) -> dict[int, float]:
        return self.main.stability_of_rows

    @cached_property
    def borderline(self) -> NDArray[np.bool_]:
        """(n_scored,) the best of those that were not selected."""
        left = np.flatnonzero(~self.selected)
        nearest = left[np.argsort(self.ranks[left])][: borderline_rows(int(self.selected.sum()))]
        found = np.zeros(len(self.rows), dtype=np.bool_)
        found[nearest] = True
        return found

    @cached_property
    def refused(self) -> dict[int, str]:
        """Pool row → the constraint that refused it."""
        selection = self.main.selection
        if selection is None or not (selection / REFUSED).is_file():
            return {}
        table = read_table(selection / REFUSED)
        return dict(zip(table["row"].to_pylist(), table["reason"].to_pylist(), strict=True))

    @cached_property
    def quarantined(self) -> list[dict[str, Any]]:
        """id, source, row, reason of every row without a score."""
        return read_json_lines(self.main.quarantine_file)

    @cached_property
    def left_out(self) -> LeftOut:
        """The rows that a prefilter left out."""
        return LeftOut(self.run)

    @cached_property
    def _others(self) -> list[tuple[str, NDArray[np.int64], NDArray[np.int64]]]:
        """Title, rows and ranks of each other representation."""
        found = []
        for method in self.run.methods[1:]:
            table = read_table(method.score_file, ["row", "score"])
            found.append((method.label, table["row"].to_numpy(), ranks(table["score"].to_numpy())))
        return found

    @property
    def missing(self) -> Iterator[str]:
        """What can no longer be told, since the run folder was cleaned; a sentence each."""
        if not self.run.records.artifact.is_complete:
            yield "The pool's texts are no longer stored, so rows are shown without them."
        stored = (artifact for column in self.main.columns.values() for entry in column for artifact in entry)
        if not all(artifact.is_complete for artifact in stored):
            yield "Features of rows are no longer stored, so nearest queries are told by words in common."

    def find(self, *, id: str | None = None, row: int | None = None) -> Reasons:
        """The reasons of one row of the pool. Raises `ConfigError` if there is none of that id or number."""
        if row is None:
            ids = read_table(self.main.score_file, ["id"])["id"]
            at = pc.index(ids, pa.scalar(id, pa.string())).as_py()  # pyright: ignore[reportAttributeAccessIssue]
            if at >= 0:
                return self.scored([at])[0]
        else:
            at = int(np.searchsorted(self.rows, row))
            if at < len(self.rows) and self.rows[at] == row:
                return self.scored([at])[0]
        for place, entry in enumerate(self.quarantined):
            if entry["row"] == row or (row is None and entry["id"] == id):
                return self.lost([place])[0]
        if (left := self.left_out.find(id=id, row=row)) is not None:
            return self.prefiltered([left])[0]
        asked = f"id {id!r}" if row is None else f"number {row}"
        raise ConfigError(
            f"{self.run.folder} has no row with {asked}; ids and numbers stand in scores.parquet and quarantine.jsonl."
        )

    def scored(self, places: Sequence[int]) -> list[Reasons]:
        """The reasons of rows of the table of scores, by their places in it, ascending."""
        at = np.asarray(places, dtype=np.intp)
        entries = taken(self.main.score_file, at).to_pylist()
        texts = self._texts([entry["row"] for entry in entries])
        nearest = self._nearest(entries, texts)
        return [
            self._reasons(entry, place, near, texts.get(entry["row"], ()))
            for entry, place, near in zip(entries, at.tolist(), nearest, strict=True)
        ]

    def lost(self, places: Sequence[int]) -> list[Reasons]:
        """The reasons of quarantined rows, by their places in the quarantine."""
        return self._unscored([self.quarantined[place] for place in places], "quarantined")

    def prefiltered(self, entries: Sequence[dict[str, Any]]) -> list[Reasons]:
        """The reasons of rows that the prefilter left out."""
        return self._unscored(entries, "prefiltered")

    def _unscored(self, entries: Sequence[dict[str, Any]], status: Status) -> list[Reasons]:
        texts = self._texts([entry["row"] for entry in entries])
        return [Reasons(status=status, turns=texts.get(entry["row"], ()), **entry) for entry in entries]

    def lines(self, reasons: Reasons, *, whole: bool = False) -> Iterator[str]:
        """Reasons as people read them; with `whole` no text is shortened."""
        chosen = read_table(self.main.selection_file, ["score"])["score"].to_numpy()
        return reason_lines(
            reasons,
            self.run.queries,
            n_scored=len(self.rows),
            n_selected=len(chosen),
            threshold=float(chosen.min()),
            whole=whole,
        )

    def _reasons(self, entry: dict[str, Any], place: int, near: Nearest | None, turns: tuple[Turn, ...]) -> Reasons:
        identity = {name: entry[name] for name in COLUMNS}
        measured = {
            name: float(value)
            for name, value in entry.items()
            if name not in identity and not name.startswith(SCORE) and isinstance(value, int | float)
        }
        if (stability := self._stability.get(entry["row"])) is not None:
            measured["stability"] = stability
        elsewhere = {}
        for label, rows, ranked in self._others:
            at = int(np.searchsorted(rows, entry["row"]))
            if at < len(rows) and rows[at] == entry["row"]:
                elsewhere[label] = int(ranked[at])
        return Reasons(
            **identity,
            status="selected" if self.selected[place] else "borderline" if self.borderline[place] else "rejected",
            reason=f"refused: {self.refused[entry['row']]}" if entry["row"] in self.refused else "",
            rank=int(self.ranks[place]),
            scores={name.removeprefix(SCORE): value for name, value in entry.items() if name.startswith(SCORE)},
            measured=measured,
            nearest=near,
            other_ranks=elsewhere,
            turns=turns,
        )

    def _texts(self, rows: Sequence[int]) -> dict[int, tuple[Turn, ...]]:
        """The conversations of pool rows; rows that are none, and those of a cleaned store, are left out."""
        records = self.run.records
        if not records.artifact.is_complete:
            return {}
        found: dict[int, tuple[Turn, ...]] = {}
        for shard, members in _by_shard(rows):
            table = read_table(records.artifact.shard(shard), ["row", "conversation"])
            here = table.filter(pa.array(np.isin(table["row"].to_numpy(), members)))
            for one in here.drop_null().to_pylist():
                record = Record(id="", source="", row=one["row"], **record_from_json(one["conversation"]))
                found[one["row"]] = turns_of({**normalised(record), "prefix": record.prefix})
        return found

    def _nearest(self, entries: Sequence[dict[str, Any]], texts: dict[int, tuple[Turn, ...]]) -> list[Nearest | None]:
        """The nearest query of each row's best target: by the features of the method, or else by words."""
        found: list[Nearest | None] = [None] * len(entries)
        for target in dict.fromkeys(query.target for query in self.run.queries):
            groups = {target_name(target, query.group) for query in self.run.queries if query.target == target}
            mine = [index for index, entry in enumerate(entries) if entry["best_target"] in groups]
            if mine:
                near = self._by_features(target, [entries[index] for index in mine])
                if near is None:
                    near = self._by_words(
                        target, [(entries[i]["best_target"], texts.get(entries[i]["row"], ())) for i in mine]
                    )
                for index, one in zip(mine, near, strict=True):
                    found[index] = one
        return found

    def _by_features(self, target: str, entries: Sequence[dict[str, Any]]) -> list[Nearest | None] | None:
        """None where the method's features say nothing of single queries, or are no longer there."""
        fit, cell = self.main.columns[target][0]
        if not fit.is_complete or not cell.is_complete:
            return None
        fitted, representation = load_fit(fit), self._representation(self.main)
        found: list[Nearest | None] = []
        by_row = {entry["row"]: entry for entry in entries}
        for shard, rows in _by_shard(list(by_row)):
            there = Cell(representation=representation, checkpoint=None, fit=None, features=cell, measured=None)
            values = representation.nearness(read_features(there, shard, np.asarray(rows)), fitted)
            if values is None:
                return None
            for row, cosines in zip(rows, values, strict=True):
                allowed = self._allowed(target, by_row[row]["best_target"], len(cosines))
                best = int(np.argmax(np.where(allowed, cosines, -np.inf)))
                found.append(Nearest(query=self._first(target) + best, value=float(cosines[best]), how=COSINE))
        order = {row: place for place, row in enumerate(row for _, rows in _by_shard(list(by_row)) for row in rows)}
        return [found[order[entry["row"]]] for entry in entries]

    def _by_words(self, target: str, rows: Sequence[tuple[str, tuple[Turn, ...]]]) -> list[Nearest | None]:
        first, asked = self._first(target), [query for query in self.run.queries if query.target == target]
        said = [_words(query.turns) for query in asked]
        holding: dict[str, int] = {}
        for word in itertools.chain.from_iterable(said):
            holding[word] = holding.get(word, 0) + 1
        weight = {word: float(np.log1p(len(said) / count)) for word, count in holding.items()}
        found: list[Nearest | None] = []
        for best_target, turns in rows:
            mine = _words(turns)
            allowed = self._allowed(target, best_target, len(asked))
            shared = [
                sum(weight[word] for word in mine & one) if ok else -1 for one, ok in zip(said, allowed, strict=True)
            ]
            best = int(np.argmax(shared))
            found.append(
                Nearest(query=first + best, value=shared[best], how=SHARED_WORDS) if shared[best] > 0 else None
            )
        return found

    def _first(self, target: str) -> int:
        return next(place for place, query in enumerate(self.run.queries) if query.target == target)

    def _allowed(self, target: str, best_target: str, n_queries: int) -> NDArray[np.bool_]:
        """(n_query,) which queries of a target belong to the group that the row is best for."""
        mine = [query.group for query in self.run.queries if query.target == target]
        if len(mine) != n_queries:
            raise ArtifactMismatchError(f"{self.run.folder}: the queries are not those of the features; select again.")
        return np.array([target_name(target, group) == best_target for group in mine])

    def _representation(self, method: FinishedMethod) -> Representation:
        return recall(self.run.folder).representations[method.label]


def explained(folder: Path, *, id: str | None, row: int | None, whole: bool = False) -> Iterator[str]:
    """The reasons of one row as lines. Raises `ConfigError` unless it is named by id or number, and is there."""
    if (id is None) == (row is None):
        raise ConfigError("name the row by --id or by --row.")
    run = FinishedRun.open(folder)
    if not run.methods:
        yield from _of_selection(run, id=id, row=row)
        return
    explainer = Explainer(run)
    yield from explainer.lines(explainer.find(id=id, row=row), whole=whole)
    yield from explainer.missing


def _of_selection(run: FinishedRun, *, id: str | None, row: int | None) -> Iterator[str]:
    """What is known of a row where scores are no longer stored."""
    lacking = f"The scores are no longer stored; 'gistselect run --output {run.folder}' makes them anew."
    chosen = read_table(run.folder / SELECTION)
    for entry in chosen.to_pylist():
        if entry["row"] == row or (row is None and entry["id"] == id):
            yield f"Row {entry['row']} ({visible(entry['id'])}) of {visible(entry['source'])}: selected."
            yield f"  score {entry['score']:.4f}, rank {entry['rank']:,} of the {chosen.num_rows:,} selected"
            yield f"  best target: {visible(entry['best_target'])}"
            break
    else:
        for entry in read_json_lines(run.folder / QUARANTINE):
            if entry["row"] == row or (row is None and entry["id"] == id):
                yield f"Row {entry['row']} ({visible(entry['id'])}): quarantined, {visible(entry['reason'])}"
                break
        else:
            yield "It is neither among the selected nor among the quarantined rows."
    yield lacking


def taken(path: Path, places: NDArray[np.intp]) -> pa.Table:
    """The rows of a table at these places, ascending; it is read a piece at a time."""
    pieces, start = [], 0
    for batch in read_batches(path, read_names(path)):
        low, high = np.searchsorted(places, [start, start + len(batch)])
        if low < high:
            pieces.append(pa.Table.from_batches([batch]).take(pa.array(places[low:high] - start)))
        start += len(batch)
    return pa.concat_tables(pieces) if pieces else read_table(path).slice(0, 0)


def ranks(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """(n,) places by score, the highest first, from 1."""
    places = np.empty(len(scores), dtype=np.int64)
    places[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return places


def _words(turns: Sequence[Turn]) -> set[str]:
    return {word for _, text in turns for word in words(text)}


def _by_shard(rows: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """The rows of each shard, ascending."""
    for shard, members in itertools.groupby(sorted(rows), lambda row: row // ingest.SHARD_ROWS):
        yield shard, list(members)
