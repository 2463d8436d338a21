"""Trainings, and what is measured after them, as jobs: each is a part, which any worker with the model can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gistselect.errors import ArtifactMismatchError
from gistselect.increments import increments
from gistselect.run.engine import Engine
from gistselect.run.jobs import Job
from gistselect.run.progress import Reporter
from gistselect.run.sources import Sources
from gistselect.run.store import Artifact
from gistselect.training import ranks

if TYPE_CHECKING:
    from gistselect.run.arms import Training
    from gistselect.run.losses import Measured


class Trainable(Protocol):
    """A training with its key; picklable."""

    @property
    def title(self) -> str:
        """What it trains on, for people."""
        ...

    @property
    def artifact(self) -> Artifact: ...

    @property
    def n_steps(self) -> int:
        """Optimizer steps."""
        ...

    def train(self, reach: Callable[[int], None]) -> None:
        """Train, unless that is done; `reach` is told of the steps done so far."""
        ...


class _Alone(Job, Protocol):
    """A job whose parts need no common source, and take as long as they take."""

    @property
    def takes_its_time(self) -> bool:
        return True

    def open(self, sources: Sources) -> None:
        """Every part loads a model of its own; let go of another."""
        sources.close()


@dataclass(frozen=True, kw_only=True)
class Trainings(_Alone):
    """Several trainings."""

    parts: tuple[Trainable, ...]

    @property
    def unit(self) -> str:
        return "steps"

    @property
    def amounts(self) -> list[int]:
        """Optimizer steps of each."""
        return [part.n_steps for part in self.parts]

    def pending(self, index: int) -> bool:
        """Whether a training is not done."""
        return not self.parts[index].artifact.is_complete

    def do(self, index: int, sources: Sources) -> None:
        """Do one training, from where its folder has come to."""
        self.parts[index].train(increments(sources.advance))

    def describe(self, index: int) -> str:
        """What it trains on."""
        return f"the training on {self.parts[index].title}"

    def complete(self) -> None:
        """Raises `ArtifactMismatchError` if a training is missing."""
        for index in range(len(self.parts)):
            if self.pending(index):
                raise ArtifactMismatchError(f"{self.describe(index)} is missing; run again.")


@dataclass(frozen=True, kw_only=True)
class Losses(_Alone):
    """Several models on held-out items."""

    parts: tuple[Measured, ...]

    @property
    def unit(self) -> str:
        return "items"

    @property
    def amounts(self) -> list[int]:
        """Items of each model."""
        return [part.n_items for part in self.parts]

    def pending(self, index: int) -> bool:
        """Whether a model has not been measured on some target."""
        return bool(self.parts[index].missing)

    def do(self, index: int, sources: Sources) -> None:
        """Measure one model."""
        self.parts[index].measure(sources.advance)

    def describe(self, index: int) -> str:
        """Which model it is."""
        return f"the target losses of {self.parts[index].name}"

    def complete(self) -> None:
        """Raises `ArtifactMismatchError` if a loss is missing."""
        for index in range(len(self.parts)):
            if self.pending(index):
                raise ArtifactMismatchError(f"{self.describe(index)} are missing; run again.")


def shares_trainings(engine: Engine) -> bool:
    """Whether trainings go to the engine's workers: not where processes of a torchrun share each of them."""
    return engine.parallel and ranks.current() is None


def train_together(parts: Sequence[Training], engine: Engine, reporter: Reporter) -> None:
    """Do what is missing of these trainings on the engine's workers, each once."""
    distinct = {part.artifact.key: part for part in parts if not part.artifact.is_complete}
    if distinct:
        engine.run(Trainings(parts=tuple(distinct.values())), "trainings", reporter)


def measure_together(parts: Sequence[Measured], engine: Engine, reporter: Reporter) -> None:
    """Do what is missing of these losses on the engine's workers, each once."""
    distinct = {part.training: part for part in parts if part.missing}
    if distinct:
        engine.run(Losses(parts=tuple(distinct.values())), "target losses", reporter)
