"""Stage `warmup`: the adapter checkpoints at which gradients are taken, trained here or given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gistselect.errors import ConfigError
from gistselect.linalg.similarity import checkpoint_weights
from gistselect.model.adapters import adapter_digest
from gistselect.run.context import Run
from gistselect.run.ingest import TokenizedPool
from gistselect.training.recipe import steps_per_epoch
from gistselect.training.train import train

VERSION = 2
WARMUP_SAMPLE = 1
"""Name of this stage's random stream beside the run's seed."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Adapter weights at which gradients are taken, and what they count in the score."""

    name: str
    adapter: Path | None
    """PEFT folder; None for a live model, whose adapter is attached."""
    digest: str
    weight: float


def checkpoints(run: Run, pool: TokenizedPool) -> list[Checkpoint]:
    """The run's checkpoints: the user's, or those of a warm-up on a random part of the pool (GIST section 5)."""
    if run.live:
        return [Checkpoint(name="live", adapter=None, digest="live", weight=1.0)]
    if folders := run.config.adapter_folders:
        return _weighted(folders, run.config.checkpoint_weights or [1.0] * len(folders))
    return _warmed_up(run, pool)


def _weighted(folders: Sequence[Path], weights: Sequence[float]) -> list[Checkpoint]:
    return [
        Checkpoint(name=f"checkpoint {number}", adapter=folder, digest=adapter_digest(folder), weight=float(weight))
        for number, (folder, weight) in enumerate(
            zip(folders, checkpoint_weights(weights, len(folders)), strict=True), start=1
        )
    ]


def warmup_rows(n_examples: int, share: float, seed: int) -> np.ndarray:
    """Positions of the warm-up's random sample among the pool's examples, sorted."""
    rng = np.random.default_rng([seed, WARMUP_SAMPLE])
    return np.sort(rng.choice(n_examples, size=math.ceil(share * n_examples), replace=False))


def _warmed_up(run: Run, pool: TokenizedPool) -> list[Checkpoint]:
    config = run.config
    last_epoch = max(config.warmup_checkpoints)
    artifact = run.store.artifact(
        "warmup",
        VERSION,
        **run.model_inputs,
        tokens=pool.artifact.key,
        training=config.warmup.model_dump(mode="json"),
        share=config.warmup_share,
        last_epoch=last_epoch,
        seed=config.seed,
    )
    if not artifact.is_complete:
        rows = warmup_rows(pool.facts["n_examples"], config.warmup_share, config.seed)
        run.say(f"Warm-up: {len(rows):,} random rows, {last_epoch} of {config.warmup.epochs} epochs.")
        n_steps = last_epoch * steps_per_epoch(len(rows), config.warmup.global_batch_size)
        with run.reporter.step("warm-up", total=n_steps, unit="steps") as step:
            result = train(
                config.source,
                pool.select(rows),
                config.warmup,
                output=artifact / "training",
                seed=config.seed,
                stop_after_epoch=last_epoch,
                progress=step.reach,
            )
        artifact.complete(
            rows=len(rows),
            checkpoints=[
                {
                    "epoch": one.epoch,
                    "step": one.step,
                    "mean_learning_rate": one.mean_learning_rate,
                    "folder": str(one.path.relative_to(artifact.folder)),
                }
                for one in result.checkpoints
            ],
        )
    kept = [one for one in artifact.facts["checkpoints"] if one["epoch"] in config.warmup_checkpoints]
    if not kept[0]["mean_learning_rate"]:
        raise ConfigError(
            f"the warm-up of {artifact.facts['rows']} rows ended after {kept[0]['step']} step, while the learning rate "
            "was still 0, so it taught the adapter nothing; use a smaller --warmup.global-batch-size, a larger "
            "--warmup-share, or a later epoch in --warmup-checkpoints."
        )
    weights = config.checkpoint_weights or [one["mean_learning_rate"] for one in kept]
    return _weighted([artifact / one["folder"] for one in kept], weights)
