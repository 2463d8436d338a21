"""The options of a selection: how much, in which order, under which constraints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gistselect.errors import ConfigError
from gistselect.groups import METHOD, many
from gistselect.selection.budget import Amount, parse_budget
from gistselect.selection.limits import parse_limits
from gistselect.selection.selector import Selector
from gistselect.specification import parse


class SelectionOptions(BaseModel):
    """What a selection depends on beside the scores."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    budget: Annotated[str | int | float, Parameter(group=METHOD)] = "5%"
    """How much to select: a share of the pool (5% or 0.05), rows (500, 10k), or tokens (2M-tokens,
    500k-supervised-tokens). The first row that no longer fits into a budget of tokens ends the selection."""
    selector: Annotated[str, Parameter(group=METHOD)] = "top_k"
    """The order in which rows are taken: top_k (best score first), round_robin (targets take turns), doubly_greedy,
    vote, knn, ot, k_center, facility_location or gip, each with options of its own (round_robin:turns=queries)."""

    source_max: Annotated[tuple[str, ...], many(METHOD)] = ()
    """Most of a source, as SOURCE=AMOUNT: a share of the budget (alpaca=10%), or a number of rows or tokens, whichever
    --budget counts (alpaca=500); '*=30%' for every source without a limit of its own."""
    source_min: Annotated[tuple[str, ...], many(METHOD)] = ()
    """Least of a source, in the same words; the place is kept for its best rows."""
    dedup: Annotated[Literal["exact", "near"] | None, Parameter(group=METHOD)] = None
    """Select no row that repeats a better ranked one: with the same turns but for white space (exact), or with most of
    its runs of five words in common (near, by MinHash)."""
    dedup_threshold: Annotated[float, Parameter(group=METHOD)] = Field(default=0.8, ge=0.5, le=1)
    """With --dedup near: the share of runs of words in common (Jaccard index, estimated) from which rows are alike."""
    decontaminate: Annotated[tuple[str, ...], many(METHOD)] = ()
    """Select no row that shares 13 words in a row with the queries or held-out items of these tasks or files. The
    overlap of the selection with the run's own targets is reported in any case."""

    @field_validator("source_max", "source_min", "decontaminate", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        """One is a list, limits may be a mapping, and `none` takes an option of run.yaml back."""
        if isinstance(value, Mapping):
            return tuple(f"{source}={amount}" for source, amount in value.items())
        value = (str(value),) if isinstance(value, (str, Path)) else tuple(value)
        return () if value == ("none",) else tuple(map(str, value))

    @field_validator("dedup", mode="before")
    @classmethod
    def _no_dedup(cls, value: Any) -> Any:
        return None if value == "none" else value

    @model_validator(mode="after")
    def _limits(self) -> SelectionOptions:
        try:
            _ = self.most, self.least
        except ConfigError as error:
            raise ValueError(str(error).rstrip(".")) from None
        return self

    @field_validator("budget")
    @classmethod
    def _budget(cls, value: str | int | float) -> str | int | float:
        try:
            parse_budget(value)
        except ConfigError as error:
            raise ValueError(str(error).rstrip(".")) from None
        return value

    @property
    def most(self) -> dict[str, Amount]:
        """The limits of --source-max."""
        return parse_limits("source-max", self.source_max)

    @property
    def least(self) -> dict[str, Amount]:
        """The limits of --source-min."""
        return parse_limits("source-min", self.source_min)

    @property
    def order(self) -> Selector:
        """The selector. Raises `ConfigError` for an unknown name or option."""
        return parse("selector", self.selector, self)

    @property
    def selection(self) -> SelectionOptions:
        """These options alone, where they are part of more."""
        return SelectionOptions(**{name: getattr(self, name) for name in SelectionOptions.model_fields})

    @property
    def selection_inputs(self) -> dict[str, Any]:
        """What a selection's key holds of them, as JSON; but for the first two, a default adds nothing to it."""
        stored = self.selection.model_dump(mode="json", exclude_defaults=True)
        if self.dedup != "near":
            stored.pop("dedup_threshold", None)
        return {**stored, "budget": str(self.budget), "selector": self.selector}
