"""The scored rows of one method as selectors see them: columns of the table of scores, and features by position."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gistselect.linalg.similarity import units
from gistselect.representations.interface import Features, Fitted
from gistselect.run import ingest
from gistselect.run.cells import Cell, load_fit
from gistselect.run.passes import read_features
from gistselect.run.scoring import SCORE, SCORES, Score
from gistselect.run.store import read_batches, read_table
from gistselect.selection.selector import Blocks, FloatArray, Space


class ScoredPool:
    """A table of scores on disk, and the features behind it. In memory: 8 bytes a row, and the ids of ties."""

    def __init__(self, score: Score) -> None:
        self._score = score
        self.path = score.artifact / SCORES
        self.expected: list[NDArray[np.intp]] = []

    @property
    def best(self) -> FloatArray:
        """(n,) best score of each row over targets."""
        return self.numbers("score")

    @property
    def targets(self) -> Sequence[str]:
        """The score columns, in the order of targets and groups."""
        return self._score.artifact.facts["targets"]

    def column(self, target: str) -> FloatArray:
        """(n,) scores for one target."""
        return self.numbers(SCORE + target)

    def scores(self) -> Blocks:
        """(n, n_target) scores, some 65,536 rows at a time."""
        start = 0
        for batch in read_batches(self.path, [SCORE + target for target in self.targets]):
            yield start, np.stack([column.to_numpy() for column in batch.columns], axis=1)
            start += len(batch)

    def numbers(self, name: str) -> NDArray[Any]:
        """(n,) a column of numbers."""
        batches = [batch.column(0).to_numpy() for batch in read_batches(self.path, [name])]
        return np.concatenate(batches) if batches else np.zeros(0)

    @cached_property
    def sources(self) -> tuple[NDArray[np.int32], list[str]]:
        """(n,) a number for each row's source, and the sources by number."""
        codes: list[NDArray[np.int32]] = []
        names: dict[str, int] = {}
        for batch in read_batches(self.path, ["source"]):
            encoded = batch.column(0).dictionary_encode()
            number = [names.setdefault(name, len(names)) for name in encoded.dictionary.to_pylist()]
            codes.append(np.asarray(number, dtype=np.int32)[encoded.indices.to_numpy()])
        return np.concatenate(codes) if codes else np.zeros(0, dtype=np.int32), list(names)

    def ids(self, positions: NDArray[np.intp]) -> list[str]:
        """Ids of the rows at these positions, ascending."""
        return self.take(["id"], positions)["id"].to_pylist()

    def id_ranks(self) -> NDArray[np.integer]:
        """(n,) place of each row among all, sorted by id: by code points, as Python sorts text."""
        return self._id_ranks

    @cached_property
    def _id_ranks(self) -> NDArray[np.integer]:
        return id_ranks(self.path)

    def take(self, columns: Sequence[str], positions: NDArray[np.intp]) -> pa.Table:
        """These columns of the rows at these positions, ascending; the table is read a piece at a time."""
        pieces, start = [], 0
        for batch in read_batches(self.path, list(columns)):
            low, high = np.searchsorted(positions, [start, start + len(batch)])
            if low < high:
                pieces.append(pa.Table.from_batches([batch]).take(pa.array(positions[low:high] - start)))
            start += len(batch)
        return pa.concat_tables(pieces) if pieces else read_table(self.path, list(columns)).slice(0, 0)

    def expect(self, positions: NDArray[np.intp]) -> None:
        """These rows will probably be proposed, in this order."""
        self.expected.append(positions)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """(n,) pool rows of the positions."""
        return self.numbers("row")

    @cached_property
    def _places(self) -> list[_Place]:
        """Each space's cell, fit and queries; targets that share a space are one."""
        representation = self._score.representation
        if not representation.has_points:
            return []
        found: dict[tuple[int, str], _Place] = {}
        weights = self._score.weights()
        for column in self._score.columns:
            for index, (fit, cell) in enumerate(column.entries):
                key = (index, fit.artifact.key if representation.own_space else cell.features.key)
                found.setdefault(key, _Place(cell, float(weights[index]))).add(load_fit(fit.artifact))
        per_checkpoint = len(found) / len(weights)
        for place in found.values():
            place.weight /= per_checkpoint
        return list(found.values())

    @property
    def spaces(self) -> Sequence[Space]:
        """Of each space the queries, target by target. One space a target and checkpoint for GIST, one a checkpoint
        for methods that keep the same for all targets."""
        return [Space(queries=np.concatenate(place.queries), weight=place.weight) for place in self._places]

    def points(self, positions: NDArray[np.intp]) -> list[NDArray[np.floating]]:
        """Of each space the features (k, d) of the rows at these positions, read a shard at a time."""
        order = np.argsort(positions, kind="stable")
        rows = self.rows[positions[order]]
        found: list[NDArray[np.floating]] = []
        for place in self._places:
            pieces = [
                self._score.representation.points(read_features(place.cell, shard, part), place.fits[0])
                for shard, part in by_shard(rows)
            ]
            ascending = np.concatenate(pieces) if pieces else np.zeros((0, place.queries[0].shape[1]))
            values = np.empty_like(ascending)
            values[order] = ascending
            found.append(values)
        return found

    def query_scores(self) -> Blocks:
        """(n, n_query) cosines of rows with each query, target by target, weighted over checkpoints."""
        representation, weights = self._score.representation, self._score.weights()
        start = 0
        columns = [
            [
                (cell, fit, units(fit.arrays["query_features"]))
                for fit, cell in ((load_fit(one.artifact), cell) for one, cell in column.entries)
            ]
            for column in self._score.columns
        ]
        for shard, rows in by_shard(self.rows):
            kept: dict[str, Features] = {}
            blocks = []
            for entries in columns:
                total = np.zeros((len(rows), len(entries[0][2])))
                for weight, (cell, fit, queries) in zip(weights, entries, strict=True):
                    key = cell.features.key
                    kept[key] = kept.get(key) or read_features(cell, shard, rows)
                    total += weight * (units(representation.points(kept[key], fit)) @ queries.T)
                blocks.append(total)
            yield start, np.concatenate(blocks, axis=1)
            start += len(rows)


class _Place:
    """Where the points of a space are kept."""

    def __init__(self, cell: Cell, weight: float) -> None:
        self.cell, self.weight = cell, weight
        self.fits: list[Fitted] = []

    def add(self, fitted: Fitted) -> None:
        """A target whose queries lie in this space."""
        self.fits.append(fitted)

    @property
    def queries(self) -> list[FloatArray]:
        """(n_query, d) of each target."""
        return [fit.arrays["query_features"].astype(np.float64) for fit in self.fits]


def id_ranks(path: Path) -> NDArray[np.integer]:
    """(n,) place of each row of a table among all, sorted by its column `id`; from 1."""
    ids = read_table(path, ["id"])["id"].cast(pa.large_binary())  # UTF-8 sorts as code points do.
    return pc.call_function("rank", [ids], pc.RankOptions(tiebreaker="first")).to_numpy()


def by_shard(rows: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """Ascending pool rows, shard by shard."""
    shards = rows // ingest.SHARD_ROWS
    numbers, starts = np.unique(shards, return_index=True)
    return list(zip(numbers.tolist(), np.split(rows, starts[1:]), strict=True))
