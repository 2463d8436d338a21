"""Arms that the study makes itself: losses on held-out items before training, and after training on given rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistselect.evaluation.results import ItemValues
from gistselect.evaluation.verdict import BEFORE, compare_values
from gistselect.run.arms import train_rows
from gistselect.run.comparing import Compare
from gistselect.run.losses import measured_loss
from gistselect.run.progress import Reporter
from gistselect.streams import Stream, generator

LEVEL = 0.95


class Arms:
    """Trainings under the recipe of a comparison with one target, kept by their rows, and what they come to."""

    def __init__(self, compare: Compare, reporter: Reporter) -> None:
        self._recipe, self._reporter = compare.recipe, reporter
        (self.items,) = compare.heldout
        self.usable: NDArray[np.int64] = compare.recipe.tokens.columns(["row"])["row"].to_numpy()
        """Pool rows that can be trained on."""

    def before(self) -> ItemValues:
        """Losses of the model as it is."""
        return measured_loss(self._recipe, self.items, BEFORE, None, None, self._reporter)

    def after(self, rows: Sequence[int] | NDArray[np.int64], seed: int, name: str) -> ItemValues:
        """Losses after training on those of the pool rows (n,) that can be trained on."""
        rows = np.asarray(rows, dtype=np.int64)
        training = train_rows(self._recipe, rows[np.isin(rows, self.usable)], seed, name, self._reporter)
        adapter = training / training.facts["adapter"]
        return measured_loss(self._recipe, self.items, name, adapter, training.folder.name, self._reporter)


def compared(
    arms: Sequence[tuple[str, Sequence[ItemValues]]],
    *,
    candidate: str,
    references: Sequence[str],
    seed: int,
    named: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Each arm's mean and interval, and its differences from the references, which may be `named` otherwise."""
    comparison = compare_values(
        arms,
        rng=generator(seed, Stream.BOOTSTRAP, 0),
        candidate=candidate,
        untrained=BEFORE,
        references=tuple(references),
        level=LEVEL,
    )
    named = named or {}
    return {
        row.arm: {
            **asdict(row.interval),
            "n_runs": row.n_runs,
            "against": {named.get(name, name): asdict(interval) for name, interval in row.against.items()},
        }
        for row in comparison.rows
    }
