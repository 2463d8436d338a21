"""How wide a sketch is: said as a width, or as what it may take, from which the width follows.

It follows from the shapes of the adapter's matrices alone: the same on every device, in every number format and for
every number of workers and rows, so that no number depends on where it was computed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gistselect.errors import ConfigError

Shapes = Sequence[tuple[int, int]]
"""Rows and columns of each matrix of an adapter; a vector is one row."""
ROWS, NUMBER = 1024, 4
"""Rows of a shard, which are on the device together, and bytes of a number: a budget is counted for these."""
LEAST = 16
"""Narrowest width that a budget may come to: scores of a sketch half as wide foretold no loss (docs/results.md)."""
_FORM = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>kB|MB|GB|TB|%)\s*", re.ASCII | re.IGNORECASE)
_BYTES = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


@dataclass(frozen=True, kw_only=True)
class SketchBudget:
    """What a sketch may take; one of the two is given."""

    text: str
    """As it was written."""
    n_bytes: Fraction | None = None
    """Most bytes on a device, see `sketch_bytes`."""
    share: Fraction | None = None
    """Most numbers of a row, as a share of the adapter's."""

    def width(self, shapes: Shapes) -> int:
        """The largest width within the budget; one at which every matrix stays as it is, if that is.

        Raises `ConfigError` for a budget in which not even a narrow sketch fits.
        """
        widest = max(max(shape) for shape in shapes)
        p = sum(out * inner for out, inner in shapes)
        widths = np.arange(1, widest + 1)
        takes, most = sketch_bytes(shapes, widths), self.n_bytes
        if self.share is not None:
            takes, most = sketch_numbers(shapes, widths), self.share * p
        fits = np.flatnonzero(takes <= float(most or 0))
        found = int(widths[fits[-1]]) if len(fits) else 0
        if found < (least := min(LEAST, widest)):
            needed = int(takes[least - 1])
            needed = _bytes_up(needed) if self.share is None else _percent_up(needed / p)
            raise ConfigError(
                f"--sketch {self.text} allows the {len(shapes)} matrices of the adapter ({p:,} numbers) a width of "
                f"{found}, and of sketches narrower than {least} scores say little; give at least {needed}, an adapter "
                "of smaller rank or for fewer layers, or a width."
            )
        return found


def parse_sketch(value: int | str) -> int | SketchBudget:
    """A width from `32`, or a budget from `2GB` or `5%`. Raises `ValueError` for anything else."""
    text = str(value).strip()
    if text.isascii() and text.isdigit() and int(text) >= 1:
        return int(text)
    match = _FORM.fullmatch(text)
    if match is None or Fraction(match["number"]) == 0 or isinstance(value, bool):
        raise ValueError(
            f"{value!r} is not understood; give a width such as 32, what sketches may take on a device such as 2GB, or "
            "a share of the adapter's numbers such as 5%"
        )
    number, unit = Fraction(match["number"]), match["unit"].lower()
    if unit != "%":
        return SketchBudget(text=text, n_bytes=number * _BYTES[unit])
    if number > 100:
        raise ValueError(f"{value!r} is more than the adapter has; a share lies between 0% and 100%")
    return SketchBudget(text=text, share=number / 100)


def sketch_numbers(shapes: Shapes, width: int | np.ndarray) -> np.ndarray:
    """d(w) = Σ min(out, w) · min(in, w) over the matrices: numbers that a sketch of that width keeps of a row."""
    counted = Counter(shapes)
    return sum(
        (n * np.minimum(out, width) * np.minimum(inner, width) for (out, inner), n in counted.items()),
        start=np.zeros_like(width, dtype=np.int64),
    )


def sketch_bytes(shapes: Shapes, width: int | np.ndarray) -> np.ndarray:
    """4 · (1,024 · d(w) + w · Σ of the sides wider than w): the sketches of a shard, and the projections.

    Both are float32, whatever the model computes in.
    """
    sides = Counter(side for shape in shapes for side in shape)
    projections = sum(
        (n * np.where(side > np.asarray(width), side * np.asarray(width), 0) for side, n in sides.items()),
        start=np.zeros_like(width, dtype=np.int64),
    )
    return NUMBER * (ROWS * sketch_numbers(shapes, width) + projections)


def _bytes_up(n_bytes: int) -> str:
    """At least so many, in the form in which they are asked for."""
    unit = next(unit for unit in ("GB", "MB", "kB") if n_bytes >= _BYTES[unit.lower()] or unit == "kB")
    return f"{math.ceil(10 * n_bytes / _BYTES[unit.lower()]) / 10:g}{unit}"


def _percent_up(share: float) -> str:
    return f"{math.ceil(1e5 * share) / 1e3:g}%"
