"""Turns: targets or single queries choose one row after another, each the best for it that is left.

Nobody's scale of scores counts, only its own order, so several targets share a budget fairly (the greedy round robin
of RDS+, arXiv 2503.01807, and of arXiv 2602.14696). The scores are read once; of each column only its best rows are
held, and when they are used up, the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gistselect.errors import DataError
from gistselect.selection.selector import Blocks, FloatArray, Order, PoolView, Selector

HELD = 1 << 22
"""Rows held of all columns together, 16 bytes each (twice that while they are gathered)."""
HELD_OF_ONE = 1 << 16


class RoundRobin(Selector):
    """Groups of targets (or whole targets, or queries) take turns; each takes the best row for it that is left."""

    turns: Literal["targets", "tasks", "queries"] = "targets"
    """Who takes turns: the groups of all targets by their scores; whole targets (tasks), within each of which its
    groups take turns, so that one of 57 groups gets no more than one of a single group; or every single query by its
    cosine."""

    @property
    def needs_points(self) -> bool:
        return self.turns == "queries"

    def order(self, pool: PoolView) -> Order:
        """A row that is refused costs nobody a turn."""
        columns = _Columns(pool.query_scores if self.turns == "queries" else pool.scores, pool)
        proposed = np.zeros(len(pool.best), dtype=np.bool_)
        teams = self._teams(pool, columns.width)
        while teams := [team for team in teams if team]:
            for team in teams:
                taken: bool | None = False
                while team and taken is False:
                    position = columns.next(team[0], proposed)
                    if position is None:
                        team.popleft()
                        continue
                    proposed[position] = True
                    taken = yield position
                team.rotate(-1)

    def _teams(self, pool: PoolView, width: int) -> list[deque[int]]:
        """The columns of each that takes turns, the next one first."""
        if self.turns != "tasks":
            return [deque([column]) for column in range(width)]
        of_task: dict[str, deque[int]] = {}
        for column, name in enumerate(pool.targets):
            of_task.setdefault(name.partition("/")[0], deque()).append(column)
        return list(of_task.values())


class _Columns:
    """The rows of each column, best first, a part of them at a time."""

    def __init__(self, read: Callable[[], Blocks], pool: PoolView) -> None:
        self._read, self._pool = read, pool
        self.width = next(iter(read()))[1].shape[1]
        most = max(1, min(HELD_OF_ONE, HELD // self.width))
        self._most = [most] * self.width
        held = best_rows(read(), self.width, most, pool.id_ranks)
        self._rows = [rows for _, rows in held]
        self._last = [values[-1] for values, _ in held]
        self._next = [0] * self.width
        shortest = min(map(len, self._rows))
        pool.expect(np.stack([rows[:shortest] for rows in self._rows], axis=1).reshape(-1))

    def next(self, column: int, proposed: NDArray[np.bool_]) -> int | None:
        """The best row of a column that was not proposed yet; None if all were."""
        while True:
            rows = self._rows[column]
            while self._next[column] < len(rows):
                position = int(rows[self._next[column]])
                self._next[column] += 1
                if not proposed[position]:
                    return position
            if len(rows) < self._most[column]:
                return None
            self._refill(column, int(rows[-1]))

    def _refill(self, column: int, last: int) -> None:
        """Four times as many rows as before, from behind the last one."""
        ranks, value = self._pool.id_ranks(), self._last[column]

        def behind() -> Blocks:
            for start, block in self._read():
                scores = block[:, column : column + 1]
                later = ranks[start : start + len(block), None] > ranks[last]
                yield start, np.where((scores < value) | ((scores == value) & later), scores, -np.inf)

        self._most[column] *= 4
        ((values, rows),) = best_rows(behind(), 1, self._most[column], self._pool.id_ranks)
        self._pool.expect(rows)
        self._rows[column], self._next[column] = rows, 0
        self._last[column] = values[-1] if len(values) else -np.inf


def best_rows(
    blocks: Blocks, width: int, most: int, id_ranks: Callable[[], NDArray[np.integer]]
) -> list[tuple[FloatArray, NDArray[np.intp]]]:
    """Of each column, its best scores and their positions (at most `most`), best first, equal ones by id.

    Minus infinity stands for rows that do not count. Ids are asked for where scores are equal only. Raises
    `DataError` on a score that is NaN.
    """
    columns = [_Best(most, id_ranks) for _ in range(width)]
    for start, block in blocks:
        if np.isnan(block).any():
            raise DataError("a score is not a number; rows cannot be ranked by it.")
        lowest = np.array([column.lowest for column in columns])
        # Column by column, rows ascending.
        of, rows = np.nonzero((lowest[:, None] <= block.T) & (-np.inf < block.T))
        ends = np.searchsorted(of, np.arange(1, width + 1))
        for index, part in enumerate(np.split(rows, ends[:-1])):
            if len(part):
                columns[index].add(block[part, index], part + start)
    return [column.sorted() for column in columns]


class _Best:
    """The best of one column so far."""

    def __init__(self, most: int, id_ranks: Callable[[], NDArray[np.integer]]) -> None:
        self.most, self._id_ranks = most, id_ranks
        self.lowest = -np.inf
        self._values: list[FloatArray] = []
        self._rows: list[NDArray[np.intp]] = []
        self._n = 0

    def add(self, values: FloatArray, rows: NDArray[np.intp]) -> None:
        self._values.append(values)
        self._rows.append(rows)
        self._n += len(rows)
        if self._n > 2 * self.most:
            self._prune()

    def _prune(self) -> None:
        """Keep the best only; of those equal to the last, the first by id."""
        values, rows = np.concatenate(self._values), np.concatenate(self._rows)
        if len(values) > self.most:
            self.lowest = np.partition(values, len(values) - self.most)[len(values) - self.most]
            kept = values > self.lowest
            equal = np.flatnonzero(values == self.lowest)
            room = self.most - int(kept.sum())
            if len(equal) > room:
                equal = equal[np.argsort(self._id_ranks()[rows[equal]])[:room]]
            kept[equal] = True
            values, rows = values[kept], rows[kept]
        self._values, self._rows, self._n = [values], [rows], len(values)

    def sorted(self) -> tuple[FloatArray, NDArray[np.intp]]:
        if not self._n:
            return np.zeros(0), np.zeros(0, dtype=np.intp)
        self._prune()
        values, rows = self._values[0], self._rows[0]
        order = np.argsort(-values, kind="stable")
        if (values[order[1:]] == values[order[:-1]]).any():
            order = np.lexsort([self._id_ranks()[rows], -values])
        return values[order], rows[order]
