"""GIST: a task subspace from the query gradients, and cosines in it (arXiv 2602.18584, section 4).

The pool's gradients are never stored, only their coordinates in the subspace; several targets stand side by side in
one backward pass. Cost of a row: one backward pass of the model and 2·p·r FLOP, 4·r bytes stored, for p adapter
parameters and rank r. Use it where a warm-up is affordable and the target moves the weights in few directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gistselect.errors import DataError
from gistselect.groups import METHOD
from gistselect.linalg.bootstrap import Mixture, cosine_of_means
from gistselect.linalg.similarity import cosine_scores, null_scores
from gistselect.linalg.subspace import Subspace, factor_gram, group_means
from gistselect.model.engine_config import SketchConfig
from gistselect.model.sketch_size import Shapes, SketchBudget, parse_sketch
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
from gistselect.types import Example

BASIS = "basis"
"""Folder of the basis within a fit."""


class GistOptions(BaseModel):
    """The subspace and the score."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rank: Annotated[int | float, Parameter(group=METHOD)] = 0.95
    """Subspace rank (a whole number) or the share of query-gradient variance to keep (0 to 1]."""
    rtol: Annotated[float, Parameter(group=METHOD)] = Field(default=1e-3, gt=0, lt=1)
    """Directions with a singular value below this share of the largest are rounding noise and dropped."""
    sketch: Annotated[int | str | None, Parameter(group=METHOD)] = None
    """For adapters whose basis does not fit in memory: project each side of every gradient matrix to this width; to
    the widest for which the sketches of 1,024 rows and their projections, in float32, take so much of a device (2GB);
    or that keeps so many numbers of a row, as a share of the adapter's (5%). The agreement with the exact score is
    measured on a sample and reported."""
    keep_sketch: Annotated[bool, Parameter(group=METHOD)] = False
    """Store the pool's sketches, so that a target added later needs no pass over the pool."""
    energy_weighting: Annotated[bool, Parameter(group=METHOD)] = False
    """Weight scores by the square root of the captured energy: the cosine with the full gradient norm."""

    @field_validator("sketch", mode="before")
    @classmethod
    def _sketch(cls, value: Any) -> int | str | None:
        """A width as a number, a budget as it was written."""
        parsed = value if value is None else parse_sketch(value)
        return parsed.text if isinstance(parsed, SketchBudget) else parsed

    @model_validator(mode="after")
    def _possible(self) -> GistOptions:
        if self.rank <= 0 or (isinstance(self.rank, float) and self.rank > 1):
            raise ValueError(
                f"rank={self.rank} is neither a number of directions (1, 2, …) nor a share of variance in (0, 1]"
            )
        if self.keep_sketch and self.sketch is None:
            raise ValueError("keep_sketch needs a sketch; add --sketch 32")
        return self


