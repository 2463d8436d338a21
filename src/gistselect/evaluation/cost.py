"""What a selection costs beside the training that it serves.

STR, the selection-to-tuning ratio (Data Whisperer, arXiv 2505.12212): the time of a selection divided by the time of
one fine-tuning on the full pool. Below 1, selecting and then training on a part is cheaper than training on everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ABOUT_AS_LONG = (0.91, 1.1)
"""Ratios of two times that are called the same."""


@dataclass(frozen=True, kw_only=True)
class FullTraining:
    """One fine-tuning on the full pool."""

    seconds: float
    measured: bool
    """False if it is forecast: the pool's tokens, times epochs, at the rate measured in the other trainings."""

    @classmethod
    def forecast(cls, *, tokens: int, epochs: int, tokens_per_second: float) -> FullTraining:
        """The time of `epochs` passes over a pool of `tokens`."""
        return cls(seconds=tokens * epochs / tokens_per_second, measured=False)


@dataclass(frozen=True, kw_only=True)
class SelectionCost:
    """What one method took from the pool's files to its selection, as if it had run alone."""

    seconds: Mapping[str, float]
    """Wall seconds by stage, summed over workers and attempts: read, tokenise, warm-up, prefilter, queries, pool,
    score, select. Of a pass that serves several methods, each is charged what all share, and its own arithmetic."""
    bytes_per_row: float
    """Kept on disk of each usable pool row before it is scored."""
    full_training: FullTraining | None = None

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())

    @property
    def selection_to_tuning(self) -> float | None:
        """STR; None if nothing is known of a training."""
        return self.total / self.full_training.seconds if self.full_training else None

    def described(self) -> dict[str, Any]:
        """As JSON."""
        full = self.full_training
        return {
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
            "selection_seconds": round(self.total, 4),
            "bytes_per_row": round(self.bytes_per_row, 2),
            "full_training_seconds": round(full.seconds, 4) if full else None,
            "full_training_is": ("measured" if full.measured else "forecast") if full else None,
            "selection_to_tuning": self.selection_to_tuning,
        }


def took(candidate: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    """`it took 31 times as long`, or beside an arm without a selection, what it took; empty if that is unknown.

    Both are what `SelectionCost.described` gives.
    """
    if candidate is None or candidate["selection_seconds"] <= 0:
        return ""
    if other is None or other["selection_seconds"] <= 0:
        ratio = candidate["selection_to_tuning"]
        share = "" if ratio is None else f", {ratio:.2g} of one training on the full pool"
        return f"selecting took {candidate['selection_seconds']:,.3g} s{share}"
    ratio = candidate["selection_seconds"] / other["selection_seconds"]
    if ABOUT_AS_LONG[0] <= ratio <= ABOUT_AS_LONG[1]:
        return "it took about as long"
    if ratio < 1:
        return f"it took {ratio:.2g} of the time"
    return f"it took {ratio:,.2g} times as long" if ratio < 10 else f"it took {ratio:,.0f} times as long"
