"""How much is selected: rows, a share of the pool, or tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from gistselect.errors import ConfigError
from gistselect.shares import rows_of

Unit = Literal["rows", "tokens", "supervised tokens"]
_FORM = re.compile(
    r"\s*(?P<number>\d+(?P<point>\.\d+)?)\s*(?P<scale>[kMG]?)(?P<percent>%?)(?P<unit>-tokens|-supervised-tokens)?\s*",
    re.ASCII | re.IGNORECASE,
)
_SCALE = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}


@dataclass(frozen=True, kw_only=True)
class Amount:
    """A whole number of rows or tokens, or a share."""

    number: int | Fraction
    """A Fraction in (0, 1] is a share: of the pool's rows in a budget, of the budget in a limit."""
    unit: Unit = "rows"

    @property
    def is_share(self) -> bool:
        return isinstance(self.number, Fraction)


def parse_budget(budget: str | int | float) -> Amount:
    """An amount from `5%`, `0.05`, `1.0`, `500`, `10k`, `2M-tokens` or `500k-supervised-tokens`.

    A whole number is rows, a number with a decimal point a share of the pool. Raises `ConfigError` for anything else.
    """
    match = _FORM.fullmatch(str(budget))
    if match is None or (match["percent"] and (match["scale"] or match["unit"])):
        raise ConfigError(
            f"budget {budget!r} is not understood; give a share such as 5% or 0.05, rows such as 500 or 10k, or tokens "
            "such as 2M-tokens or 500k-supervised-tokens."
        )
    number = Fraction(match["number"]) * _SCALE[match["scale"].lower()]
    unit: Unit = "rows"
    if match["unit"]:
        unit = "tokens" if match["unit"].lower() == "-tokens" else "supervised tokens"
    if unit != "rows" or match["scale"] or (not match["percent"] and not match["point"]):
        if number.denominator == 1 and number >= 1:
            return Amount(number=int(number), unit=unit)
        raise ConfigError(f"budget {budget!r} is no whole number of {unit} above 0, nor a share such as 5%.")
    share = number / 100 if match["percent"] else number
    if not 0 < share <= 1:
        raise ConfigError(f"budget {budget!r} is out of range; a share lies between 0% and 100%, rows are whole.")
    return Amount(number=share)


COLUMNS: dict[Unit, str] = {"tokens": "n_tokens", "supervised tokens": "n_supervised"}
"""Where a row's tokens are counted, in the table of scores and in the pool's facts."""


def rows_for_budget(budget: str | int | float, facts: Mapping[str, Any], n_scored: int) -> int:
    """Number of rows to select from a pool with these facts, of which `n_scored` rows could be scored.

    A share is of the pool, rounded up. Of a budget in tokens it is what rows of mean length would make. Raises
    `ConfigError` if more is asked for than there is, or tokens in a run without any.
    """
    amount = parse_budget(budget)
    if amount.unit != "rows":
        there = facts.get(COLUMNS[amount.unit])
        if there is None:
            raise ConfigError(no_tokens(budget))
        refuse_beyond(budget, there)
        return max(1, int(amount.number * n_scored // there))
    n_pool = facts["n_rows"]
    n_rows = rows_of(amount.number, n_pool) if amount.is_share else int(amount.number)
    if n_rows > n_scored:
        raise ConfigError(
            f"the budget {budget!r} asks for {n_rows:,} rows, but {n_scored:,} of the pool's {n_pool:,} rows can be "
            f"selected; use a budget of at most {n_scored:,}."
        )
    return n_rows


def no_tokens(budget: str | int | float) -> str:
    """What to say of a budget in tokens in a run that has none."""
    return f"--budget {budget} counts the tokens of a language model; give --model, or a budget in rows."


def refuse_beyond(budget: str | int | float, there: int) -> None:
    """Raises `ConfigError` if a budget in tokens is more than there are in the rows to choose from."""
    amount = parse_budget(budget)
    if amount.number > there:
        raise ConfigError(
            f"the budget {budget!r} is {int(amount.number) - there:,} more than the {there:,} {amount.unit} of the "
            "rows to choose from; lower it."
        )
