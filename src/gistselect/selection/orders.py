"""Orders by one number a row. They stream: what they hold is a few numbers a row, whatever the targets."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from gistselect.selection.selector import Order, PoolView, Selector, by_keys
from gistselect.shares import rows_of


class TopK(Selector):
    """Rows by their best score for any target (GIST section 4, LESS section 4)."""

    def order(self, pool: PoolView) -> Order:
        return by_keys([pool.best], pool)


class DoublyGreedy(Selector):
    """Rows by their cosine with the nearest single query of any target.

    "Greedy" over rows and over queries: at every step the nearest pair of a query and a row that is left
    (arXiv 2602.14696). `top_k` looks at a group's queries together.
    """

    @property
    def needs_points(self) -> bool:
        return True

    def order(self, pool: PoolView) -> Order:
        nearest = np.zeros(len(pool.best))
        for start, block in pool.query_scores():
            nearest[start : start + len(block)] = block.max(axis=1)
        return by_keys([nearest], pool)


class Vote(Selector):
    """Rows by the number of targets for which they are among the best (ICONS, arXiv 2501.00654, section 3).

    Rows with equally many votes stand by their best score.
    """

    share: float = Field(default=0.2, gt=0, le=1)
    """The best share of the rows that a target votes for; equal scores at its end all get the vote."""

    def order(self, pool: PoolView) -> Order:
        best = pool.best
        votes = np.zeros(len(best), dtype=np.float32)
        n_voted = rows_of(self.share, len(best))
        for target in pool.targets:
            scores = pool.column(target)
            votes += scores >= np.partition(scores, len(scores) - n_voted)[len(scores) - n_voted]
        return by_keys([votes, best], pool)
