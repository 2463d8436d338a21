"""Jobs: work that falls into parts which any process can do alone, in any order, twice without harm."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gistselect.run.sources import Sources


class Job(Protocol):
    """A frozen, picklable description. The files that a part writes are the only message: there is done.

    What is answered here holds for most; a job says what is otherwise with it.
    """

    @property
    @abstractmethod
    def unit(self) -> str:
        """What `amounts` counts."""
        ...

    @property
    @abstractmethod
    def amounts(self) -> Sequence[int]:
        """How much there is to do in each part."""
        ...

    @property
    def counts_parts(self) -> bool:
        """Whether nothing is known of the parts but how many there are, so that `amounts` has a one for each."""
        return False

    @property
    def n_rows(self) -> int | None:
        """Rows of all parts together, if `amounts` counts something else and this is known."""
        return None

    @property
    def needs_live_model(self) -> bool:
        """Whether it can be done in this process alone, since it reads a model that was given as an object."""
        return False

    @property
    def takes_its_time(self) -> bool:
        """Whether nothing says how long a part may take, so that no worker counts as hung over one."""
        return False

    @abstractmethod
    def pending(self, index: int) -> bool:
        """Whether something of this part is missing."""
        ...

    def open(self, sources: Sources) -> None:
        """Load what every part needs, so that it does not count as the time of one of them."""

    @abstractmethod
    def do(self, index: int, sources: Sources) -> None:
        """Do one part, if it is not done. Raises what the work raises."""
        ...

    @abstractmethod
    def describe(self, index: int) -> str:
        """Which rows these are, for people."""
        ...

    def give_up(self, index: int, reason: str) -> bool:
        """List the rows of a part as lost, so that the job can end without them; False if it cannot."""
        return False

    @abstractmethod
    def complete(self) -> None:
        """Mark the outputs as done. Raises `ArtifactMismatchError` if a part is missing."""
        ...
