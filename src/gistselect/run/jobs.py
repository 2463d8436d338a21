"""Jobs: work that falls into parts which any process can do alone, in any order, twice without harm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from gistselect.run.sources import Sources


class Job(Protocol):
    """A frozen, picklable description. The files that a part writes are the only message: there is done."""

    @property
    def unit(self) -> str:
        """What `amounts` counts."""
        ...

    @property
    def amounts(self) -> Sequence[int]:
        """How much there is to do in each part."""
        ...

    @property
    def needs_live_model(self) -> bool:
        """Whether it can be done in this process alone, since it reads a model that was given as an object."""
        ...

    @property
    def takes_its_time(self) -> bool:
        """Whether nothing says how long a part may take, so that no worker counts as hung over one."""
        ...

    def pending(self, index: int) -> bool:
        """Whether something of this part is missing."""
        ...

    def open(self, sources: Sources) -> None:
        """Load what every part needs, so that it does not count as the time of one of them."""
        ...

    def do(self, index: int, sources: Sources) -> None:
        """Do one part, if it is not done. Raises what the work raises."""
        ...

    def describe(self, index: int) -> str:
        """Which rows these are, for people."""
        ...

    def give_up(self, index: int, reason: str) -> bool:
        """List the rows of a part as lost, so that the job can end without them; False if it cannot."""
        ...

    def complete(self) -> None:
        """Mark the outputs as done. Raises `ArtifactMismatchError` if a part is missing."""
        ...


@runtime_checkable
class CountsRows(Protocol):
    """A job that counts its parts in something else, and knows how many rows they come to."""

    @property
    def n_rows(self) -> int: ...


def rows_of(job: Job) -> int | None:
    """Rows that all parts of a job have together; None if it does not say."""
    return job.n_rows if isinstance(job, CountsRows) else None
