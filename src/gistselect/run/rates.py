"""Rates of work: what an amount of each kind takes, and where a run folder keeps them."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistselect.errors import ArtifactMismatchError
from gistselect.files import read_json, write_json

RATES = "rates.json"


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Seconds: as the clock on the wall shows them, and of all of this process's cores."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(wall=self.wall + other.wall, cpu=self.cpu + other.cpu)

    def __mul__(self, factor: float) -> Spent:
        return Spent(wall=self.wall * factor, cpu=self.cpu * factor)

    def beyond(self, other: Spent) -> Spent:
        """What of it is not the other; never less than nothing."""
        return Spent(wall=max(0.0, self.wall - other.wall), cpu=max(0.0, self.cpu - other.cpu))


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What one kind of work takes."""

    per_unit: Spent
    fixed: Spent = field(default_factory=Spent)
    """Each time that it begins: a model is loaded."""
    measured_on: str
    """The sample, for people."""


Clock = Callable[[], Spent]


def wall_and_cpu() -> Spent:
    """The time now."""
    return Spent(wall=time.monotonic(), cpu=time.process_time())


class Timer:
    """What a block took."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.spent = Spent()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        started = self._clock()
        yield
        self.spent = self._clock().beyond(started)


def stratified(lengths: NDArray[np.integer], most: int) -> NDArray[np.intp]:
    """Positions, ascending, of at most so many rows, evenly over the order of their lengths (n,): of each of as many
    equal parts of that order the middle one, so that their mean is close to that of all."""
    if len(lengths) <= most:
        return np.arange(len(lengths))
    middles = ((np.arange(most) + 0.5) * len(lengths) / most).astype(np.intp)
    return np.sort(np.argsort(lengths, kind="stable")[middles])


def save_rates(folder: Path, rates: Mapping[str, Rate]) -> None:
    """Keep rates with those that the folder has of other work, for runs on this machine."""
    known = {**load_rates(folder), **rates}
    described = {name: asdict(rate) for name, rate in known.items()}
    write_json(folder / RATES, {"machine": platform.node(), "rates": described})


def load_rates(folder: Path) -> dict[str, Rate]:
    """What `save_rates` kept; nothing of another machine, or of a file that cannot be read."""
    if not (folder / RATES).is_file():
        return {}
    with suppress(ArtifactMismatchError, KeyError, TypeError):
        stored = read_json(folder / RATES)
        if stored["machine"] == platform.node():
            return {name: _rate(described) for name, described in stored["rates"].items()}
    return {}


def _rate(described: dict[str, Any]) -> Rate:
    times = {name: Spent(**described[name]) for name in ("per_unit", "fixed")}
    return Rate(**times, measured_on=described["measured_on"])
