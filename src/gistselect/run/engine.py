"""Engines: who does the shards of a pass. They know nothing of representations; `work` does."""

from __future__ import annotations

from typing import Protocol

from gistselect.run.passes import Pass, complete, work
from gistselect.run.progress import Reporter
from gistselect.run.sources import Sources


class Engine(Protocol):
    """Brings a pass to its end; what is done already is left alone."""

    def run(self, job: Pass, name: str, reporter: Reporter) -> None:
        """Do every missing shard and mark the outputs as done."""
        ...


class Inline:
    """One shard after the other, in this process."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def run(self, job: Pass, name: str, reporter: Reporter) -> None:
        """See `Engine`."""
        rows = job.source.rows
        amounts = rows.amounts
        with reporter.step(name, total=sum(amounts), unit=rows.unit) as step, self._sources.listening(step.advance):
            for shard, amount in enumerate(amounts):
                if not job.pending(shard):
                    step.find_done(amount)
                    continue
                end = step.done + amount
                work(job, shard, self._sources)
                step.reach(end)
        complete(job, len(amounts))
