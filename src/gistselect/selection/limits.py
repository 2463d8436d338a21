"""How much of a selection may, and how much must come from each source."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gistselect.errors import ConfigError
from gistselect.selection.budget import Amount, Unit, parse_budget

OTHERS = "*"
"""Stands for every source that has no limit of its own."""
_NOTHING = re.compile(r"\s*0+(\.0+)?\s*%?\s*")


def parse_limits(option: str, values: Iterable[str]) -> dict[str, Amount]:
    """Limits by source from `alpaca=10%`, `alpaca=500` or `*=30%`; a number is in the budget's unit.

    A source may be called anything: what follows the last `=` is the amount. Raises `ConfigError` naming the option.
    """
    found: dict[str, Amount] = {}
    for value in values:
        source, equals, amount = value.rpartition("=")
        if not equals or not source:
            raise ConfigError(f"--{option} {value!r} is not SOURCE=AMOUNT, such as alpaca=10% or '*=500'.")
        if source in found:
            raise ConfigError(f"--{option} names {source!r} twice.")
        if _NOTHING.fullmatch(amount):
            found[source] = Amount(number=0)
            continue
        try:
            found[source] = parse_budget(amount)
        except ConfigError as error:
            raise ConfigError(f"--{option} {value!r}: {str(error).replace('budget', 'amount')}") from None
        if found[source].unit != "rows":
            raise ConfigError(f"--{option} {value!r}: leave the unit out; it is that of --budget.")
    return found


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a selection in rows or tokens, by source; sources without one are not in them."""

    most: Mapping[str, int]
    least: Mapping[str, int]
    total: int
    """The budget."""
    unit: Unit

    @classmethod
    def of(
        cls,
        most: Mapping[str, Amount],
        least: Mapping[str, Amount],
        *,
        there: Mapping[str, int],
        total: int,
        unit: Unit,
    ) -> Limits:
        """The limits of a budget of `total`, where `there` says how much each source has.

        Shares are of the budget, rounded down for the most and up for the least, so that neither is ever passed.
        Raises `ConfigError` that says which cannot be met, and by how much; all that cannot are named.
        """
        limits = cls(
            most=_by_source("source-max", most, there, total, at_least=False),
            least=_by_source("source-min", least, there, total, at_least=True),
            total=total,
            unit=unit,
        )
        if problems := list(limits.problems(there)):
            raise ConfigError(" ".join(problems))
        return limits

    def problems(self, there: Mapping[str, int]) -> Iterable[str]:
        """A sentence for each limit that cannot be met."""
        for source, least in self.least.items():
            if (most := self.most.get(source, least)) < least:
                yield (
                    f"Source {source!r}: --source-min asks for {least:,} {self.unit}, {least - most:,} more than the "
                    f"{most:,} of --source-max."
                )
            if least > there[source]:
                yield (
                    f"Source {source!r}: --source-min asks for {least:,} {self.unit}, {least - there[source]:,} more "
                    f"than the {there[source]:,} it has."
                )
        if (needed := sum(self.least.values())) > self.total:
            yield (
                f"--source-min asks for {needed:,} {self.unit} in all, {needed - self.total:,} more than the budget of "
                f"{self.total:,}."
            )
        room = sum(min(own, self.most.get(source, own)) for source, own in there.items())
        if self.most and room < self.total <= sum(there.values()):
            yield (
                f"--source-max leaves room for {room:,} {self.unit}, {self.total - room:,} fewer than the budget of "
                f"{self.total:,}; allow more, or lower the budget."
            )


def _by_source(
    option: str, limits: Mapping[str, Amount], there: Mapping[str, int], total: int, *, at_least: bool
) -> dict[str, int]:
    if unknown := sorted(limits.keys() - {*there, OTHERS}):
        from difflib import get_close_matches

        close = get_close_matches(unknown[0], there, n=1)
        shown = ", ".join(map(repr, sorted(there)[:20])) + ", …" * (len(there) > 20)
        hint = f"did you mean {close[0]!r}?" if close else f"its sources: {shown}."
        raise ConfigError(f"--{option}: no row of the pool that can be selected is of source {unknown[0]!r}; {hint}")
    found: dict[str, int] = {}
    for source in there:
        if (amount := limits.get(source, limits.get(OTHERS))) is not None:
            exact = amount.number * total if amount.is_share else amount.number
            found[source] = math.ceil(exact) if at_least else math.floor(exact)
    return found
