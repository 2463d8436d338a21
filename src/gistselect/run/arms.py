"""Arms: on which rows each model of a comparison is fine-tuned, and the trainings themselves.

An arm's key is known before anything is selected; what it trains on is not. So a training is kept by its rows, and
the arm only says which one is its own: two arms with the same rows share one training.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from gistselect.run.store import Artifact, Store
from gistselect.selection.baselines import length_matched_rows, random_rows
from gistselect.streams import Stream, generator
from gistselect.training.recipe import TrainingConfig, steps_per_epoch

ARM_VERSION = 1
TRAIN_VERSION = 2
BEFORE = "before"
BASELINES = {"random": "random rows", "length": "random rows of the same lengths", "full": "the full pool"}
"""What people read for each baseline of the configuration."""


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
            selection=None if baseline == "full" else select.artifact.key,
            draw_seed=draw_seed if baseline else None,
            seed=seed,
        )
        return cls(name=name, seed=seed, baseline=baseline, select=select, draw_seed=draw_seed, artifact=artifact)

    def trained(self, recipe: Recipe, reporter: Reporter) -> Path:
        """The adapter (or model folder) of this arm, trained unless that is done."""
        if not self.artifact.is_complete:
            training = _train(recipe, self.rows(recipe.tokens), self.seed, f"{self.name}, seed {self.seed}", reporter)
            self.artifact.begin()
            self.artifact.complete(training=training.folder.name, adapter=training.facts["adapter"])
        facts = self.artifact.facts
        return recipe.store.root / facts["training"] / facts["adapter"]

    def rows(self, tokens: TokenRows) -> NDArray[np.int64]:
        """Pool rows to train on."""
        selected = self.select.table["row"].to_numpy()
        if self.baseline is None:
            return selected
        pool = tokens.columns(["row", "n_tokens"])
        usable, lengths = pool["row"].to_numpy(), pool["n_tokens"].to_numpy()
        if self.baseline == "full":
            return usable
        if self.baseline == "length":
            rng = generator(self.draw_seed, Stream.BASELINE_LENGTH, self.seed)
            return usable[length_matched_rows(lengths, np.searchsorted(usable, selected), rng)]
        rng = generator(self.draw_seed, Stream.BASELINE_RANDOM, self.seed)
        return usable[random_rows(len(selected), len(usable), rng)]


def _train(recipe: Recipe, rows: NDArray[np.int64], seed: int, name: str, reporter: Reporter) -> Artifact:
    artifact = recipe.store.artifact(
        "train",
        TRAIN_VERSION,
        **recipe.model_inputs,
        tokens=recipe.tokens.artifact.key,
        rows=digest(rows.tolist()),
        training=recipe.training.model_dump(mode="json"),
        seed=seed,
    )
    if not artifact.is_complete:
        from gistselect.model.loading import load_tokenizer
        from gistselect.training.train import train

        artifact.begin()
        n_steps = recipe.training.epochs * steps_per_epoch(len(rows), recipe.training.global_batch_size)
        with reporter.step(f"train on {name}", total=n_steps, unit="steps") as step:
            result = train(
                recipe.model,
                recipe.tokens.select(rows.tolist()),
                recipe.training,
                output=artifact / "training",
                seed=seed,
                progress=step.reach,
            )
        if recipe.training.full:
            # A model folder is whole with its tokenizer; the library saves the weights alone.
            load_tokenizer(recipe.model).save_pretrained(result.adapter)
        artifact.complete(adapter=str(result.adapter.relative_to(artifact.folder)))
    return artifact
