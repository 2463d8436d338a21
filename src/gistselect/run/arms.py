"""Arms: on which rows each model of a comparison is fine-tuned, and the trainings themselves.

An arm's key is known before anything is selected; what it trains on is not. So a training is kept by its rows, and
the arm only says which one is its own: two arms with the same rows share one training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistselect.files import digest
from gistselect.model.config import ModelConfig
from gistselect.run.choosing import Select
from gistselect.run.ingest import TokenRows
from gistselect.run.progress import Reporter
from gistselect.run.store import Artifact, Store, verify
from gistselect.selection.baselines import length_matched_rows, random_rows, random_rows_within
from gistselect.selection.budget import COLUMNS, parse_budget
from gistselect.streams import Stream, generator
from gistselect.training.recipe import TrainingConfig, steps_per_epoch, training_amounts

ARM_VERSION = 1
TRAIN_VERSION = 2
FULL = "full"
BASELINES = {"random": "random rows", "length": "random rows of the same lengths", FULL: "the full pool"}
"""What people read for each baseline that is drawn and not computed."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, and how."""

    model: ModelConfig
    model_inputs: Mapping[str, Any]
    training: TrainingConfig
    tokens: TokenRows
    store: Store

    def measured(self, trained: Path | None) -> tuple[ModelConfig, Path | None]:
        """The model to load and the adapter to put on it, after a training or (None) before any."""
        if trained is None or not self.training.full:
            return self.model, trained
        return self.model.model_copy(update={"path": str(trained), "revision": None}), None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One fine-tuning: of a selection, or of a baseline beside it, with one training seed."""

    name: str
    seed: int
    baseline: str | None
    select: Select
    draw_seed: int
    """The run's seed, with which baselines are drawn."""
    artifact: Artifact

    @classmethod
    def planned(cls, recipe: Recipe, name: str, seed: int, baseline: str | None, select: Select, draw_seed: int) -> Arm:
        """The arm with its key."""
        artifact = recipe.store.artifact(
            "arm",
            ARM_VERSION,
            **recipe.model_inputs,
            tokens=recipe.tokens.artifact.key,
            training=recipe.training.model_dump(mode="json"),
            baseline=baseline,
            # The whole pool is the same whatever was selected.
            selection=None if baseline == FULL else select.artifact.key,
            draw_seed=draw_seed if baseline else None,
            seed=seed,
        )
        return cls(name=name, seed=seed, baseline=baseline, select=select, draw_seed=draw_seed, artifact=artifact)

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name}, seed {self.seed}"

    def planned_training(self, recipe: Recipe) -> Training:
        """What is to be trained, once the selection is made."""
        return Training.planned(recipe, self.rows(recipe.tokens), self.seed, self.title)

    def trained(self, recipe: Recipe, reporter: Reporter) -> Path:
        """The adapter (or model folder) of this arm, trained unless that is done."""
        if not self.artifact.is_complete:
            rows = self.rows(recipe.tokens)
            if lost := (self.select.artifact.facts["n_selected"] - len(rows)) * (self.baseline is None):
                reporter.say(
                    f"{lost:,} selected rows have nothing to train on for this model; {self.name} goes without."
                )
            training = train_rows(recipe, rows, self.seed, self.title, reporter)
            self.artifact.begin()
            self.artifact.complete(training=training.folder.name, adapter=training.facts["adapter"])
        facts = self.artifact.facts
        folder = recipe.store.root / facts["training"] / facts["adapter"]
        verify(folder)
        return folder

    def training(self, recipe: Recipe) -> Artifact:
        """What was trained for this arm, which must be done."""
        return recipe.store.existing(self.artifact.facts["training"])

    def rows(self, tokens: TokenRows) -> NDArray[np.int64]:
        """Pool rows to train on: those of them that the model to be trained can read."""
        selected = self.select.table["row"].to_numpy()
        unit = parse_budget(self.select.options.budget).unit
        counted = COLUMNS.get(unit, "n_tokens")
        pool = tokens.columns(["row", "n_tokens", *([counted] if counted != "n_tokens" else [])])
        usable, lengths = pool["row"].to_numpy(), pool["n_tokens"].to_numpy()
        selected = selected[np.isin(selected, usable)]
        if self.baseline is None:
            return selected
        if self.baseline == FULL:
            return usable
        if self.baseline == "length":
            rng = generator(self.draw_seed, Stream.BASELINE_LENGTH, self.seed)
            return usable[length_matched_rows(lengths, np.searchsorted(usable, selected), rng)]
        rng = generator(self.draw_seed, Stream.BASELINE_RANDOM, self.seed)
        if unit == "rows":
            return usable[random_rows(len(selected), len(usable), rng)]
        # As many tokens as were selected, counted as this model counts them.
        costs = pool[counted].to_numpy()
        return usable[random_rows_within(int(costs[np.searchsorted(usable, selected)].sum()), costs, rng)]


