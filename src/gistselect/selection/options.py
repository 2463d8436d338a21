"""The options of a selection: how much, in which order, under which constraints."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import BaseModel, ConfigDict, field_validator

from gistselect.errors import ConfigError
from gistselect.groups import METHOD
from gistselect.selection.budget import parse_budget
from gistselect.selection.selector import Selector
from gistselect.specification import parse


class SelectionOptions(BaseModel):
    """What a selection depends on beside the scores."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    budget: Annotated[str | int | float, Parameter(group=METHOD)] = "5%"
    """How much to select: a share of the pool (5% or 0.05) or a number of rows (500)."""
    selector: Annotated[str, Parameter(group=METHOD)] = "top_k"
    """The order in which rows are taken: top_k (best score first), round_robin (targets take turns), doubly_greedy,
    vote, knn, ot, k_center, facility_location or gip, each with options of its own (round_robin:turns=queries)."""

    @field_validator("budget")
    @classmethod
    def _budget(cls, value: str | int | float) -> str | int | float:
        try:
            parse_budget(value)
        except ConfigError as error:
            raise ValueError(str(error).rstrip(".")) from None
        return value

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
        return {**stored, "budget": str(self.budget), "selector": self.selector}
