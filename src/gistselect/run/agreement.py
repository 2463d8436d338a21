"""Stage `agreement`: how far an approximate representation agrees with the exact one, on a sample of the pool."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from safetensors.numpy import load_file, save_file

from gistselect.files import replacing
from gistselect.linalg.similarity import FloatArray, overlap, spearman
from gistselect.run.cells import Column, load_fit
from gistselect.run.ingest import SHARD_ROWS, TokenRows
from gistselect.run.passes import read_features
from gistselect.run.progress import Reporter
from gistselect.run.sources import Sources, SourceSpec
from gistselect.run.store import Artifact, verify
from gistselect.streams import Stream, generator

VERSION = 1
SAMPLE = 256
"""Rows on which exact scores are computed."""
FILE = "scores.safetensors"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Best-target scores of a sample, exact and approximate, for each target and checkpoint of a method."""

    columns: tuple[Column, ...]
    rows: TokenRows
    seed: int
    artifact: Artifact
    name: ClassVar[str] = "agreement"

    def run(self, reporter: Reporter, sources: Sources, specs: Mapping[str, SourceSpec]) -> None:
        """Measure, or find that done; `specs` are the sources by the key of their checkpoint."""
        if self.artifact.is_complete:
            return
        self.artifact.begin()
        usable = self.rows.columns(["row"])["row"].to_numpy()
        rng = generator(self.seed, Stream.AGREEMENT_SAMPLE)
        rows = usable[np.sort(rng.choice(len(usable), size=min(SAMPLE, len(usable)), replace=False))]
        examples = self.rows.select(rows.tolist())
        found: dict[str, FloatArray] = {}
        # Checkpoint by checkpoint, so that each model is opened once.
        for at_checkpoint in zip(*(column.entries for column in self.columns), strict=True):
            for column, (fit, cell) in zip(self.columns, at_checkpoint, strict=True):
                assert fit.checkpoint is not None
                reporter.say(f"Exact scores of {len(rows)} rows for {column.target} at {fit.checkpoint.name}.")
                source = sources.open(specs[fit.checkpoint.key])
                exact = fit.representation.reference(fit.queries, examples, source)
                assert exact is not None
                features = [_features_of(cell, rows)]
                scores = fit.representation.score(features, [load_fit(fit.artifact)], np.ones(1)).values
                name = f"{column.target}/{fit.checkpoint.name}"
                # A row without a score is in the quarantine, and says nothing of the others.
                finite = np.isfinite(scores).all(axis=1) & np.isfinite(exact).all(axis=1)
                found |= {
                    f"exact/{name}": exact[finite].max(axis=1),
                    f"approximate/{name}": scores[finite].max(axis=1),
                }
        with replacing(self.artifact / FILE) as part:
            save_file(found, part)
        names = [name.removeprefix("exact/") for name in found if name.startswith("exact/")]
        self.artifact.complete(names=names)

    def measured(self, share: float) -> dict[str, dict[str, Any]]:
        """Spearman correlation, and the share of the best `share` of the sample that both agree on, by
        `<target>/<checkpoint>`."""
        verify(self.artifact / FILE)
        scores = load_file(self.artifact / FILE)
        facts = self.artifact.facts
        return {
            name: _agreement(scores[f"exact/{name}"], scores[f"approximate/{name}"], share) for name in facts["names"]
        }


def _agreement(exact: FloatArray, approximate: FloatArray, share: float) -> dict[str, Any]:
    n_top = math.ceil(share * len(exact))
    return {
        "rows": len(exact),
        "spearman": spearman(approximate, exact),
        "overlap_at_budget": overlap(approximate, exact, n_top),
    }


def _features_of(cell: Any, rows: Sequence[int]) -> Any:
    """The features of pool rows that lie in several shards, ascending."""
    from gistselect.representations.interface import Features

    numbers = np.asarray(rows, dtype=np.int64)
    shards = numbers // SHARD_ROWS
    parts = [read_features(cell, int(shard), numbers[shards == shard]) for shard in np.unique(shards)]
    return Features(
        values=np.concatenate([part.values for part in parts]),
        measured={name: np.concatenate([part.measured[name] for part in parts]) for name in parts[0].measured},
    )
