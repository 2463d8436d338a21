"""The largest error of each formula against its reference: `pytest --numprocesses=0 --reference-errors` prints them."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose
from numpy.typing import ArrayLike

FOUND: dict[str, tuple[str, float, int]] = {}
"""By what was compared: with what, the largest error relative to the largest number expected, and of how many
comparisons."""


def note(of: str, reference: str, error: float) -> float:
    """Keep an error that a test has measured; it is returned."""
    _, largest, count = FOUND.get(of, (reference, 0.0, 0))
    FOUND[of] = (reference, max(largest, error), count + 1)
    return error


def assert_like_reference(
    of: str, reference: str, found: ArrayLike, expected: ArrayLike, *, rtol: float = 0.0, atol: float = 0.0
) -> None:
    """`assert_allclose`, whose largest error is kept, as a share of the largest number expected."""
    numbers, wanted = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert_allclose(numbers, wanted, rtol=rtol, atol=atol)
    note(of, reference, float(np.abs(numbers - wanted).max() / np.abs(wanted).max()))


def lines() -> list[str]:
    """A table in Markdown, by name."""
    rows = [
        f"| {of} | {reference} | {error:.1e} | {count} |" for of, (reference, error, count) in sorted(FOUND.items())
    ]
    return ["| formula | reference | largest error | comparisons |", "|---|---|---:|---:|", *rows]
