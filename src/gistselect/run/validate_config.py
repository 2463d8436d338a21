"""Options of `gistselect validate`: those of a run, and how far its scores are put to the test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import Field, field_validator

from gistselect.data.config import ReadOptions
from gistselect.groups import EVALUATION, many
from gistselect.run.config import DRAWN, RunConfig
from gistselect.run.warmup import Placed
from gistselect.selection.options import SelectionOptions

Measure = Literal["lds", "qld", "planted"]
VALIDATE_YAML = "validate.yaml"
"""Options of a validation, in its folder."""


@Parameter(name="*")
class ValidateConfig(RunConfig):
    """What the scores of which methods are worth."""

    measures: Annotated[tuple[Measure, ...], many(EVALUATION)] = ("lds", "qld", "planted")
    """lds: do summed scores predict the loss after training on random subsets? qld: does the loss rise when the best
    rows are left out? planted: are spoilt answers and made-up facts found among ordinary rows?"""
    subsets: Annotated[int, Parameter(group=EVALUATION)] = Field(default=30, ge=5)
    """Random subsets of lds, each one training."""
    subset_share: Annotated[float, Parameter(group=EVALUATION)] = Field(default=0.1, gt=0, lt=1)
    """Rows of each subset, as a share of the rows in question."""
    removed_share: Annotated[float, Parameter(group=EVALUATION)] = Field(default=0.01, gt=0, lt=1)
    """Rows that qld leaves out, as a share of the rows in question."""
    validation_rows: Annotated[int | None, Parameter(group=EVALUATION)] = Field(default=None, ge=10)
    """Most pool rows in question for lds and qld (a seeded sample); by default every row that has a score."""
    planted_among: Annotated[int, Parameter(group=EVALUATION)] = Field(default=500, ge=20)
    """Ordinary rows among which planted ones are hidden, fewer in a small pool."""
    planted_rows: Annotated[int, Parameter(group=EVALUATION)] = Field(default=25, ge=4)
    """Spoilt rows of each kind, as many queries that show them, and made-up facts."""
    recall_at: Annotated[int, Parameter(group=EVALUATION)] = Field(default=10, ge=1)
    """Rows among which the mentions of a made-up fact are looked for."""

    @field_validator("measures", mode="before")
    @classmethod
    def _one_measure(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def planted(self, folder: Path, targets: Sequence[str], placed: Sequence[Placed]) -> RunConfig:
        """A run in `folder` that scores its planted pool for its targets, at the checkpoints of this one."""
        # The planted files are chat rows of our own, however the user's files are read; nothing of them is selected.
        own = RunConfig.model_fields.keys() - ReadOptions.model_fields.keys() - SelectionOptions.model_fields.keys()
        shared = {name: getattr(self, name) for name in own}
        given = [one.adapter for one in placed if one.adapter]
        inputs = folder / "inputs"
        return RunConfig.from_values(
            {
                **shared,
                "pool": (str(inputs / "pool.jsonl"),),
                "target": tuple(str(inputs / name) for name in targets),
                "target_group": "group",
                "heldout": (),
                "max_queries": None,
                "representation": (*self.representation, *self._more_rivals),
                "adapter": None,
                "checkpoints": tuple(given),
                "checkpoint_weights": tuple(one.weight for one in placed) if given else (),
                "evaluate": False,
                "evaluate_tasks": (),
                "budget": 1,
                # What was planted has a score each, or nobody could say where a method would place it.
                "prefilter": None,
                "stability_draws": 0,
                "output": folder,
            }
        )

    @property
    def _more_rivals(self) -> tuple[str, ...]:
        """Baselines that are representations and are not methods already."""
        return tuple(one for one in self.baselines if one not in (*DRAWN, *self.representation))
