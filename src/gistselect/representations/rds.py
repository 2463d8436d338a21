"""RDS+: cosines of position-weighted mean hidden states of the pretrained model (arXiv 2503.01807, section 3).

A row is known by Σ i·h_i / Σ i over the last hidden states h_i of its whole conversation, prompt included. Cost of a
row: one forward pass of the base model without an adapter, 4·h bytes stored for hidden width h; no warm-up and no
gradient. Its features know nothing of the target. Use it as the rival that costs half a gradient pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gistselect.errors import DataError
from gistselect.linalg.bootstrap import Mixture, mean_of_cosines
from gistselect.representations.interface import (
    Features,
    Fitted,
    FloatArray,
    HiddenSource,
    Prepared,
    Reads,
    Representation,
    Scores,
    mean_cosines,
)
from gistselect.representations.queries import Queries


class RDS(Representation):
    """Mean over a group's queries of the cosine with the row's mean hidden state."""

    name: ClassVar[str] = "rds"
    title: ClassVar[str] = "RDS+"
    reads: ClassVar[Reads] = "hidden"
    definition: ClassVar[str] = (
        "mean over a group's queries of the cosine (-1 to 1, higher is nearer) of position-weighted mean hidden states"
    )
    unscored: ClassVar[str] = "its hidden states are zero or not finite; check the row's text, or use --dtype float32"
    has_points: ClassVar[bool] = True

    @property
    def per_target(self) -> bool:
        return False

    def fit(self, queries: Queries, at: HiddenSource, folder: Path, prepared: Prepared | None) -> Fitted:
        """Mean hidden states (n_query, h) of the queries.

        Raises `DataError` naming a query whose hidden states are zero or not finite.
        """
        from gistselect.model.hidden import PositionWeightedMean, collect_hidden

        collector = PositionWeightedMean()
        collect_hidden(at.forward, queries.examples, [collector])
        features = collector.result()
        lengths = np.linalg.norm(features, axis=1)
        if len(bad := np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))):
            raise DataError(
                f"the hidden states of query {queries.examples[bad[0]].id!r} are zero or not finite; check its text, "
                "or use --dtype float32."
            )
        return Fitted(groups=queries.group_names, arrays={"query_features": features, "group": queries.group_of})

    def collector(self, fitted: Fitted | None, at: HiddenSource) -> Any:
        """Mean hidden states (n, h)."""
        from gistselect.model.hidden import PositionWeightedMean

        return PositionWeightedMean()

    def score(self, shard: Sequence[Features], fitted: Sequence[Fitted], weights: FloatArray) -> Scores:
        """Means of cosines."""
        (features,), (fit,) = shard, fitted
        return mean_cosines(features, fit)

    def resampled(self, fitted: Fitted, groups: NDArray[np.integer], counts: NDArray[np.intp]) -> Mixture:
        """Means of cosines; the space of the features knows nothing of the queries."""
        return mean_of_cosines(fitted.arrays["query_features"], groups, counts)
