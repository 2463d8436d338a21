"""Which worker does what, and what happens when one fails: decisions alone, without processes, clocks or files.

Time is an argument, so that the same code runs worker processes, a cluster, and the simulation of docs/scale.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Cause = Literal["died", "hung", "memory", "error"]
"""Why a worker did not bring a shard to its end: its process ended, its time ran out, memory ran out, or it raised."""

FIRST_LIMIT = 3600.0
"""Seconds for a shard while none has been done that could be measured."""
LEAST_LIMIT, PATIENCE = 300.0, 10.0
"""After that a shard has this many seconds, or this many times what the slowest one took for its size."""
GROW_AFTER = 8
"""Shards that a worker must do in a row before its token budget is doubled again."""
DEPARTURES = 10
"""Times that a shard's worker may leave before the shard itself is suspected and given up."""
HOPELESS = 3
"""Failures in a row after which a worker gets nothing more, as long as there is another."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How patient a schedule is."""

    attempts: int = 3
    """Times that a shard is tried, the first included."""
    seconds: float | None = None
    """Time for one shard; None learns it from those that were done."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One shard for one worker."""

    index: int
    share: float
    """Part of the token budget to work with."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One attempt that came to nothing."""

    worker: str
    cause: Cause
    text: str
    """What is known: exit status, log, traceback."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A shard that was given up, with every attempt at it."""

    index: int
    failures: tuple[Failure, ...]


@dataclass(kw_only=True)
class _Worker:
    share: float = 1.0
    calm: int = 0
    """Shards done since its memory last ran out."""
    streak: int = 0
    """Failures since it last did a shard."""
    running: Assignment | None = None
    since: float = 0.0


@dataclass(kw_only=True)
class _Shard:
    amount: float
    share: float = 1.0
    failures: list[Failure] = field(default_factory=list)
    departures: int = 0


class Schedule:
    """The state of one job. Shards are handed out in order as workers get free.

    A shard that failed goes to a worker on which it has not failed, if there is one. It keeps its token budget when
    a worker died or hung once, so that its numbers are the same to the bit; when memory ran out, or it failed a
    second time, it gets half. A worker whose memory ran out works with half the budget until it has done
    `GROW_AFTER` shards.
    """

    def __init__(self, amounts: Mapping[int, float], limits: Limits) -> None:
        """`amounts` says how much there is to do in each shard that is missing."""
        self._limits = limits
        self._shards = {index: _Shard(amount=amount) for index, amount in amounts.items()}
        self._waiting = deque(amounts)
        self._again: deque[int] = deque()
        """Shards that failed, which come first."""
        self._workers: dict[str, _Worker] = {}
        self._slowest: float | None = None
        """Most seconds that a unit of work took."""
        self.lost: list[Lost] = []
        self.done: list[int] = []

    @property
    def finished(self) -> bool:
        """Whether every shard is done or lost."""
        return len(self.done) + len(self.lost) == len(self._shards)

    @property
    def workers(self) -> list[str]:
        """Everyone who takes part."""
        return list(self._workers)

    @property
    def free(self) -> list[str]:
        """Those of them who are at nothing, while anything waits."""
        if not self._waiting and not self._again:
            return []
        return [worker for worker, state in self._workers.items() if state.running is None]

    def join(self, worker: str) -> None:
        """A worker offers itself; one that is known already is as it was."""
        self._workers.setdefault(worker, _Worker())

    def leave(self, worker: str, text: str = "it left") -> Lost | None:
        """A worker is gone for good: what it was at waits for another, and is lost and returned only if its workers
        left too often, since a node that is taken away says nothing against its shard."""
        state = self._workers.pop(worker, None)
        if state is None or state.running is None:
            return None
        shard = self._shards[state.running.index]
        shard.departures += 1
        if shard.departures < DEPARTURES:
            self._again.appendleft(state.running.index)
            return None
        shard.failures.append(Failure(worker=worker, cause="died", text=text))
        return self._lose(state.running.index)

    def running(self, worker: str) -> Assignment | None:
        """What a worker is at."""
        state = self._workers.get(worker)
        return state.running if state else None

    def take(self, worker: str, now: float) -> Assignment | None:
        """The next shard of a free worker; None if there is none for it now."""
        state = self._workers[worker]
        if state.running is not None or self._is_hopeless(worker):
            return None
        index = next((one for one in self._again if self._may(worker, one)), None)
        if index is not None:
            self._again.remove(index)
        elif self._waiting:
            index = self._waiting.popleft()
        else:
            return None
        state.running = Assignment(index=index, share=min(state.share, self._shards[index].share))
        state.since = now
        return state.running

    def started(self, worker: str, now: float) -> None:
        """The worker has opened its model: its shard's time begins now."""
        self._workers[worker].since = now

    def succeeded(self, worker: str, now: float) -> int:
        """A worker did its shard; which it was."""
        state = self._workers[worker]
        assert state.running is not None
        index, state.running = state.running.index, None
        per_unit = (now - state.since) / max(self._shards[index].amount, 1.0)
        self._slowest = max(self._slowest or 0.0, per_unit)
        state.streak = 0
        state.calm += 1
        if state.calm >= GROW_AFTER and state.share < 1.0:
            state.share, state.calm = min(1.0, 2 * state.share), 0
        self.done.append(index)
        return index

    def failed(self, worker: str, cause: Cause, text: str) -> Lost | None:
        """An attempt came to nothing; the shard waits for another, or is lost and returned."""
        state = self._workers[worker]
        assert state.running is not None
        assignment, state.running = state.running, None
        state.streak += 1
        shard = self._shards[assignment.index]
        shard.failures.append(Failure(worker=worker, cause=cause, text=text))
        if cause == "memory":
            state.share, state.calm = assignment.share / 2, 0
        if cause == "memory" or len(shard.failures) > 1:
            shard.share = assignment.share / 2
        if len(shard.failures) < self._limits.attempts:
            self._again.appendleft(assignment.index)
            return None
        return self._lose(assignment.index)

    def _lose(self, index: int) -> Lost:
        self.lost.append(Lost(index=index, failures=tuple(self._shards[index].failures)))
        return self.lost[-1]

    def overdue(self, now: float) -> list[str]:
        """Workers whose shard has run out of time."""
        return [worker for worker, deadline in self._deadlines() if now >= deadline]

    def deadline(self) -> float | None:
        """When the next shard runs out of time; None if nothing is running."""
        return min((deadline for _, deadline in self._deadlines()), default=None)

    def _deadlines(self) -> list[tuple[str, float]]:
        return [
            (worker, state.since + self._seconds(state.running.index))
            for worker, state in self._workers.items()
            if state.running is not None
        ]

    def _seconds(self, index: int) -> float:
        if self._limits.seconds is not None:
            return self._limits.seconds
        if self._slowest is None:
            return FIRST_LIMIT
        return max(LEAST_LIMIT, PATIENCE * self._slowest * max(self._shards[index].amount, 1.0))

    def _is_hopeless(self, worker: str) -> bool:
        """Whether a worker fails at everything while another does not: its device or its node is broken."""
        return self._workers[worker].streak >= HOPELESS and any(
            state.streak < HOPELESS for state in self._workers.values()
        )

    def _may(self, worker: str, index: int) -> bool:
        """Whether a shard may go to a worker: not where it failed, unless it failed with all who could take it."""
        failed_on = {failure.worker for failure in self._shards[index].failures}
        return worker not in failed_on or all(other in failed_on or self._is_hopeless(other) for other in self._workers)
