"""How far the sketched scores agree with the exact ones, measured on a sample of the pool."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistselect.linalg.similarity import overlap, spearman
from gistselect.representations import gist
from gistselect.run.context import Run
from gistselect.run.features import TaskFeatures, checkpoint_engine, feature_matrix
from gistselect.run.ingest import TokenizedPool
from gistselect.run.store import read_json, write_json
from gistselect.run.targets import Target
from gistselect.selection.budget import rows_for_budget

SAMPLE = 256
"""Rows on which exact scores are computed."""
SAMPLE_STREAM = 5
"""Name of this sample's random stream beside the run's seed."""


def measure_agreement(run: Run, pool: TokenizedPool, found: list[TaskFeatures], targets: dict[str, Target]) -> None:
    """For a sketched run: Spearman correlation and overlap at the budget with exact scores, into subspace.json."""
    n_examples = pool.facts["n_examples"]
    rng = np.random.default_rng([run.config.seed, SAMPLE_STREAM])
    rows = np.sort(rng.choice(n_examples, size=min(SAMPLE, n_examples), replace=False))
    sample = pool.select(rows)
    share = rows_for_budget(run.config.budget, pool.facts["n_rows"], n_examples) / n_examples
    described: dict[str, Any] = read_json(run.path("subspace.json"))
    for one in found:
        exact = _exact(run, one, targets[one.task], sample)
        features = feature_matrix(one.pool_features(pool))[rows]
        sketched = gist.scores([features], [one.arrays()["target_features"]], np.ones(1)).max(axis=1)
        n_top = math.ceil(share * len(rows))
        measured = {
            "rows": len(rows),
            "spearman": spearman(sketched, exact),
            "overlap_at_budget": overlap(sketched, exact, n_top),
        }
        for checkpoint in described[one.task]["checkpoints"]:
            if checkpoint["name"] == one.checkpoint.name:
                checkpoint["sketch_agreement"] = measured
        run.say(
            f"Sketch of {one.task} at {one.checkpoint.name}: against exact scores on {len(rows)} rows, Spearman "
            f"{measured['spearman']:.3f}, {measured['overlap_at_budget']:.0%} of the top {n_top} the same."
        )
    write_json(run.path("subspace.json"), described)


def _exact(run: Run, one: TaskFeatures, target: Target, sample: list[Any]) -> NDArray[np.float64]:
    engine = checkpoint_engine(run, one.checkpoint)
    scores = gist.exact_scores(
        engine, target.examples, target.groups, sample, rank=run.config.rank, rtol=run.config.rtol
    )
    return scores.max(axis=1)
