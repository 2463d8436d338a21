"""What a pass reads, described by configurations and paths, and opened where the work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistselect.model.config import ModelConfig
from gistselect.model.engine_config import EngineConfig
from gistselect.representations.interface import GradientSource, HiddenSource, Reads
from gistselect.run.cells import Cell, load_fit
from gistselect.run.ingest import RecordRows, TokenRows
from gistselect.run.store import Artifact, verify

if TYPE_CHECKING:
    from gistselect.model.loading import LanguageModel


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """What a pass reads; picklable, so that a worker process can open it."""

    reads: Reads
    model: ModelConfig | None
    """None for text, and for a live model, which cannot leave its process."""
    adapter: Path | None
    """PEFT folder; None where no adapter is wanted, or a live model's own."""
    engine: EngineConfig
    records: Artifact
    tokens: Artifact | None
    kept: Artifact | None = None
    """What a prefilter left of the rows; None if all are read."""
    warmup: Artifact | None = None
    """What `adapter` is of, if it was trained in the run."""

    @property
    def needs_live_model(self) -> bool:
        """Whether the model was given as an object, which cannot leave its process."""
        return self.model is None and self.reads != "text"

    @property
    def rows(self) -> RecordRows | TokenRows:
        """The rows that a pass over this source goes through."""
        return replace(self.pool, kept=self.kept)

    @property
    def pool(self) -> RecordRows | TokenRows:
        """All rows of the pool."""
        if self.reads == "text":
            return RecordRows(self.records)
        assert self.tokens is not None
        return TokenRows(self.tokens)


class Sources:
    """Opens sources, one at a time: a model is loaded once and let go when the next is wanted."""

    def __init__(self, live: LanguageModel | None = None) -> None:
        self._live = live
        self._opened: tuple[SourceSpec, Any] | None = None
        self._listener: Callable[[int], None] | None = None
        self._times, self._read = 1, 0
        self._collectors: dict[str, Any] = {}
        self._until_closed = ExitStack()
        self.share = 1.0
        """Part of the token budget that the next shard may use."""

    @contextmanager
    def listening(self, listener: Callable[[int], None]) -> Iterator[None]:
        """Within this context `listener` is told of the tokens that each batch has read."""
        self._listener = listener
        try:
            yield
        finally:
            self._listener = None

    @contextmanager
    def read_often(self, times: int) -> Iterator[None]:
        """Within this context what is read so many times counts once."""
        self._times, self._read = times, 0
        try:
            yield
        finally:
            self._times = 1

    def open(self, spec: SourceSpec) -> Any:
        """The source itself: a `GradientSource`, a `HiddenSource`, or the records.

        Raises `ModelError` with the remedy if the model or its adapter cannot be loaded.
        """
        if self._opened is None or self._opened[0] != spec:
            self.close()
            self._opened = (spec, self._make(spec))
        source = self._opened[1]
        if isinstance(source, GradientSource):
            source.engine.forward.begin(self.share)
        elif isinstance(source, HiddenSource):
            source.forward.begin(self.share)
        return source

    def collector(self, cell: Cell, source: Any) -> Any:
        """The collector of a cell, made once: what was fitted is read once."""
        if cell.features.key not in self._collectors:
            fitted = load_fit(cell.fit) if cell.fit is not None else None
            self._collectors[cell.features.key] = cell.representation.collector(fitted, source)
        return self._collectors[cell.features.key]

    def close(self) -> None:
        """Let the model go; a live one gets its flags back."""
        if self._opened is not None:
            source = self._opened[1]
            if isinstance(source, GradientSource):
                source.engine.close()
            self._opened = None
            self._collectors.clear()
        self._until_closed.close()

    def _make(self, spec: SourceSpec) -> Any:
        if spec.reads == "text":
            return RecordRows(spec.records)
        from gistselect.model.adapters import load_adapter
        from gistselect.model.loading import load_model

        if spec.model is None:
            assert self._live is not None
            model = self._live
        else:
            model = load_model(spec.model)
        if spec.adapter is not None:
            if spec.warmup is not None:
                spec.warmup.bring()
            verify(spec.adapter)
            model = load_adapter(model, spec.adapter)
        if spec.reads == "hidden":
            from gistselect.model.forward import Forward

            if spec.model is None:
                # A forward pass reads the pretrained model, also where a live one carries an adapter.
                self._until_closed.enter_context(model.model.disable_adapter())
            packing, batch_tokens = spec.engine.packing, spec.engine.batch_tokens
            return HiddenSource(forward=Forward(model, packing, batch_tokens, on_tokens=self.advance))
        from gistselect.model.gradients import GradientEngine

        return GradientSource(engine=GradientEngine(model, spec.engine, self.advance), checkpoint=spec.adapter)

    def advance(self, tokens: int) -> None:
        """Tell the listener of work done."""
        before = self._read // self._times
        self._read += tokens
        if self._listener is not None:
            self._listener(self._read // self._times - before)
