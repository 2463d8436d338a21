"""The scores that the rows of a pool would have had with other queries, from what a pass has kept of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gistselect.linalg.bootstrap import Mixture
from gistselect.representations.interface import Features, Fitted, Representation
from gistselect.representations.queries import Apart
from gistselect.run.apart import counts_of, mixture_of
from gistselect.run.cells import Cell, Column, load_fit
from gistselect.run.passes import read_features
from gistselect.run.scored import ScoredPool, by_shard
from gistselect.run.scoring import Score
from gistselect.selection.selector import Blocks, FloatArray


class Rescored:
    """Scores of one method in each draw of its targets' queries, a shard at a time.

    In single precision, so that the order of a sum decides no tie: rows with the same features are equal.
    """

    def __init__(self, score: Score, apart: Sequence[Column], draws: int, seed: int) -> None:
        """`apart` is what was kept of the rows for this alone, target by target; empty if the features say all."""
        self.pool = ScoredPool(score)
        self._weights = score.weights()
        beside = apart or [None] * len(score.columns)
        self._targets = [_Drawn(*pair, draws, seed) for pair in zip(score.columns, beside, strict=True)]

    @property
    def width(self) -> int:
        """Score columns: the groups of all targets."""
        return sum(target.n_groups for target in self._targets)

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
        kept: dict[str, Features] = {}
        for target in self._targets:
            mixtures = target.mixtures(draws)
            prepared = []
            for cell, fit, mixture in zip(target.cells, target.fits, mixtures, strict=True):
                key = cell.features.key
                if key not in kept:
                    kept[key] = read_features(cell, shard, rows)
                prepared.append(mixture.prepared(target.directed(kept[key], fit)))
            for group in range(target.n_groups):
                total = np.zeros((len(rows), draws.stop - draws.start))
                for weight, one, made in zip(self._weights, mixtures, prepared, strict=True):
                    total += weight * one.scores(made, group)
                # A score may fail in a draw alone; then the row does not rank in it.
                yield np.where(np.isfinite(total), total, -np.inf)


class _Drawn:
    """One target: at each checkpoint its cell, its fit, and what stands for its groups in each draw."""

    def __init__(self, column: Column, beside: Column | None, draws: int, seed: int) -> None:
        """The same queries are drawn at every checkpoint, whatever other targets there are."""
        queries = column.entries[0][0].queries
        counts = counts_of(queries, draws, seed)
        self.n_groups = len(queries.group_names)
        self._representation: Representation = column.representation
        entries = (beside or column).entries
        self.cells: list[Cell] = [cell for _, cell in entries]
        self.fits: list[Fitted] = [load_fit(fit.artifact) for fit, _ in entries]
        apart, kind = entries[0][0].queries, self._representation.apart
        self._is_apart = isinstance(apart, Apart)
        if isinstance(apart, Apart) and kind is not None:
            found = [mixture_of(queries, apart, kind, counts)] * len(self.fits)
        else:
            found = [self._representation.resampled(fit, queries.group_of, counts) for fit in self.fits]
        self._mixtures = [one for one in found if one is not None]
        self._last: tuple[slice, list[Mixture]] | None = None

    def directed(self, kept: Features, fit: Fitted) -> FloatArray:
        """Rows (n, d) that the mixtures are multiplied with: of what is kept apart, the scores themselves."""
        if self._is_apart:
            return self._representation.score([kept], [fit], np.ones(1)).values
        return self._representation.directed(kept, fit)

    def mixtures(self, draws: slice) -> list[Mixture]:
        """Of these draws; those asked for last are kept."""
        if self._last is None or self._last[0] != draws:
            self._last = (draws, [one.of(draws) for one in self._mixtures])
        return self._last[1]


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
