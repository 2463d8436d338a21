"""Fits as a job: what the pool and the queries of several targets determine, each on a worker of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gistselect.errors import ArtifactMismatchError
from gistselect.representations.queries import Apart
from gistselect.run.cells import Fit, Preparation
from gistselect.run.jobs import Job
from gistselect.run.progress import Reporter
from gistselect.run.sources import Sources, SourceSpec


@dataclass(frozen=True, kw_only=True)
class Fits(Job):
    """Pending fits, or the preparations before them, that read the same thing; each is a part."""

    source: SourceSpec
    parts: tuple[Fit, ...] | tuple[Preparation, ...]

    @property
    def unit(self) -> str:
        return "tokens" if self.source.reads != "text" else "queries"

    @property
    def amounts(self) -> list[int]:
        """Tokens of the queries, however often they are read; of a preparation what is read is not known."""
        return [_amount(part) for part in self.parts]

    @property
    def counts_parts(self) -> bool:
        return isinstance(self.parts[0], Preparation)

    @property
    def needs_live_model(self) -> bool:
        return self.source.needs_live_model

    def pending(self, index: int) -> bool:
        return not self.parts[index].artifact.is_complete

    def open(self, sources: Sources) -> None:
        sources.open(self.source)

    def do(self, index: int, sources: Sources) -> None:
        """Fit one target, or prepare what all share."""
        part = self.parts[index]
        part.artifact.begin()
        with part.artifact.timed():
            source = sources.open(self.source)
            if isinstance(part, Preparation):
                part.save(source, self.source.pool)
                return
            with sources.read_often(part.representation.passes(len(part.queries.examples), source)):
                part.save(source)

    def describe(self, index: int) -> str:
        part = self.parts[index]
        if isinstance(part, Preparation):
            return f"what all targets of {part.representation.title} share"
        return f"the queries of {part.queries.target} for {part.representation.title}"

    def complete(self) -> None:
        """Raises `ArtifactMismatchError` if a fit is missing."""
        if missing := [index for index in range(len(self.parts)) if self.pending(index)]:
            raise ArtifactMismatchError(f"{self.describe(missing[0])} are missing; run again.")


def _amount(part: Fit | Preparation) -> int:
    if isinstance(part, Preparation):
        return 1
    return sum(example.n_tokens for example in part.queries.examples) or len(part.queries.records)


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
