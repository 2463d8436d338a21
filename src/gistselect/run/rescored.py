"""The scores that the rows of a pool would have had with other queries, from what a pass has kept of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gistselect.linalg.bootstrap import Mixture, drawn_counts
from gistselect.representations.interface import Features, Fitted, Queries
from gistselect.run.cells import Cell, Column, load_fit
from gistselect.run.passes import read_features
from gistselect.run.scored import ScoredPool, by_shard
from gistselect.run.scoring import Score
from gistselect.selection.selector import Blocks, FloatArray
from gistselect.streams import Stream, generator


class Rescored:
    """Scores of one method in each draw of its targets' queries, a shard at a time.

    In single precision, so that the order of a sum decides no tie: rows with the same features are equal.
    """

    def __init__(self, score: Score, draws: int, seed: int) -> None:
        self.pool = ScoredPool(score)
        self._score, self._weights = score, score.weights()
        self._targets = [_Drawn(column, draws, seed) for column in score.columns]

    @property
    def width(self) -> int:
        """Score columns: the groups of all targets."""
        return sum(len(target.fits[0].groups) for target in self._targets)

    def best(self, draws: slice) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Best scores (n, n_draws) of rows over all columns, shard by shard with the position of the first row."""
        start = 0
        for shard, rows in by_shard(self.pool.rows):
            total = np.full((len(rows), draws.stop - draws.start), -np.inf)
            for scores in self._columns(shard, rows, draws):
                np.maximum(total, scores, out=total)
            yield start, total.astype(np.float32)
            start += len(rows)

    def every(self, draws: slice) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Scores (n_draws, n, width) of rows, as `best`."""
        start = 0
        for shard, rows in by_shard(self.pool.rows):
            found = np.empty((draws.stop - draws.start, len(rows), self.width), dtype=np.float32)
            for index, scores in enumerate(self._columns(shard, rows, draws)):
                found[:, :, index] = scores.T
            yield start, found
            start += len(rows)

    def _columns(self, shard: int, rows: NDArray[np.int64], draws: slice) -> Iterator[FloatArray]:
        """Scores (n, n_draws) of the rows of a shard for one column after the other."""
        representation, kept = self._score.representation, dict[str, Features]()
        for target in self._targets:
            mixtures = target.mixtures(draws)
            prepared = []
            for cell, fit, mixture in zip(target.cells, target.fits, mixtures, strict=True):
                key = cell.features.key
                if key not in kept:
                    kept[key] = read_features(cell, shard, rows)
                prepared.append(mixture.prepared(representation.directed(kept[key], fit)))
            for group in range(len(target.fits[0].groups)):
                parts = (one.scores(made, group) for one, made in zip(mixtures, prepared, strict=True))
                yield sum(weight * part for weight, part in zip(self._weights, parts, strict=True))  # pyright: ignore[reportReturnType]


class _Drawn:
    """One target: at each checkpoint its cell, its fit, and what stands for its groups in each draw."""

    def __init__(self, column: Column, draws: int, seed: int) -> None:
        """The same queries are drawn at every checkpoint, whatever other targets there are."""
        queries = column.entries[0][0].queries
        counts = counts_of(queries, draws, seed)
        self.cells: list[Cell] = [cell for _, cell in column.entries]
        self.fits: list[Fitted] = [load_fit(fit.artifact) for fit, _ in column.entries]
        found = (column.representation.resampled(fit, queries.group_of, counts) for fit in self.fits)
        self._mixtures = [one for one in found if one is not None]
        self._last: tuple[slice, list[Mixture]] | None = None

    def mixtures(self, draws: slice) -> list[Mixture]:
        """Of these draws; those asked for last are kept."""
        if self._last is None or self._last[0] != draws:
            self._last = (draws, [one.of(draws) for one in self._mixtures])
        return self._last[1]


def counts_of(queries: Queries, draws: int, seed: int) -> NDArray[np.intp]:
    """How often each query is drawn (n_draws, n_query), with replacement within its group."""
    numbers = queries.column_numbers.view(np.uint64).tolist()
    return drawn_counts(
        queries.group_of, draws, [generator(seed, Stream.QUERY_BOOTSTRAP, number) for number in numbers]
    )


class DrawnPool(ScoredPool):
    """The scored rows as selectors that read single columns see them in one draw."""

    def __init__(self, score: Score, rescored: Rescored) -> None:
        super().__init__(score)
        self._rescored = rescored
        self._draw, self._held = 0, None

    def turn_to(self, draw: int, held: NDArray[np.float32] | None) -> None:
        """Show this draw from now on; its scores (n, width) are computed whenever they are asked for unless `held`."""
        self._draw, self._held = draw, held

    def expect(self, positions: NDArray[np.intp]) -> None:
        """Nothing is read of rows that are only counted."""

    def scores(self) -> Blocks:
        if self._held is not None:
            for start in range(0, len(self._held), 1 << 16):
                yield start, self._held[start : start + (1 << 16)].astype(np.float64)
            return
        for start, block in self._rescored.every(slice(self._draw, self._draw + 1)):
            yield start, block[0].astype(np.float64)

    @property
    def best(self) -> FloatArray:
        return np.concatenate([block.max(axis=1) for _, block in self.scores()])

    def column(self, target: str) -> FloatArray:
        index = self.targets.index(target)
        return np.concatenate([block[:, index] for _, block in self.scores()])
