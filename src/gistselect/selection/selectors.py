"""From scores to rows. Selectors know neither models nor files; every representation shares them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gistselect.errors import DataError
from gistselect.types import ScoreMatrix


def top_k(matrix: ScoreMatrix, n_rows: int) -> NDArray[np.intp]:
    """Indices (n_rows,) of the rows with the best score for any target, best first (GIST section 4, LESS section 4).

    Ties break by id, so that a selection is a function of its inputs and not of the order of the pool.
    Raises `DataError` on a score that is not finite: a NaN must never rank.
    """
    if not np.isfinite(matrix.scores).all():
        row = int(np.flatnonzero(~np.isfinite(matrix.scores).all(axis=1))[0])
        raise DataError(f"the score of {matrix.ids[row]!r} is not finite; it cannot be ranked.")
    best = matrix.scores.max(axis=1)
    return np.lexsort((matrix.ids.astype(str), -best))[:n_rows]