class Gist(GistOptions, Representation):
    """Cosine with the mean query of each group, inside the subspace of the target's query gradients."""

    seed: int = Field(default=0, ge=0)
    """Seed of the sketch."""

    name: ClassVar[str] = "gist"
    title: ClassVar[str] = "GIST"
    reads: ClassVar[Reads] = "gradient"
    definition: ClassVar[str] = (
        "cosine (-1 to 1, higher is nearer) of the row's gradient with a group's mean query gradient, within the "
        "subspace of the query gradients, weighted over checkpoints"
    )
    unscored: ClassVar[str] = NO_GRADIENT
    score_only: ClassVar[frozenset[str]] = frozenset({"energy_weighting"})
    has_points: ClassVar[bool] = True

    @property
    def per_target(self) -> bool:
        return not self.keep_sketch

    @property
    def is_approximate(self) -> bool:
        return self.sketch is not None

    @property
    def fit_inputs(self) -> dict[str, Any]:
        return {"rank": self.rank, "rtol": self.rtol, **self.pool_inputs}

    @property
    def pool_inputs(self) -> dict[str, Any]:
        return {"sketch": self.sketch_config.model_dump(mode="json") if self.sketch_config else None}

    @cached_property
    def sketch_config(self) -> SketchConfig | None:
        """How gradients are sketched; None for exact ones. A budget must have become a width, see `on_adapters`."""
        return None if self.sketch_width is None else SketchConfig(dimension=self.sketch_width, seed=self.seed)

    @property
    def sketch_width(self) -> int | None:
        assert not isinstance(self.sketch, str)
        return self.sketch

    def on_adapters(self, shapes: Callable[[], Sequence[Shapes]]) -> Self:
        """A budget becomes the width that keeps within it at every checkpoint; see `SketchBudget.width`."""
        if self.sketch is None or not isinstance(budget := parse_sketch(self.sketch), SketchBudget):
            return self
        return self.model_copy(update={"sketch": min(map(budget.width, shapes()))})

    def width(self, n_queries: int) -> int | None:
        """The rank is at most the number of queries; a kept sketch follows the shapes of the adapter."""
        if self.keep_sketch:
            return None
        return min(self.rank, n_queries) if isinstance(self.rank, int) else n_queries

    def directions(self, queries: Queries) -> int:
        """The rank, but of a sketch none."""
        return 0 if self.sketch is not None else self.width(len(queries.records)) or 0

    def passes(self, n_queries: int, at: GradientSource) -> int:
        """One sketch, or the passes of the Gram matrix and of a basis of full rank at the most."""
        if self.sketch_config:
            return 1
        rank = self.rank if isinstance(self.rank, int) else n_queries
        return at.engine.gram_passes(n_queries) + at.engine.basis_passes(min(rank, n_queries))

    def fit(self, queries: Queries, at: GradientSource, folder: Path, prepared: Prepared | None) -> Fitted:
        """The task subspace of the queries (GIST section 4); the exact basis goes into `folder`.

        Raises `DataError` naming a query whose gradient is not finite.
        """
        from gistselect.model.basis import Basis

        if self.sketch_config is None:
            subspace = self._subspace(at.engine.gram(queries.examples), queries)
            weights = subspace.basis_weights
            (folder / BASIS).mkdir()
            Basis.save_parts(at.engine.basis_parts(queries.examples, weights), folder / BASIS)
            arrays: dict[str, NDArray[Any]] = {}
        else:
            sketches = at.engine.sketch(queries.examples, self.sketch_config).features.astype(np.float64)
            subspace = self._subspace(sketches @ sketches.T, queries)
            arrays = {"basis": (sketches.T @ subspace.basis_weights).astype(np.float32)}
        _, target_features = group_means(subspace.query_features, list(queries.groups))
        arrays |= {
            "left": subspace.left,
            "singular_values": subspace.singular_values,
            "query_features": subspace.query_features,
            "target_features": target_features,
        }
        kept = float(subspace.explained_variance[subspace.rank - 1])
        facts = {"rank": subspace.rank, "queries": len(queries.examples), "explained_variance": kept}
        return Fitted(groups=queries.group_names, arrays=arrays, facts=facts)

    def _subspace(self, gram: FloatArray, queries: Queries) -> Subspace:
        if len(bad := np.flatnonzero(~np.isfinite(np.diag(gram)))):
            raise DataError(
                f"the gradient of query {queries.examples[bad[0]].id!r} is not finite; check its text, or use "
                "--dtype float32."
            )
        return factor_gram(gram, rank=self.rank, rtol=self.rtol)

    def collector(self, fitted: Fitted | None, at: GradientSource) -> Any:
        """Coordinates (n, r) in the basis of a target; or sketches (n, d), projected into it unless they are kept."""
        from gistselect.model.basis import Basis
        from gistselect.model.sinks import ProjectionSink, SketchSink
        from gistselect.model.sketch import SketchInBasis

        if self.sketch_config is not None:
            if fitted is None:
                return SketchSink(self.sketch_config)
            return SketchInBasis(self.sketch_config, fitted.arrays["basis"])
        assert fitted is not None
        assert fitted.folder is not None
        return ProjectionSink(Basis.load_parts(fitted.folder / BASIS))

    def score(self, shard: Sequence[Features], fitted: Sequence[Fitted], weights: FloatArray) -> Scores:
        """Σ_c w_c cos(f_c, target_c) over checkpoints c; with `energy_weighting` each cosine times √energy_c."""
        features = [self.points(one, fit) for one, fit in zip(shard, fitted, strict=True)]
        energies = [
            _captured_energy(values, one.measured["gradient_norm"]) for values, one in zip(features, shard, strict=True)
        ]
        usable = have_gradients(shard)
        total = scores(
            [in_place(values, usable) for values in features],
            [fit.arrays["target_features"] for fit in fitted],
            weights,
            [in_place(energy, usable) for energy in energies] if self.energy_weighting else None,
        )
        return Scores(values=in_place(total, usable, np.nan), columns={"captured_energy": weights @ np.stack(energies)})

    @property
    def own_space(self) -> bool:
        return True

    def points(self, kept: Features, fitted: Fitted) -> NDArray[np.floating]:
        """Coordinates (n, r) in the subspace of the target."""
        return kept.values @ fitted.arrays["basis"] if self.keep_sketch else kept.values

    def resampled(self, fitted: Fitted, groups: NDArray[np.integer], counts: NDArray[np.intp]) -> Mixture:
        """Cosines with the mean of the queries drawn, in the subspace of all queries, which is held fixed."""
        return cosine_of_means(fitted.arrays["query_features"], groups, counts)

    def directed(self, kept: Features, fitted: Fitted) -> FloatArray:
        """Coordinates at length 1, or with `energy_weighting` at the square root of the captured energy."""
        rows = super().directed(kept, fitted)
        if self.energy_weighting:
            rows *= np.sqrt(_captured_energy(self.points(kept, fitted), kept.measured["gradient_norm"]))[:, None]
        return rows

    def null_level(self, fitted: Sequence[Fitted], weights: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Best-target scores of random directions in the same subspaces."""
        return null_scores([fit.arrays["target_features"] for fit in fitted], weights, rng)

    def reference(self, queries: Queries, sample: Sequence[Example], at: GradientSource) -> FloatArray | None:
        """Exact scores of a sketched run's sample, from the inner products of all gradients alone.

        With the Gram matrix of queries and sample, the sample's features are `S V = (S G') W`: nothing of size
        p x r is formed, so this serves where the exact basis would not fit.
        """
        if self.sketch_config is None:
            return None
        n_query = len(queries.examples)
        gram = at.engine.gram([*queries.examples, *sample])
        subspace = self._subspace(gram[:n_query, :n_query], queries)
        _, target_features = group_means(subspace.query_features, list(queries.groups))
        return cosine_scores(gram[n_query:, :n_query] @ subspace.basis_weights, target_features)


def _captured_energy(values: NDArray[np.floating], gradient_norm: NDArray[np.floating]) -> FloatArray:
    """(n,) share of the squared gradient that the subspace holds; NaN without a gradient."""
    norms = np.asarray(gradient_norm, dtype=np.float64)
    squares = (values.astype(np.float64) ** 2).sum(axis=1)
    energy = np.divide(squares, norms**2, out=np.full_like(norms, np.nan), where=norms > 0)
    return energy.astype(np.float32).astype(np.float64)


def scores(
    features: Sequence[NDArray[np.floating]],
    target_features: Sequence[NDArray[np.floating]],
    weights: FloatArray,
    captured_energy: Sequence[NDArray[np.floating]] | None = None,
) -> FloatArray:
    """Scores (n, n_group) `sum_c w_c cos(f_c, target_c)` over checkpoints c.

    `features` holds (n, r_c) and `target_features` (n_group, r_c) for each checkpoint. With `captured_energy`,
    (n,) for each checkpoint, the cosine is scaled by its square root, which is the cosine with the full gradient.
    """
    total = np.zeros((len(features[0]), len(target_features[0])))
    for index, weight in enumerate(weights):
        cosines = cosine_scores(features[index], target_features[index])
        if captured_energy is not None:
            cosines *= np.sqrt(np.asarray(captured_energy[index], dtype=np.float64))[:, None]
        total += weight * cosines
    return total
