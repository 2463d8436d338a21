"""Options of reading rows and of making tokens of them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ReadOptions(BaseModel):
    """How rows become conversations. Whatever the records of a pool depend on is here."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    format: Literal["auto", "messages", "prompt_completion", "alpaca", "sharegpt"] = "auto"
    """Shape of the rows."""

    @property
    def reading(self) -> ReadOptions:
        """These options alone, also of a configuration that holds more."""
        return ReadOptions(**{name: getattr(self, name) for name in ReadOptions.model_fields})


class TextOptions(ReadOptions):
    """How rows become token ids."""

    template: str = "tulu"
    """How a conversation becomes text: tulu (published), model (the tokenizer's chat template) or a jinja file."""
    max_length: int = Field(default=2048, ge=2)
    """Longest example in tokens; longer ones are cut."""
