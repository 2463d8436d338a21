"""Options of a prefilter: which representation, which share of the pool it leaves, and how its loss is measured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import BaseModel, ConfigDict, Field, field_validator

from gistselect.errors import ConfigError
from gistselect.groups import METHOD
from gistselect.representations.interface import Reads, Representation
from gistselect.representations.specification import parse

READING: tuple[Reads, ...] = ("text", "hidden", "gradient")
"""What a pass reads of a row, the dearest last."""
_FORM = re.compile(r"(?P<representation>.+):\s*(?P<percent>\d+(?:\.\d+)?)\s*%\s*")


@dataclass(frozen=True, kw_only=True)
class Narrowing:
    """A cheap representation, and what it leaves to the dear ones."""

    text: str
    """As the user wrote it."""
    representation: Representation
    share: float
    """Of the pool's rows, in (0, 1]."""
    n_sampled: int | None
    """Other rows that are scored to measure the loss; None for the default."""

    def narrows(self, representation: Representation) -> bool:
        """Whether a representation reads more of a row than the prefilter does."""
        return READING.index(representation.reads) > READING.index(self.representation.reads)


class PrefilterOptions(BaseModel):
    """Which part of the pool the dear representations read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    prefilter: Annotated[str | None, Parameter(group=METHOD)] = None
    """Let a cheap representation decide which share of the pool the dear ones read: bm25:20%, rds:10%,
    dsir:smoothing=1:30%. It holds for all that read more than it does (text, then a forward pass, then gradients)."""
    prefilter_sample: Annotated[int | None, Parameter(group=METHOD)] = Field(default=None, ge=0)
    """Random rows beyond that share that are scored all the same, to measure what the prefilter loses; by default 2 %
    of them, at least 200. They are never selected."""

    @field_validator("prefilter", "prefilter_sample", mode="before")
    @classmethod
    def _no_prefilter(cls, value: Any) -> Any:
        return None if isinstance(value, str) and value.lower() == "none" else value

    def narrowing(self) -> Narrowing | None:
        """The prefilter, if there is one. Raises `ConfigError` if it is not understood."""
        if self.prefilter is None:
            return None
        match = _FORM.fullmatch(self.prefilter)
        share = float(match["percent"]) / 100 if match else 0.0
        if match is None or not 0 < share <= 1:
            raise ConfigError(
                f"--prefilter {self.prefilter!r} is not understood; write a representation and the share of the pool "
                "that it leaves, above 0% and up to 100%: bm25:20%."
            )
        return Narrowing(
            text=self.prefilter,
            representation=parse(match["representation"], self),
            share=share,
            n_sampled=self.prefilter_sample,
        )
