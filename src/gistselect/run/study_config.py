"""Options of `gistselect compare`: those of a run, with several selectors and budgets."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import field_validator

from gistselect.groups import METHOD, many
from gistselect.run.config import RunConfig
from gistselect.run.targets import load_tasks
from gistselect.tasks.custom import Custom

STUDY_YAML = "study.yaml"
"""Options of a study, in its folder."""


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One target under one budget, with one selector."""

    target: str
    selector: str
    budget: str
    config: RunConfig


@Parameter(name="*")
class StudyConfig(RunConfig):
    """What to compare with what, on which targets, under which budgets."""

    selectors: Annotated[tuple[str, ...], many(METHOD)] = ()
    """Orders to compare; by default the one of --selector."""
    budgets: Annotated[tuple[str | int | float, ...], many(METHOD)] = ()
    """Budgets to compare, each as in --budget; by default that one."""

    @field_validator("selectors", "budgets", mode="before")
    @classmethod
    def _one_of_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, int, float)) else value

    @property
    def budgets_asked(self) -> tuple[str | int | float, ...]:
        return self.budgets or (self.budget,)

    def variants(self) -> list[Combination]:
        """A run for each target, selector and budget, all in this folder.

        Raises `ConfigError` for an unknown target or selector, or a budget that is not understood.
        """
        shared = {name: getattr(self, name) for name in RunConfig.model_fields}
        tasks = load_tasks(self.target, self.data_dir, self.target_group, self.heldout, self)
        found = []
        for (name, task), selector, budget in product(
            zip(self.target, tasks, strict=True), self.selectors or (self.selector,), self.budgets_asked
        ):
            own = task.heldout if isinstance(task, Custom) else None
            values = {"target": (name,), "heldout": (own,) if own else (), "selector": selector, "budget": budget}
            config = RunConfig.from_values({**shared, **values})
            found.append(Combination(target=task.name, selector=selector, budget=str(budget), config=config))
        return found
