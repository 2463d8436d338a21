"""Stage `features`: what the queries determine, then one pass over the pool for all methods and targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from gistselect.model.config import ModelConfig
from gistselect.model.engine_config import EngineConfig
from gistselect.representations.interface import Reads
from gistselect.run.cells import Cell, Checkpoint, Column, Fit, Preparation
from gistselect.run.earlier import Stretch, n_rows, stretches
from gistselect.run.engine import Engine
from gistselect.run.fitting import Fits, Preparations, announce, tell
from gistselect.run.passes import Pass
from gistselect.run.progress import Reporter
from gistselect.run.sources import Sources, SourceSpec
from gistselect.run.store import Artifact
from gistselect.run.warmup import Given, WarmUp


@dataclass(frozen=True, kw_only=True)
class Features:
    """Fits and cells of every column."""

    columns: tuple[Column, ...]
    model: ModelConfig | None
    """None for a live model, and where only text is read."""
    engine_config: EngineConfig
    records: Artifact
    tokens: Artifact | None
    warmup: WarmUp | Given | None
    """Where the checkpoints come from; None if nothing reads gradients."""
    kept: Mapping[Reads, Artifact] = field(default_factory=dict)
    """What a prefilter leaves to passes that read so much; the others read all rows."""
    name: ClassVar[str] = "features"

    @property
    def fits(self) -> list[Fit]:
        """Every fit once."""
        fits = (fit for column in self.columns for fit, _ in column.entries)
        return list({fit.artifact.key: fit for fit in fits}.values())

    @property
    def preparations(self) -> list[Preparation]:
        """Every preparation once."""
        return _preparations(self.fits)

    @property
    def cells(self) -> list[Cell]:
        """Every cell once."""
        cells = (cell for column in self.columns for _, cell in column.entries)
        return list({cell.features.key: cell for cell in cells}.values())

    @property
    def reads_gradients(self) -> bool:
        """Whether a pass needs the checkpoints of the warm-up."""
        return any(cell.representation.reads == "gradient" for cell in self.cells)

    @property
    def artifacts(self) -> list[Artifact]:
        """Everything that the stage makes."""
        made = (one.artifact for one in [*self.preparations, *self.fits])
        return [*made, *(cell.features for cell in self.cells)]

    def run(self, reporter: Reporter, engine: Engine, sources: Sources) -> None:
        """Compute what is missing, source by source."""
        pending = [fit for fit in self.fits if not fit.artifact.is_complete]
        cells = [cell for cell in self.cells if not cell.is_complete]
        for (reads, checkpoint), fits, here in _by_source(pending, cells):
            source = self.source(reads, checkpoint)
            self._from_queries(source, fits, reporter, engine, sources)
            if here:
                job = self._pass(source, here, reporter)
                for artifact in job.outputs:
                    artifact.begin()
                engine.run(job, pass_name(reads, checkpoint, here), reporter)
        sources.close()

    def _pass(self, source: SourceSpec, cells: Sequence[Cell], reporter: Reporter) -> Pass:
        """The pass for pending cells, with what is known of the rows that an earlier pool had too."""
        job = Pass(source=source, cells=tuple(cells))
        known = self.known(cells)
        if known:
            least = min(map(n_rows, known.values()))
            of = list(dict.fromkeys(one.representation.title for one in cells if one.features.key in known))
            some = f" for {', '.join(of)}" if source.reads == "text" else ""
            reporter.say(f"{least:,} rows of the pool were there before; what is known of them{some} is taken over.")
        return replace(job, known=known)

    def known(self, cells: Sequence[Cell]) -> dict[str, tuple[Stretch, ...]]:
        """Rows of which an earlier pool's outputs hold what those of these cells are to hold, by the key of each."""
        cells = [cell for cell in cells if cell.representation.is_of_the_row_alone]
        outputs = [cell.features for cell in cells]
        outputs += dict.fromkeys(cell.measured for cell in cells if cell.measured is not None)
        found = {artifact.key: stretches(artifact, self.records) for artifact in outputs}
        return {key: known for key, known in found.items() if known}

    def _from_queries(
        self, source: SourceSpec, fits: Sequence[Fit], reporter: Reporter, engine: Engine, sources: Sources
    ) -> None:
        """What the pool and the queries determine: in this process with a count of passes, or on several workers."""
        preparations = [one for one in _preparations(fits) if not one.artifact.is_complete]
        if not engine.parallel:
            for one in preparations:
                self._prepare(one, source, sources, reporter)
            for fit in fits:
                self._fit(fit, source, sources, reporter)
            return
        if preparations:
            engine.run(Preparations(source=source, parts=tuple(preparations)), "what all targets share", reporter)
        if fits:
            for fit in fits:
                announce(fit, reporter)
            engine.run(Fits(source=source, parts=tuple(fits)), "queries", reporter)
            tell(fits, reporter)

    def source(self, reads: Reads, checkpoint: Checkpoint | None) -> SourceSpec:
        """What a pass of that kind reads; the checkpoint must exist."""
        adapters = {one.checkpoint: one.adapter for one in self.warmup.placed()} if checkpoint and self.warmup else {}
        return SourceSpec(
            reads=reads,
            model=self.model if reads != "text" else None,
            adapter=adapters[checkpoint] if checkpoint else None,
            engine=self.engine_config,
            records=self.records,
            tokens=self.tokens,
            kept=self.kept.get(reads),
            warmup=self.warmup.artifact if checkpoint and isinstance(self.warmup, WarmUp) else None,
        )

    def _prepare(self, preparation: Preparation, spec: SourceSpec, sources: Sources, reporter: Reporter) -> None:
        where = f" at {preparation.checkpoint.name}" if preparation.checkpoint else ""
        name = f"{preparation.representation.title}: what all targets share{where}"
        preparation.artifact.begin()
        with preparation.artifact.timed():
            source = sources.open(spec)
            with reporter.step(name, total=None, unit=spec.rows.unit) as step, sources.listening(step.advance):
                preparation.save(source, spec.pool)

    def _fit(self, fit: Fit, spec: SourceSpec, sources: Sources, reporter: Reporter) -> None:
        announce(fit, reporter)
        queries = fit.queries
        n_tokens = sum(example.n_tokens for example in queries.examples)
        fit.artifact.begin()
        with fit.artifact.timed():
            source = sources.open(spec)
            total = n_tokens * fit.representation.passes(len(queries.examples), source) if n_tokens else None
            with reporter.step("queries", total=total, unit="tokens") as step, sources.listening(step.advance):
                fit.save(source)
        tell([fit], reporter)


def _preparations(fits: Sequence[Fit]) -> list[Preparation]:
    needed = (fit.preparation for fit in fits if fit.preparation is not None)
    return list({one.artifact.key: one for one in needed}.values())


def pass_name(reads: str, checkpoint: Checkpoint | None, cells: Sequence[Cell]) -> str:
    what = {"gradient": "pool gradients", "hidden": "pool forward pass", "text": "pool text"}[reads]
    titles = ", ".join(dict.fromkeys(cell.representation.title for cell in cells))
    return f"{what} at {checkpoint.name} ({titles})" if checkpoint else f"{what} ({titles})"


def _by_source(
    fits: Sequence[Fit], cells: Sequence[Cell]
) -> Iterator[tuple[tuple[Reads, Checkpoint | None], list[Fit], list[Cell]]]:
    """((reads, checkpoint), fits, cells) of each source, in the order in which they are first needed."""
    keys: dict[tuple[Reads, Checkpoint | None], None] = dict.fromkeys(
        (one.representation.reads, one.checkpoint) for one in (*fits, *cells)
    )
    for key in keys:
        yield (
            key,
            [one for one in fits if (one.representation.reads, one.checkpoint) == key],
            [one for one in cells if (one.representation.reads, one.checkpoint) == key],
        )
