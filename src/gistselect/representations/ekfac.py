"""EK-FAC influence: how far a row's gradient lowers the target's loss, with the loss's curvature taken into account.

Influence functions with eigenvalue-corrected Kronecker factors (Grosse et al., arXiv 2308.03296; George et al., arXiv
1806.03884), for the adapter alone. H is the second moment of the per-example gradients of a seeded sample of the pool
(the empirical Fisher), approximated for each LoRA matrix in the eigenbasis of its Kronecker factors, and damped. The
score <g(z), H⁻¹ q_j> needs one direction for each group of a target, so the pool's pass is GIST's with fewer columns.
Cost of a row: one backward pass and 2·p·n_group FLOP, 4·n_group bytes stored, and the same for n_query more if their
draws are to be told; once for each checkpoint two backward passes over the sample, and 4·(in² + out²) bytes for each
matrix. Use it where plain cosines find too little: a few
directions that all rows share dominate them, and curvature divides those away.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gistselect.errors import DataError
from gistselect.linalg.similarity import share_in_span
from gistselect.model.sketch_size import NUMBER, Shapes
from gistselect.representations.interface import (
    NO_GRADIENT,
    Features,
    Fitted,
    FloatArray,
    GradientSource,
    KeptApart,
    Prepared,
    Reads,
    Representation,
    Scores,
    have_gradients,
    in_place,
)
from gistselect.representations.queries import Apart, Queries
from gistselect.streams import Stream, generator
from gistselect.types import Example

BASIS = "basis"
"""Folder of the preconditioned directions within a fit."""
N_DRAWS = 10_000
"""Rows without signal, for the null level."""


class EKFAC(Representation):
    """Inner product with the mean query gradient of each group, under the inverse of the damped curvature."""

    rows: int = Field(default=512, ge=1)
    """Rows of the pool on which the curvature is estimated."""
    damping: float = Field(default=0.1, gt=0)
    """Added to the curvature, as a share of its mean over the directions of each matrix."""
    divide_by_norm: bool = False
    """Divide by the length of the row's gradient, so that short rows with large gradients do not lead."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sample."""

    name: ClassVar[str] = "ekfac"
    title: ClassVar[str] = "EK-FAC"
    reads: ClassVar[Reads] = "gradient"
    definition: ClassVar[str] = (
        "estimated fall of a group's mean loss (nats for each unit of weight on the row, higher is nearer, below 0 is "
        "harm): inner product of the row's gradient with the group's mean gradient under the inverse damped curvature, "
        "weighted over checkpoints"
    )
    unscored: ClassVar[str] = NO_GRADIENT
    score_only: ClassVar[frozenset[str]] = frozenset({"divide_by_norm"})

    @property
    def prepare_inputs(self) -> dict[str, Any]:
        return {"rows": self.rows, "seed": self.seed}

    @property
    def fit_inputs(self) -> dict[str, Any]:
        return {"damping": self.damping}

    @property
    def apart(self) -> KeptApart:
        """The mean gradient of a group is one of single queries, and so is what the curvature makes of it."""
        return "queries"

    def width(self, n_queries: int) -> int:
        """One number for each group; at most one a query."""
        return n_queries

    def directions(self, queries: Queries) -> int:
        """One for each group."""
        return len(queries.group_names)

    def passes(self, n_queries: int, at: GradientSource) -> int:
        """At most one for each part of a basis with a column a query."""
        return at.engine.basis_passes(n_queries)

    def prepare_bytes(self, shapes: Shapes) -> int:
        """Two square matrices of eigenvectors for each matrix, and its eigenvalues."""
        return sum(NUMBER * (out**2 + inner**2 + out * inner) for out, inner in shapes)

    def sample(self, n_rows: int) -> NDArray[np.intp]:
        """Drawn without replacement."""
        drawn = generator(self.seed, Stream.CURVATURE_SAMPLE).choice(n_rows, size=min(self.rows, n_rows), replace=False)
        return np.sort(drawn)

    def prepare(self, sample: Sequence[Example], at: GradientSource, folder: Path) -> Prepared:
        """Eigenvectors and corrected eigenvalues of each LoRA matrix, in files.

        Raises `DataError` if no row of the sample has a finite gradient.
        """
        from gistselect.model.curvature import estimate_curvature

        return Prepared(arrays={}, facts=estimate_curvature(at.engine, sample, folder))

    def fit(self, queries: Queries, at: GradientSource, folder: Path, prepared: Prepared | None) -> Fitted:
        """Directions H⁻¹ q_j (p, n_group), their inner products and what chance makes of them.

        Raises `DataError` naming a query whose gradient is not finite, or a group whose gradients cancel out.
        """
        from gistselect.model.basis import Basis
        from gistselect.model.curvature import Preconditioner

        assert prepared is not None
        assert prepared.folder is not None
        names, group_of = queries.group_names, queries.group_of
        means = (group_of[:, None] == np.arange(len(names))) / np.bincount(group_of)  # (n_query, n_group)
        solve = Preconditioner(prepared.folder, prepared.facts, len(names), self.damping)
        (folder / BASIS).mkdir()
        Basis.save_parts(at.engine.basis_parts(queries.examples, means, adjust=solve), folder / BASIS)
        if not np.isfinite(solve.gram).all():
            measured = at.engine.collect(queries.examples, [])
            bad = int(np.argmin(np.isfinite(measured.gradient_norm)))
            raise DataError(
                f"the gradient of query {queries.examples[bad].id!r} is not finite; check its text, or use "
                "--dtype float32."
            )
        if not (lengths := np.diag(solve.gram)).all() and not isinstance(queries, Apart):
            raise DataError(
                f"the gradients of group {names[int(np.argmin(lengths))]!r} of target {queries.target!r} cancel out, "
                "or no row of the pool's sample moves what they move; give other queries, or a larger ekfac:rows=."
            )
        arrays = {"gram": solve.gram, "null_covariance": solve.null_covariance}
        facts = {"queries": len(queries.examples), "mean_squared_gradient": prepared.facts["mean_squared_gradient"]}
        return Fitted(groups=names, arrays=arrays, facts=facts)

    def collector(self, fitted: Fitted | None, at: GradientSource) -> Any:
        """Inner products (n, n_group) with the directions of a target."""
        from gistselect.model.basis import Basis
        from gistselect.model.sinks import ProjectionSink

        assert fitted is not None
        assert fitted.folder is not None
        return ProjectionSink(Basis.load_parts(fitted.folder / BASIS))

    def score(self, shard: Sequence[Features], fitted: Sequence[Fitted], weights: FloatArray) -> Scores:
        """Σ_c w_c <g_c, H_c⁻¹ q_c>, over ‖g_c‖ with `divide_by_norm`.

        `captured_energy` is the share of the squared gradient within the span of a target's directions.
        """
        usable = have_gradients(shard)
        total = np.zeros((len(usable), len(fitted[0].groups)))
        energy = np.zeros(len(usable))
        for one, fit, weight in zip(shard, fitted, weights, strict=True):
            values, norms = in_place(one.values, usable), in_place(one.measured["gradient_norm"], usable, 1.0)
            total += weight * (values / norms[:, None] if self.divide_by_norm else values)
            energy += weight * share_in_span(values, fit.arrays["gram"], norms)
        columns = {"captured_energy": in_place(energy, usable, np.nan)}
        return Scores(values=in_place(total, usable, np.nan), columns=columns)

    def null_level(self, fitted: Sequence[Fitted], weights: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Best scores (n_draws,) of normal gradients of mean zero that have the curvature's second moments."""
        total = 0.0
        for fit, weight in zip(fitted, weights, strict=True):
            values, vectors = np.linalg.eigh(fit.arrays["null_covariance"])
            draws = rng.standard_normal((N_DRAWS, len(values))) * np.sqrt(np.clip(values, 0, None)) @ vectors.T
            scale = fit.facts["mean_squared_gradient"] ** 0.5 if self.divide_by_norm else 1.0
            total = total + weight * draws / scale
        return np.asarray(total).max(axis=1)
