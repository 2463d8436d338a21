"""Target losses: what held-out items cost a trained model, kept by training and items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gistselect.evaluation.catalog import task_facts
from gistselect.evaluation.results import LOSS, ItemValues, item_values
from gistselect.increments import increments
from gistselect.run.arms import Recipe, Training
from gistselect.run.progress import Reporter
from gistselect.run.store import Artifact, read_table, write_table
from gistselect.run.targets import Target

VERSION = 2
TABLE = "losses.parquet"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model, as it came or after a training, and what it is measured on."""

    recipe: Recipe
    name: str
    adapter: Path | None
    """What the training left; None before any."""
    training: str | None
    """Folder of the training in the store."""
    targets: tuple[Target, ...]

    @classmethod
    def after(cls, training: Training, targets: tuple[Target, ...]) -> Measured:
        """The model that a training left, which must be done."""
        adapter = training.artifact / training.artifact.facts["adapter"]
        return cls(
            recipe=training.recipe,
            name=training.title,
            adapter=adapter,
            training=training.artifact.folder.name,
            targets=targets,
        )

    def artifact(self, target: Target) -> Artifact:
        """Where the losses on the items of a target are kept."""
        return self.recipe.store.artifact(
            "losses", VERSION, **self.recipe.model_inputs, training=self.training, items=target.digest
        )

    @property
    def missing(self) -> tuple[Target, ...]:
        """Targets on which it has not been measured."""
        return tuple(target for target in self.targets if not self.artifact(target).is_complete)

    @property
    def n_items(self) -> int:
        """Items of all targets."""
        return sum(len(target.queries.examples) for target in self.targets)

    def measure(self, advance: Callable[[int], None]) -> None:
        """Load the model and measure it on what is missing; `advance` is told of items as they get done."""
        from gistselect.evaluation.target_loss import target_losses

        model = None
        for target in self.missing:
            if model is None and self.training is not None:
                self.recipe.store.bring(self.training)
            model = model or model_of(self.recipe, self.adapter)
            artifact, queries = self.artifact(target), target.queries
            artifact.begin()
            losses = target_losses(model, queries.examples, queries.groups, increments(advance))
            columns = {"id": [one.id for one in losses], LOSS: [one.loss for one in losses], "group": queries.groups}
            write_table(artifact / TABLE, pa.table(columns))
            artifact.complete(items=len(losses))

    def values(self, target: Target) -> ItemValues:
        """The losses on the items of a target, which must be measured."""
        return item_values(
            target.queries.target,
            LOSS,
            read_table(self.artifact(target) / TABLE).to_pylist(),
            average=task_facts(target.queries.target).average,
            higher_is_better=False,
        )


def measured_loss(
    recipe: Recipe, target: Target, name: str, adapter: Path | None, training: str | None, reporter: Reporter
) -> ItemValues:
    """Target loss of one model on the held-out items of one target, measured here unless that is done."""
    one = Measured(recipe=recipe, name=name, adapter=adapter, training=training, targets=(target,))
    if one.missing:
        tokens = sum(example.n_tokens for example in target.queries.examples)
        loss = f"{target.queries.target} loss, {name}"
        with reporter.step(loss, total=one.n_items, unit="items", tokens=tokens) as step:
            one.measure(step.advance)
    return one.values(target)


def model_of(recipe: Recipe, trained: Path | None) -> Any:
    """The model to measure, after a training or (None) before any."""
    from gistselect.model.adapters import load_adapter
    from gistselect.model.loading import load_model

    model, adapter = recipe.measured(trained)
    language_model = load_model(model)
    return load_adapter(language_model, adapter) if adapter else language_model
