"""A share of rows as a number of rows."""

from __future__ import annotations

import math
from fractions import Fraction


def rows_of(share: float | Fraction, n_rows: int) -> int:
    """Rows of a share, rounded up, the share as it is written: of 100 rows 7 % are 7, though 0.07 · 100 is more in
    floats."""
    return math.ceil(Fraction(str(share)) * n_rows)
