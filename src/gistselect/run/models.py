"""A model as a run sees it before it is loaded: what it is, for keys, and how it reads rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistselect.model.config import ModelConfig
from gistselect.model.engine_config import EngineConfig
from gistselect.run import ingest
from gistselect.run.identity import ModelIdentity, identify
from gistselect.run.reading import ReadPool, Tokenise
from gistselect.run.store import Store
from gistselect.run.targets import Encoder

if TYPE_CHECKING:
    from gistselect.model.adapter_shapes import NamedShapes
    from gistselect.model.loading import LanguageModel
    from gistselect.run.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class RunModel:
    """The model that scores, or the one that is fine-tuned."""

    model: ModelConfig | LanguageModel
    engine: EngineConfig
    template: str
    max_length: int
    omit_unshown: bool = False
    """See `load_template`."""
    adapter: Path | None = None
    """An adapter of the user's, whose folder may hold the tokenizer."""

    @property
    def name(self) -> str:
        """What people call it: the last part of its folder or hub id."""
        return Path(self.model.path).name if isinstance(self.model, ModelConfig) else "the live model"

    @property
    def config(self) -> ModelConfig | None:
        """The model as a worker can load it; None for a live one."""
        return self.model if isinstance(self.model, ModelConfig) else None

    @cached_property
    def identity(self) -> ModelIdentity:
        """Raises `ModelError` if the model is not there."""
        return identify(self.model, self.engine)

    @cached_property
    def encoder(self) -> Encoder:
        """Tokenizer and template."""
        from gistselect.data.templates import load_template
        from gistselect.model.loading import load_tokenizer

        live = None if isinstance(self.model, ModelConfig) else self.model
        tokenizer = live.tokenizer if live else load_tokenizer(self.model, self.adapter)  # pyright: ignore[reportArgumentType]
        template = load_template(self.template, tokenizer, omit_unshown=self.omit_unshown)
        return Encoder(template=template, tokenizer=tokenizer, max_length=self.max_length)

    @cached_property
    def text_inputs(self) -> dict[str, Any]:
        """What token ids depend on, beside the rows."""
        from gistselect.model.loading import tokenizer_digest

        return {
            "tokenizer": tokenizer_digest(self.encoder.tokenizer),
            "template": self.encoder.template.digest,
            "max_length": self.encoder.max_length,
        }

    def tokenise(self, records: ReadPool, store: Store) -> Tokenise:
        """The stage that makes the records this model's tokens; models with one tokenizer share it."""
        artifact = store.artifact("tokens", ingest.TOKENS_VERSION, **self.text_inputs, records=records.artifact.key)
        return Tokenise(
            records=records,
            tokenizer=self.encoder.tokenizer,
            template=self.encoder.template,
            max_length=self.encoder.max_length,
            artifact=artifact,
        )


def adapters_of(config: RunConfig, live: LanguageModel | None) -> list[NamedShapes]:
    """Shapes of the adapter's matrices at each checkpoint, from files of the model and the adapters but no weight.

    Raises `ModelError` if one is missing or damaged.
    """
    from gistselect.model.adapter_shapes import shapes_live, shapes_planned, shapes_stored

    if live is not None:
        return [shapes_live(live)]
    if folders := config.adapter_folders:
        return [shapes_stored(folder) for folder in folders]
    return [shapes_planned(config.source, config.warmup.adapter)]
