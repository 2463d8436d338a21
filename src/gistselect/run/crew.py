"""What an engine needs of its workers, wherever they are: processes, actors of a cluster, or a simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gistselect.errors import GistSelectError
from gistselect.run.jobs import Job
from gistselect.run.scheduling import Assignment, Cause


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A worker offers itself."""

    worker: str


@dataclass(frozen=True, kw_only=True)
class Left:
    """A worker is gone and does not come back under this name."""

    worker: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A worker has loaded what its job needs and begins with its part."""

    worker: str


@dataclass(frozen=True, kw_only=True)
class Advanced:
    """A worker has read so much more, in the job's unit."""

    worker: str
    amount: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """A worker has written its part."""

    worker: str


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A worker did not bring its part to its end; it can be given another."""

    worker: str
    cause: Cause
    text: str
    error: GistSelectError | None = None
    """Set if the work itself found something that the user has to mend: another attempt would find it again."""


Event = Joined | Left | Opened | Advanced | Done | Failed


def answered(worker: str, answer: Sequence[Any]) -> Done | Failed:
    """What a worker's answer means; see `worker.attempt`."""
    match answer:
        case ("done",):
            return Done(worker=worker)
        case ("wrong", kind, text):
            return Failed(worker=worker, cause="error", text=text, error=kind(text))
        case (_, cause, text):
            return Failed(worker=worker, cause=cause, text=text)
        case _:
            raise ValueError(answer)


class Crew(Protocol):
    """Workers. One job at a time; they keep what they have opened between jobs."""

    @property
    def elsewhere(self) -> bool:
        """Whether workers may be on other machines than this process."""
        ...

    def now(self) -> float:
        """Seconds on a clock that only goes forward."""
        ...

    def begin(self, job: Job) -> Sequence[str]:
        """Get ready for a job; the workers that there are."""
        ...

    def give(self, worker: str, assignment: Assignment) -> None:
        """Have a free worker do a part of the job."""
        ...

    def stop(self, worker: str) -> str:
        """End what a worker is at, by force; it can be given another part. What it last said."""
        ...

    def wait(self, until: float | None) -> Sequence[Event]:
        """What happened next; nothing if it is `until` (on this clock) before anything does."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
