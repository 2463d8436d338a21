"""The rows of a finished run that its prefilter left out: at which place each stood, and what the sample says of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from gistselect.run.finished import FinishedRun
from gistselect.run.prefilter import FATES, PLACED
from gistselect.run.scoring import SAMPLED
from gistselect.run.store import read_table

KEPT = FATES[0]


class LeftOut:
    """None where the main representation reads the whole pool."""

    def __init__(self, run: FinishedRun) -> None:
        self._main = run.methods[0]
        self._path = run.folder / PLACED
        self._facts: Mapping[str, Any] = run.manifest.get("prefilter", {}) if "left_out" in run.manifest else {}

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """id, source, row and reason of each row, the best placed first."""
        if not self._facts or not self._path.is_file():
            return []
        table = read_table(self._path, ["id", "source", "row", "place", "fate"])
        table = table.filter(pc.field("fate") != KEPT).sort_by("place")
        return [
            {"id": one["id"], "source": one["source"], "row": one["row"], "reason": self._reason(one)}
            for one in table.to_pylist()
        ]

    def find(self, *, id: str | None, row: int | None) -> dict[str, Any] | None:
        """The entry of a row by its number, or by its id."""
        return next((one for one in self.entries if one["row"] == row or (row is None and one["id"] == id)), None)

    def to_show(self, most: int) -> list[dict[str, Any]]:
        """Sampled rows whose score would have been high enough, and the next in line, at most so many of each."""
        missed = [one for one in self.entries if self._scores.get(one["row"], -np.inf) > self._threshold]
        found = {one["row"]: one for one in (*missed[:most], *self.entries[:most])}
        return list(found.values())

    @cached_property
    def _scores(self) -> dict[int, float]:
        table = read_table(self._main.folder / SAMPLED, ["row", "score"])
        return dict(zip(table["row"].to_pylist(), table["score"].to_pylist(), strict=True))

    @cached_property
    def _threshold(self) -> float:
        chosen: NDArray[np.float64] = read_table(self._main.selection_file, ["score"])["score"].to_numpy()
        return float(chosen.min())

    def _reason(self, row: Mapping[str, Any]) -> str:
        facts = self._facts
        said = (
            f"the prefilter {facts['title']} placed it {row['place']:,} of {facts['placed']:,}, and the first "
            f"{facts['kept']:,} were left to {self._main.title}"
        )
        if (score := self._scores.get(row["row"])) is None:
            return said
        enough = "" if score > self._threshold else "not "
        return f"{said}; it was scored only to measure what is lost: {score:.4f}, {enough}enough to be selected"
