"""Stage `warmup`: the adapter checkpoints at which gradients are taken, trained here or given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gistselect.errors import ConfigError
from gistselect.files import digest
from gistselect.linalg.similarity import checkpoint_weights
from gistselect.model.config import ModelConfig
from gistselect.run.cells import Checkpoint
from gistselect.run.engine import Engine
from gistselect.run.ingest import TokenRows
from gistselect.run.progress import Reporter
from gistselect.run.store import Artifact, Store
from gistselect.run.trainings import Trainings
from gistselect.shares import rows_of
from gistselect.streams import Stream, generator
from gistselect.training import ranks
from gistselect.training.recipe import TrainingConfig, steps_per_epoch

VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A checkpoint that exists: its folder, and what it counts in the score."""

    checkpoint: Checkpoint
    adapter: Path | None
    """PEFT folder; None for a live model, whose adapter is attached."""
    weight: float


@dataclass(frozen=True, kw_only=True)
class Given:
    """Checkpoints of the user's, or the adapter of a live model."""

    checkpoints: tuple[Checkpoint, ...]
    adapters: tuple[Path | None, ...]
    weights: tuple[float, ...] | None
    name: ClassVar[str] = "warmup"

    @property
    def weight_rule(self) -> Any:
        """What decides the weights, for keys."""
        return checkpoint_weights(self.weights, len(self.checkpoints)).tolist()

    def placed(self) -> list[Placed]:
        """The checkpoints with their folders and weights."""
        weights = checkpoint_weights(self.weights, len(self.checkpoints))
        return [
            Placed(checkpoint=checkpoint, adapter=adapter, weight=float(weight))
            for checkpoint, adapter, weight in zip(self.checkpoints, self.adapters, weights, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """A light training on a random part of the pool (GIST section 5, LESS section 3.2)."""

    model: ModelConfig
    tokens: TokenRows
    training: TrainingConfig
    share: float
    epochs: tuple[int, ...]
    """Ends of the epochs whose checkpoints are used, ascending."""
    weights: tuple[float, ...] | None
    """Weight of each of `epochs`; None takes the mean learning rate of the epoch, as LESS does."""
    seed: int
    artifact: Artifact
    name: ClassVar[str] = "warmup"

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        return tuple(Checkpoint(name=f"epoch {epoch}", key=digest([self.artifact.key, epoch])) for epoch in self.epochs)

    @property
    def weight_rule(self) -> Any:
        """What decides the weights, for keys."""
        return (
            "mean learning rate"
            if self.weights is None
            else checkpoint_weights(self.weights, len(self.epochs)).tolist()
        )

    @property
    def title(self) -> str:
        """For people."""
        return "a random part of the pool"

    def run(self, reporter: Reporter, engine: Engine) -> None:
        """Train, or find that done: on a worker where those have devices that this machine may lack."""
        if self.artifact.is_complete:
            return
        n_rows, last = len(self.rows), self.epochs[-1]
        reporter.say(f"Warm-up: {n_rows:,} random rows, {last} of {self.training.epochs} epochs.")
        if engine.elsewhere and ranks.current() is None:
            engine.run(Trainings(parts=(self,)), "warm-up", reporter)
            return
        facts = self.tokens.facts
        tokens = round(last * n_rows * facts["n_tokens"] / facts["n_usable"])  # of rows of the pool's mean length
        with reporter.step("warm-up", total=self.n_steps, unit="steps", rows=last * n_rows, tokens=tokens) as step:
            self.train(step.reach)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Pool rows (n,) of the sample."""
        usable = self.tokens.columns(["row"])["row"].to_numpy()
        return usable[warmup_positions(len(usable), self.share, self.seed)]

    @property
    def n_steps(self) -> int:
        """Optimizer steps."""
        return self.epochs[-1] * steps_per_epoch(len(self.rows), self.training.global_batch_size)

    def train(self, reach: Callable[[int], None]) -> None:
        """Train, unless that is done; `reach` is told of the steps done so far."""
        from gistselect.training.train import train

        if self.artifact.is_complete:
            return
        self.artifact.begin()
        rows = self.rows
        with self.artifact.timed():
            result = train(
                self.model,
                self.tokens.select(rows.tolist()),
                self.training,
                output=self.artifact / "training",
                seed=self.seed,
                stop_after_epoch=self.epochs[-1],
                progress=lambda done, *_: reach(done),
            )
        self.artifact.complete(
            rows=len(rows),
            checkpoints=[
                {
                    "epoch": one.epoch,
                    "step": one.step,
                    "mean_learning_rate": one.mean_learning_rate,
                    "folder": str(one.path.relative_to(self.artifact.folder)),
                }
                for one in result.checkpoints
            ],
        )

    def placed(self) -> list[Placed]:
        """The checkpoints with their folders and weights.

        Raises `ConfigError` if the first was taken while the learning rate was still 0.
        """
        facts = self.artifact.facts
        by_epoch: Mapping[int, dict[str, Any]] = {one["epoch"]: one for one in facts["checkpoints"]}
        kept = [by_epoch[epoch] for epoch in self.epochs]
        if not kept[0]["mean_learning_rate"]:
            raise ConfigError(
                f"the warm-up of {facts['rows']} rows ended after {kept[0]['step']} step, while the learning rate was "
                "still 0, so it taught the adapter nothing; use a smaller --warmup.global-batch-size, a larger "
                "--warmup-share, or a later epoch in --warmup-checkpoints."
            )
        weights = checkpoint_weights(self.weights or [one["mean_learning_rate"] for one in kept], len(kept))
        return [
            Placed(checkpoint=checkpoint, adapter=self.artifact / one["folder"], weight=float(weight))
            for checkpoint, one, weight in zip(self.checkpoints, kept, weights, strict=True)
        ]


def given_key(folder: Path, store: Store) -> str:
    """The key of a checkpoint that the user names: the digest of the adapter, or the key of a warm-up's epoch.

    A warm-up of this very run folder is known by its place, so that what was computed there still counts when the pool
    has changed.
    Raises `ModelError` if it is no adapter.
    """
    from gistselect.model.adapters import adapter_digest

    place = folder.resolve()
    for ours in store.root.resolve().glob("warmup-*"):
        if place.is_relative_to(ours) and (artifact := store.existing(ours.name)).is_complete:
            for one in artifact.facts["checkpoints"]:
                if ours / one["folder"] == place:
                    return digest([artifact.key, one["epoch"]])
    return adapter_digest(folder)


def by_epoch(epochs: Sequence[int], weights: Sequence[float]) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    """Epochs ascending, each with the weight that was given beside it."""
    order = sorted(range(len(epochs)), key=lambda index: epochs[index])
    return tuple(epochs[i] for i in order), tuple(weights[i] for i in order) if weights else None


def warmup_positions(n_examples: int, share: float, seed: int) -> np.ndarray:
    """Positions of the warm-up's random sample among the pool's examples, sorted."""
    rng = generator(seed, Stream.WARMUP_SAMPLE)
    return np.sort(rng.choice(n_examples, size=rows_of(share, n_examples), replace=False))
