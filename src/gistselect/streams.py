"""Random streams by name: one list, so that no two uses of a seed ever share their numbers.

A stream's number is part of the method: changing it changes which rows are drawn. New streams go at the end.
"""

from __future__ import annotations

from enum import IntEnum, unique

import numpy as np
from numpy.typing import NDArray

from gistselect.linalg.hashing import mixed


@unique
class Stream(IntEnum):
    """What is drawn; the number stands beside the seed."""

    WARMUP_SAMPLE = 1
    """Pool rows of the warm-up."""
    NULL_LEVEL = 2
    """Random directions of the null level."""
    BASELINE_RANDOM = 3
    """Random rows to compare a selection with; followed by the training's seed."""
    BASELINE_LENGTH = 4
    """Random rows of the same lengths; followed by the training's seed."""
    AGREEMENT_SAMPLE = 5
    """Pool rows on which a sketch is compared with exact gradients."""
    GROUP_SAMPLE = 6
    """Items of a group; followed by a number of the group's name."""
    SKETCH = 7
    """Projections of a sketch; followed by block and side."""
    BOOTSTRAP = 8
    """Resampling of items and seeds in an interval."""
    EPOCH_ORDER = 9
    """Order of the training rows; followed by the epoch."""
    PROJECTION = 10
    """Projection of LESS; followed by numbers of the parameter block."""
    CURVATURE_SAMPLE = 11
    """Pool rows on which curvature is estimated."""
    RANDOM_SCORES = 12
    """Scores of the representation `random`."""
    CASCADE_SAMPLE = 13
    """Rows outside a prefilter that are scored all the same, to measure what it lost."""
    GUMBEL = 14
    """Noise on importance weights (DSIR)."""
    VALIDATION_SUBSET = 15
    """Pool rows of a random subset, to compare predicted with real losses; followed by its number."""
    VALIDATION_REMOVAL = 16
    """Random rows to leave out of a training; followed by the training's seed."""
    PLANTED = 17
    """Rows that are spoilt or made up, and among which others they are hidden."""
    MINHASH = 18
    """Hash functions that near-duplicates are told by."""
    RANK_DROPOUT = 19
    """Dropout in each of several processes that train together; followed by the process."""
    QUERY_BOOTSTRAP = 20
    """Queries drawn anew; followed by the number of target and group."""


def generator(seed: int, stream: Stream, *more: int) -> np.random.Generator:
    """The generator of a stream; `more` (none negative) tells draws of one stream apart: an epoch, a block."""
    return np.random.default_rng([seed, stream, *more])


def uniforms(fingerprints: NDArray[np.uint64], seed: int, stream: Stream, *more: int) -> NDArray[np.float64]:
    """A uniform draw (n,) in (0, 1) for each of these fingerprints: the same wherever and in whatever order they come.

    For what is drawn row by row in shards that know nothing of each other; see `linalg.hashing.fingerprints`.
    """
    key = generator(seed, stream, *more).integers(2**64, dtype=np.uint64)
    return ((mixed(fingerprints, key) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
