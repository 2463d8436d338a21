"""How many rows a budget allows."""

from __future__ import annotations

import math
import re

from gistselect.errors import ConfigError

_FORM = re.compile(r"\s*(?P<number>\d+(?P<point>\.\d+)?)\s*(?P<percent>%?)\s*")


def parse_budget(budget: str | int | float) -> int | float:
    """A number of rows (int) or a share of the pool (float in (0, 1]) from `5%`, `0.05`, `1.0` or `500`.

    A whole number is rows, a number with a decimal point a share. Raises `ConfigError` for anything else.
    """
    match = _FORM.fullmatch(str(budget))
    if match is None:
        raise ConfigError(f"budget {budget!r} is not understood; give a share such as 5% or 0.05, or rows such as 500.")
    number = float(match["number"])
    if match["percent"]:
        number /= 100
    elif not match["point"] and number >= 1:
        return int(match["number"])
    if not 0 < number <= 1:
        raise ConfigError(f"budget {budget!r} is out of range; a share lies between 0% and 100%, rows are whole.")
    return number


def rows_for_budget(budget: str | int | float, n_pool: int, n_scored: int) -> int:
    """Number of rows to select from a pool of `n_pool` rows, of which `n_scored` could be scored.

    A share is of the pool, rounded up. Raises `ConfigError` if more rows are asked for than were scored.
    """
    amount = parse_budget(budget)
    n_rows = amount if isinstance(amount, int) else math.ceil(amount * n_pool)
    if n_rows > n_scored:
        raise ConfigError(
            f"the budget {budget!r} asks for {n_rows:,} rows, but {n_scored:,} of the pool's {n_pool:,} rows have a "
            f"score; use a budget of at most {n_scored:,}."
        )
    return n_rows
