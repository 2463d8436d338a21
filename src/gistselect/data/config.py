"""Options of reading rows and of making tokens of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import BaseModel, ConfigDict, Field, field_validator

from gistselect.data.columns import PLACES, ROLES
from gistselect.groups import DATA, many

Format = Literal["auto", "messages", "prompt_completion", "alpaca", "sharegpt", "pair", "turns", "text"]


class ReadOptions(BaseModel):
    """How rows become conversations. Whatever the records of a pool depend on is here."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    format: Annotated[Format, Parameter(group=DATA)] = "auto"
    """Shape of the rows."""
    columns: Annotated[tuple[str, ...], many(DATA)] = ()
    """Where things stand in columns of other names: prompt=Question completion=Answer system=Preamble. Holds for the
    pool and for targets of your own, wherever a row has such a column."""
    roles: Annotated[tuple[str, ...], many(DATA)] = ()
    """Names of roles beyond the usual ones, in pool and target: agent=assistant customer=user."""
    separator: Annotated[str | None, Parameter(group=DATA)] = None
    """For rows of one text: what stands right before the answer; only what follows its last place is learned."""
    supervise: Annotated[Literal["all", "last"], Parameter(group=DATA)] = "all"
    """Learn from every answer of a conversation, or from its last one."""
    pool_revision: Annotated[str | None, Parameter(group=DATA)] = None
    """Branch, tag or commit of the hub data sets of the pool."""

    @field_validator("columns", "roles", mode="before")
    @classmethod
    def _as_pairs(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return tuple(f"{name}={column}" for name, column in value.items())
        if isinstance(value, str):
            value = (value,)
        return tuple(pair for given in value for pair in str(given).split(",") if pair)

    @field_validator("columns")
    @classmethod
    def _known_places(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pair in value:
            place, equals, column = pair.partition("=")
            if not equals or not column or place not in PLACES:
                raise ValueError(f"{pair!r} is not of the form place=column with a place among {', '.join(PLACES)}")
        return value

    @field_validator("roles")
    @classmethod
    def _known_roles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pair in value:
            name, _, role = pair.partition("=")
            if not name or role not in ROLES:
                raise ValueError(f"{pair!r} is not of the form name=role with a role among {', '.join(ROLES)}")
        return value

    @property
    def reading(self) -> ReadOptions:
        """These options alone, also of a configuration that holds more."""
        return ReadOptions(**{name: getattr(self, name) for name in ReadOptions.model_fields})


class TextOptions(ReadOptions):
    """How rows become token ids."""

    template: Annotated[str, Parameter(group=DATA)] = "tulu"
    """How a conversation becomes text: tulu (published), model (the tokenizer's chat template) or a jinja file."""
    unshown: Annotated[Literal["quarantine", "omit"], Parameter(group=DATA)] = "quarantine"
    """A row with reasoning, calls or tools that the model's chat template does not show: listed in the quarantine, or
    used without them, as trainers do; how many are is said in a line of the summary."""
    max_length: Annotated[int, Parameter(group=DATA)] = Field(default=2048, ge=2)
    """Longest example in tokens; longer ones are cut."""
