"""What the stages of one run share: the configuration, the places, and things that are loaded once and only if used."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistselect.model.loading import (
    LanguageModel,
    load_model,
    load_tokenizer,
    model_digest,
    tokenizer_digest,
    weights_digest,
)
from gistselect.run.config import RunConfig
from gistselect.run.progress import Reporter
from gistselect.run.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gistselect.data.pool import Pool
    from gistselect.data.templates import Template


class Run:
    """One run folder and its configuration. `live` replaces the model that `config.model` names."""

    def __init__(self, config: RunConfig, reporter: Reporter, live: LanguageModel | None = None) -> None:
        self.config = config
        self.reporter = reporter
        self.live = live
        self.output = config.output
        self.store = Store(config.output / "artifacts")

    @cached_property
    def pool(self) -> Pool:
        from gistselect.data.pool import open_pool

        return open_pool(self.config.pool, self.config, exclude=self.output)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.live.tokenizer if self.live else load_tokenizer(self.config.source)

    @cached_property
    def template(self) -> Template:
        from gistselect.data.templates import load_template

        return load_template(self.config.template, self.tokenizer)

    @cached_property
    def text_inputs(self) -> dict[str, Any]:
        """What token ids depend on, beside the rows."""
        return {
            "tokenizer": tokenizer_digest(self.tokenizer),
            "template": self.template.digest,
            "max_length": self.config.max_length,
        }

    @cached_property
    def model_inputs(self) -> dict[str, Any]:
        """What gradients and losses depend on, beside tokens and adapter."""
        weights = weights_digest(self.live.model) if self.live else model_digest(self.config.source)
        return {"model": weights, "dtype": self.config.dtype, "quantization": self.config.quantization}

    def load_model(self) -> LanguageModel:
        """The base model, freshly loaded. Raises `ModelError` with the remedy if it cannot be."""
        return load_model(self.config.source)

    def say(self, text: str) -> None:
        self.reporter.say(text)

    def path(self, name: str) -> Path:
        """A file of the output contract."""
        return self.output / name