@dataclass(frozen=True, kw_only=True)
class Training:
    """The training on some pool rows with one seed; small and picklable, but for the numbers of its rows."""

    recipe: Recipe
    rows: NDArray[np.int64]
    """Pool rows (n,)."""
    seed: int
    title: str
    artifact: Artifact

    @classmethod
    def planned(cls, recipe: Recipe, rows: NDArray[np.int64], seed: int, title: str) -> Training:
        """The training with its key."""
        artifact = recipe.store.artifact(
            "train",
            TRAIN_VERSION,
            **recipe.model_inputs,
            tokens=recipe.tokens.artifact.key,
            rows=digest(rows.tolist()),
            training=recipe.training.model_dump(mode="json"),
            seed=seed,
        )
        return cls(recipe=recipe, rows=rows, seed=seed, title=title, artifact=artifact)

    @property
    def n_steps(self) -> int:
        """Optimizer steps."""
        return self.recipe.training.epochs * steps_per_epoch(len(self.rows), self.recipe.training.global_batch_size)

    def train(self, reach: Callable[[int], None]) -> None:
        """Train, unless that is done; `reach` is told of the steps done so far."""
        from gistselect.model.loading import load_tokenizer
        from gistselect.training.train import train

        artifact, recipe = self.artifact, self.recipe
        if artifact.is_complete:
            return
        artifact.begin()
        with artifact.timed():
            rate = _SteadyRate(artifact, reach)
            result = train(
                recipe.model,
                recipe.tokens.select(self.rows.tolist()),
                recipe.training,
                output=artifact / "training",
                seed=self.seed,
                progress=rate.reach,
            )
            rate.note()
        if recipe.training.full:
            # A model folder is whole with its tokenizer; the library saves the weights alone.
            load_tokenizer(recipe.model).save_pretrained(result.adapter)
        artifact.complete(adapter=str(result.adapter.relative_to(artifact.folder)))


def train_rows(recipe: Recipe, rows: NDArray[np.int64], seed: int, name: str, reporter: Reporter) -> Artifact:
    """The training on these pool rows (n,) with this seed, done here unless that is so already."""
    training = Training.planned(recipe, rows, seed, name)
    if not training.artifact.is_complete:
        read = training_amounts(recipe.tokens.lengths(rows), recipe.training.epochs)
        with reporter.step(f"train on {name}", total=training.n_steps, unit="steps", **read) as step:
            training.train(step.reach)
    return training.artifact


class _SteadyRate:
    """Times the steps of a training after its first, which waits for the model to be loaded."""

    def __init__(self, artifact: Artifact, reach: Callable[[int], None]) -> None:
        self._artifact, self._reach = artifact, reach
        self._first: tuple[int, float] | None = None
        self._last = (0, 0.0)

    def reach(self, done: int, *_: object) -> None:
        """So many steps are done now, as the reporter is told too."""
        self._reach(done)
        self._last = (done, time.monotonic())
        self._first = self._first or self._last

    def note(self) -> None:
        """Keep steps and seconds beside the training."""
        if self._first and self._last[0] > self._first[0]:
            steps, seconds = (last - first for last, first in zip(self._last, self._first, strict=True))
            self._artifact.spend(steady_steps=steps, steady_seconds=seconds)
