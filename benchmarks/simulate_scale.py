"""How long a pool of 1 B rows takes on many cards: the engine's own scheduling code, driven by a virtual clock.

    python benchmarks/simulate_scale.py [--rows 1e9] [--tokens 400] [--parameters 8e9]

Simulated are cards of unequal speed, stragglers, preemptions (a card goes in the middle of a shard and comes back
later) and cards that join late. What a card does in a second is a number that is given, not one that was measured.
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from gistselect.run.crew import Done, Event, Joined, Left, Opened
from gistselect.run.engine import carry_out
from gistselect.run.jobs import Job
from gistselect.run.progress import SilentReporter
from gistselect.run.scheduling import Assignment, Limits, Schedule

HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Cards:
    """What happens to cards."""

    n: int
    tokens_per_second: float
    open_seconds: float
    """To load the model when a card joins."""
    shard_seconds: float
    """To read and write a shard, beside its tokens."""
    spread: float = 0.05
    """Standard deviation of the speed of a card, of one."""
    slow: float = 0.0
    """Share of cards that are three times slower than the others."""
    mean_life: float = np.inf
    """Seconds until a card is taken away, on average (exponential); another comes after `away`."""
    away: float = HOUR
    late: float = 0.0
    """Share of cards that join only after an hour."""


class SimulatedCrew:
    """Cards as the engine sees workers; `wait` moves the clock to what happens next."""

    elsewhere = True

    def __init__(self, cards: Cards, amounts: Sequence[float], seed: int) -> None:
        self._cards, self._amounts = cards, amounts
        self._rng = np.random.default_rng(seed)
        self._clock, self._number = 0.0, 0
        self._coming: list[tuple[float, int, str, str]] = []
        """What will happen: when, a number that orders ties, what, and to whom."""
        self._speed: dict[str, float] = {}
        self._opened: set[str] = set()
        self._began: dict[str, float] = {}
        self.busy = self.wasted = 0.0
        for index in range(cards.n):
            self._plan(HOUR if index < cards.late * cards.n else 0.0, "joins", f"card {index}")

    def now(self) -> float:
        return self._clock

    def begin(self, job: Job) -> Sequence[str]:
        return []

    def give(self, worker: str, assignment: Assignment) -> None:
        opening = 0.0 if worker in self._opened else self._cards.open_seconds
        if opening:
            self._plan(self._clock + opening, "opened", worker)
            self._opened.add(worker)
        tokens = self._amounts[assignment.index]
        seconds = tokens / (self._cards.tokens_per_second * self._speed[worker]) + self._cards.shard_seconds
        self._began[worker] = self._clock
        self._plan(self._clock + opening + seconds, "done", worker)

    def stop(self, worker: str) -> str:
        raise NotImplementedError("no card of this simulation hangs")

    def wait(self, until: float | None) -> Sequence[Event]:
        while True:
            self._clock, _, what, worker = heapq.heappop(self._coming)
            if what == "joins":
                return [self._joins(worker)]
            if worker not in self._speed:
                continue
            if what == "opened":
                return [Opened(worker=worker)]
            began = self._began.pop(worker, None)
            if what == "done" and began is not None:
                self.busy += self._clock - began
                return [Done(worker=worker)]
            if what == "leaves":
                del self._speed[worker]
                self.wasted += self._clock - began if began is not None else 0.0
                self._number += 1
                self._plan(self._clock + self._cards.away, "joins", f"{worker.partition('#')[0]}#{self._number}")
                return [Left(worker=worker, text="preempted")]

    def close(self) -> None:
        self._coming.clear()

    def _joins(self, worker: str) -> Event:
        speed = max(0.2, 1.0 + self._cards.spread * self._rng.standard_normal())
        self._speed[worker] = speed / 3 if self._rng.random() < self._cards.slow else speed
        if np.isfinite(self._cards.mean_life):
            self._plan(self._clock + self._rng.exponential(self._cards.mean_life), "leaves", worker)
        return Joined(worker=worker)

    def _plan(self, when: float, what: str, worker: str) -> None:
        self._number += 1
        heapq.heappush(self._coming, (when, self._number, what, worker))


class _NoPicture:
    """Nobody looks."""

    def staff(self, *_: Any) -> None: ...

    def advance(self, *_: Any) -> None: ...

    def done(self, *_: Any) -> None: ...

    def forget(self, *_: Any) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One simulated pass."""

    hours: float
    card_hours: float
    """Of work that counts."""
    wasted: float
    """Share of all work that was lost with its card."""
    lost: int
    """Shards that were given up."""
    driver: float
    """Real seconds that the scheduling code itself took for each thousand shards."""


