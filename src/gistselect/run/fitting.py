"""Fits as a job: what the pool and the queries of several targets determine, each on a worker of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gistselect.errors import ArtifactMismatchError
from gistselect.representations.queries import Apart
from gistselect.run.cells import Fit, Preparation
from gistselect.run.jobs import Job
from gistselect.run.progress import Reporter
from gistselect.run.sources import Sources, SourceSpec

Part = TypeVar("Part", Fit, Preparation)


@dataclass(frozen=True, kw_only=True)
class _OfOneSource(Job, Generic[Part]):
    """Pending parts that read the same source; each has an artifact of its own."""

    source: SourceSpec
    parts: tuple[Part, ...]

    @property
    def needs_live_model(self) -> bool:
        return self.source.needs_live_model

    def pending(self, index: int) -> bool:
        return not self.parts[index].artifact.is_complete

    def open(self, sources: Sources) -> None:
        sources.open(self.source)

    def do(self, index: int, sources: Sources) -> None:
        part = self.parts[index]
        part.artifact.begin()
        with part.artifact.timed():
            self.save(part, sources)

    @abstractmethod
    def save(self, part: Part, sources: Sources) -> None:
        """Compute one part and write it."""
        ...

    def complete(self) -> None:
        """Raises `ArtifactMismatchError` if a part is missing."""
        if missing := [index for index in range(len(self.parts)) if self.pending(index)]:
            raise ArtifactMismatchError(f"{self.describe(missing[0])} are missing; run again.")


@dataclass(frozen=True, kw_only=True)
class Preparations(_OfOneSource[Preparation]):
    """What all targets share, computed before the fits. How much of the pool each reads is not known."""

    @property
    def counts_parts(self) -> bool:
        return True

    @property
    def unit(self) -> str:
        return self.source.rows.unit

    @property
    def amounts(self) -> list[int]:
        return [1] * len(self.parts)

    def save(self, part: Preparation, sources: Sources) -> None:
        part.save(sources.open(self.source), self.source.pool)

    def describe(self, index: int) -> str:
        return f"what all targets of {self.parts[index].representation.title} share"


@dataclass(frozen=True, kw_only=True)
class Fits(_OfOneSource[Fit]):
    """What the queries of each target determine."""

    @property
    def unit(self) -> str:
        return "tokens" if self.source.reads != "text" else "queries"

    @property
    def amounts(self) -> list[int]:
        """Tokens of the queries, however often they are read."""
        queries = [part.queries for part in self.parts]
        return [sum(example.n_tokens for example in one.examples) or len(one.records) for one in queries]

    def save(self, part: Fit, sources: Sources) -> None:
        source = sources.open(self.source)
        with sources.read_often(part.representation.passes(len(part.queries.examples), source)):
            part.save(source)

    def describe(self, index: int) -> str:
        part = self.parts[index]
        return f"the queries of {part.queries.target} for {part.representation.title}"


def announce(fit: Fit, reporter: Reporter) -> None:
    """Say what is fitted."""
    queries = fit.queries
    n_groups = len(queries.group_names)
    where = f" at {fit.checkpoint.name}" if fit.checkpoint else ""
    if isinstance(queries, Apart):
        reporter.say(f"  for the stability of {fit.representation.title}, {n_groups:,} numbers a row beside{where}.")
        return
    reporter.say(
        f"{fit.representation.title}, target {queries.target}{where}: {len(queries.records):,} queries in "
        f"{n_groups} group{'s' * (n_groups != 1)}."
    )


def tell(fits: Sequence[Fit], reporter: Reporter) -> None:
    """Say what came of them."""
    for fit in fits:
        facts = fit.artifact.facts
        if "rank" in facts:
            reporter.say(
                f"  subspace: rank {facts['rank']} of {facts['queries']} keeps {facts['explained_variance']:.1%} of "
                "the gradient variance."
            )
