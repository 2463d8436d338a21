"""Random: a number drawn for each row, which every method has to beat.

The draw belongs to the row's id, its text and the seed. So the order of the pool, its shards and the rows beside it
change nothing; rows without an id of their own have one made from their content, and repeated ones their place added.
Loads no model. Cost of a row: a hash of its text, 4 bytes stored for all targets together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gistselect.data.words import text_of
from gistselect.linalg.hashing import fingerprints
from gistselect.representations.interface import (
    Features,
    Fitted,
    FloatArray,
    Prepared,
    Reads,
    Representation,
    Scores,
    TextSource,
)
from gistselect.representations.queries import Queries
from gistselect.streams import Stream, uniforms
from gistselect.types import Record

_STEPS = 2.0**24
"""Numbers between 0 and 1 that are whole in float32, in which features are stored."""


class Random(Representation):
    """A uniform draw, the same for every target."""

    seed: int = Field(default=0, ge=0)
    """Seed of the draws."""

    name: ClassVar[str] = "random"
    title: ClassVar[str] = "Random"
    reads: ClassVar[Reads] = "text"
    definition: ClassVar[str] = "uniform draw (0 to 1, no unit; higher is chosen first and means nothing)"
    unscored: ClassVar[str] = "its draw is not finite; this is a defect of gistselect"
    not_resampled: ClassVar[str] = "its score is the same whatever the queries"

    @property
    def per_target(self) -> bool:
        return False

    def width(self, n_queries: int) -> int:
        """One draw."""
        return 1

    def fit(self, queries: Queries, at: TextSource, folder: Path, prepared: Prepared | None) -> Fitted:
        """The names of the groups: nothing of the queries matters."""
        return Fitted(groups=queries.group_names, arrays={"group": queries.group_of})

    def collector(self, fitted: Fitted | None, at: TextSource) -> _Collector:
        """The draws (n, 1)."""
        return _Collector(self.seed)

    def score(self, shard: Sequence[Features], fitted: Sequence[Fitted], weights: FloatArray) -> Scores:
        """The draws, for each group alike."""
        return Scores(values=np.repeat(shard[0].values.astype(np.float64), len(fitted[0].groups), axis=1))


class _Collector:
    def __init__(self, seed: int) -> None:
        self._seed = seed

    def take(self, records: Sequence[Record]) -> NDArray[np.float64]:
        """A draw (n, 1) for each record."""
        rows = fingerprints(f"{record.id}\0{text_of(record)}" for record in records)
        draws = uniforms(rows, self._seed, Stream.RANDOM_SCORES)
        return (np.floor(draws * _STEPS) / _STEPS)[:, None]