def simulate(cards: Cards, amounts: Sequence[float], *, seed: int = 0) -> Outcome:
    """A pass over shards of so many tokens."""
    crew = SimulatedCrew(cards, amounts, seed)
    schedule = Schedule(dict(enumerate(amounts)), Limits())
    started = time.perf_counter()
    carry_out(schedule, crew, cast(Job, None), cast(Any, _NoPicture()), SilentReporter())
    driver = time.perf_counter() - started
    assert sorted(schedule.done) + sorted(one.index for one in schedule.lost) == list(range(len(amounts)))
    return Outcome(
        hours=crew.now() / HOUR,
        card_hours=crew.busy / HOUR,
        wasted=crew.wasted / (crew.busy + crew.wasted),
        lost=len(schedule.lost),
        driver=1000 * driver / len(amounts),
    )


def main() -> None:
    """Print the table of docs/scale.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, default=1e9)
    parser.add_argument("--tokens", type=float, default=400, help="tokens of a row, on average")
    parser.add_argument("--parameters", type=float, default=8e9)
    parser.add_argument("--flops", type=float, default=989e12 * 0.4, help="FLOP that a card does in a second")
    parser.add_argument("--shard-rows", type=int, nargs="+", default=[1024, 16384])
    parser.add_argument("--shard-seconds", type=float, default=0.5, help="to read and write a shard of 16,384 rows")
    parser.add_argument("--open-seconds", type=float, default=120, help="to load the model when a card joins")
    parser.add_argument("--cards", type=int, nargs="+", default=[64, 256, 1024])
    arguments = parser.parse_args()
    speed = arguments.flops / (4 * arguments.parameters)
    work = arguments.rows * arguments.tokens / speed / HOUR
    print(f"{speed:,.0f} tokens a second and card, {work:,.0f} card-hours of bare work")
    print("| cards | shard rows | what happens | hours | of ideal | wasted | lost | scheduling, s per 1,000 shards |")
    print("|---:|---:|---|---:|---:|---:|---:|---:|")
    rng = np.random.default_rng(0)
    for n in arguments.cards:
        for rows in arguments.shard_rows:
            # A tenth of the pool in small shards: a run ten times longer differs in nothing but time.
            shards = int(arguments.rows / rows) if rows > 8192 else int(arguments.rows / rows / 10)
            share = shards * rows / arguments.rows
            amounts = (rows * arguments.tokens * (1 + 0.1 * rng.standard_normal(shards))).tolist()
            for name, more in {
                "nothing": {},
                "1 in 20 three times slower": {"slow": 0.05},
                "taken away every 4 h, back after 1 h": {"mean_life": 4 * HOUR},
                "half join after 1 h": {"late": 0.5},
            }.items():
                costs = {
                    "open_seconds": arguments.open_seconds,
                    "shard_seconds": arguments.shard_seconds * rows / 16384,
                }
                found = simulate(Cards(n=n, tokens_per_second=speed, **costs, **more), amounts)
                ideal = work * share / n
                print(
                    f"| {n:,} | {rows:,}{' (a tenth)' if share < 0.5 else ''} | {name} | {found.hours:.1f} | "
                    f"{found.hours / ideal:.3f} | {found.wasted:.2%} | {found.lost} | {found.driver:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
