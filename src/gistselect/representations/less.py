"""LESS: cosines of randomly projected Adam updates (arXiv 2402.04333, sections 3 and 4).

A pool row is known by the step that Adam would take for it from the warm-up's moments, a query by its plain gradient;
both are projected to `dimension` numbers by one seeded random matrix. Cost of a row: one backward pass and 2·p·d FLOP
for p adapter parameters and d dimensions (2·p·k with nonzeros=k), 4·d bytes stored. Its features know
nothing of the target. Use it to compare with, or where many unknown targets will come.

What is published is not the step that Adam takes: `less` is the published update, `less_adam` the true one, for those
who want what the paper argues for rather than what its code does. Both cost the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gistselect.errors import ConfigError, DataError
from gistselect.linalg.bootstrap import Mixture, mean_of_cosines
from gistselect.linalg.similarity import cosine_scores, mean_of_columns, null_products, share_in_span, units
from gistselect.model.engine_config import AdamConfig, ProjectionConfig
from gistselect.representations.interface import (
    NO_GRADIENT,
    Features,
    Fitted,
    FloatArray,
    GradientSource,
    Prepared,
    Reads,
    Representation,
    Scores,
    have_gradients,
    in_place,
)
from gistselect.representations.queries import Queries


class Less(Representation):
    """Mean over a group's queries of the cosine with the row's projected Adam update."""

    dimension: int = Field(default=8192, ge=1)
    """Width of the projection."""
    nonzeros: int | None = Field(default=None, ge=1)
    """Coordinates that each number of the gradient goes to; by default all of them, as published. 8 is nearly as
    precise and costs a thousandth."""
    seed: int = Field(default=0, ge=0)
    """Seed of the projection."""

    name: ClassVar[str] = "less"
    title: ClassVar[str] = "LESS"
    reads: ClassVar[Reads] = "gradient"
    definition: ClassVar[str] = (
        "mean over a group's queries of the cosine (-1 to 1, higher is nearer) of the row's projected Adam update with "
        "the query's projected gradient, weighted over checkpoints"
    )
    unscored: ClassVar[str] = NO_GRADIENT
    has_points: ClassVar[bool] = True
    former: ClassVar[Mapping[str, str]] = {"direction": "the step that Adam really takes is --representation less_adam"}
    adam: ClassVar[AdamConfig] = AdamConfig(direction="less")

    @property
    def per_target(self) -> bool:
        return False

    @property
    def pool_inputs(self) -> dict[str, Any]:
        return {**self.fit_inputs, "adam": self.adam.model_dump(mode="json")}

    @property
    def score_inputs(self) -> dict[str, Any]:
        return {**super().score_inputs, "chance": "random projected directions"}

    def width(self, n_queries: int) -> int:
        return self.dimension

    def fit(self, queries: Queries, at: GradientSource, folder: Path, prepared: Prepared | None) -> Fitted:
        """Projected gradients (n_query, d) of the queries.

        Raises `DataError` naming a query whose gradient is zero or not finite.
        """
        from gistselect.model.directions import DirectionSink

        collector = DirectionSink(self._projection)
        at.engine.collect(queries.examples, [collector])
        features = collector.result()
        lengths = np.linalg.norm(features, axis=1)
        if len(bad := np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))):
            raise DataError(
                f"the gradient of query {queries.examples[bad[0]].id!r} is zero or not finite; check its text, or use "
                "--dtype float32."
            )
        arrays = {"query_features": features, "group": queries.group_of}
        return Fitted(groups=queries.group_names, arrays=arrays, facts={"queries": len(features)})

    def collector(self, fitted: Fitted | None, at: GradientSource) -> Any:
        """Projected Adam updates (n, d).

        Raises `ConfigError` if the checkpoint does not come from a training, and so has no moments.
        """
        from gistselect.model.directions import DirectionSink
        from gistselect.training.checkpoints import MOMENTS, load_moments

        if at.checkpoint is None or not (at.checkpoint / MOMENTS).is_file():
            raise ConfigError(
                f"{self.name} needs the optimizer's moments ({MOMENTS}) beside the adapter, and "
                f"{at.checkpoint or 'a live model'} has none; leave out --adapter to have the warm-up done, or give a "
                "checkpoint of 'gistselect train'."
            )
        moments = load_moments(at.checkpoint / MOMENTS)
        return DirectionSink(self._projection, moments, self.adam)

    @property
    def _projection(self) -> ProjectionConfig:
        return ProjectionConfig(dimension=self.dimension, nonzeros=self.nonzeros, seed=self.seed)

    def score(self, shard: Sequence[Features], fitted: Sequence[Fitted], weights: FloatArray) -> Scores:
        """Σ_c w_c mean over the group's queries of cos(f_c, q_c) (LESS section 4.2); the mean is of scores.

        `captured_energy` is the share of the squared projected update within the span of the projected queries.
        """
        usable = have_gradients(shard)
        total = np.zeros((len(usable), len(fitted[0].groups)))
        energy = np.zeros(len(usable))
        for one, fit, weight in zip(shard, fitted, weights, strict=True):
            queries = units(fit.arrays["query_features"])
            cosines = cosine_scores(in_place(one.values, usable), fit.arrays["query_features"])
            total += weight * mean_of_columns(cosines, fit.arrays["group"])
            energy += weight * share_in_span(cosines, queries @ queries.T, np.ones(len(cosines)))
        columns = {"captured_energy": in_place(energy, usable, np.nan)}
        return Scores(values=in_place(total, usable, np.nan), columns=columns)

    def resampled(self, fitted: Fitted, groups: NDArray[np.integer], counts: NDArray[np.intp]) -> Mixture:
        """Means of cosines; the space of the features knows nothing of the queries."""
        return mean_of_cosines(fitted.arrays["query_features"], groups, counts)

    def null_level(self, fitted: Sequence[Fitted], weights: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Best scores (n_draws,) of random directions among the projected updates."""
        total = 0.0
        for fit, weight in zip(fitted, weights, strict=True):
            means = mean_of_columns(units(fit.arrays["query_features"]).T, fit.arrays["group"]).T
            total = total + weight * null_products(means, rng)
        return np.asarray(total).max(axis=1)


class LessAdam(Less):
    """Mean over a group's queries of the cosine with the projected step that `torch.optim.Adam` takes for the row."""

    name: ClassVar[str] = "less_adam"
    title: ClassVar[str] = "LESS with Adam's step"
    definition: ClassVar[str] = (
        "mean over a group's queries of the cosine (-1 to 1, higher is nearer) of the row's projected step of "
        "torch.optim.Adam with the query's projected gradient, weighted over checkpoints"
    )
    former: ClassVar[Mapping[str, str]] = {}
    adam: ClassVar[AdamConfig] = AdamConfig(direction="adam")
