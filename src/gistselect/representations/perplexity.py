"""Perplexity: how surprising a row is to the pretrained model, whatever the target.

The mean token loss (log-perplexity) of the supervised tokens; by default rows near the pool's median come first, which
leaves out what the model knows by heart and what is noise to it (Marion et al., "When Less is More", arXiv 2309.04564).
Cost of a row: one forward pass of the base model, 4 bytes stored for all targets together; with order=mid once a
forward pass over the sample. Use it as a control: a method that knows the target should beat one that does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gistselect.errors import DataError
from gistselect.representations.interface import (
    Features,
    Fitted,
    FloatArray,
    HiddenSource,
    Prepared,
    Reads,
    Representation,
    Scores,
)
from gistselect.representations.queries import Queries
from gistselect.streams import Stream, generator
from gistselect.types import Example

MEDIAN = 1
"""Tells the sample of the median from that of a curvature."""


class Perplexity(Representation):
    """A row's mean token loss, by its distance from the pool's median or as it is."""

    order: Literal["mid", "lowest", "highest"] = "mid"
    """Rows nearest to the median loss of the pool first, or those of the lowest or the highest loss."""
    rows: int = Field(default=2048, ge=1)
    """Rows of the pool from which the median is taken."""
    seed: int = Field(default=0, ge=0)
    """Seed of that sample."""

    name: ClassVar[str] = "perplexity"
    title: ClassVar[str] = "Perplexity"
    reads: ClassVar[Reads] = "hidden"
    definition: ClassVar[str] = (
        "minus the distance (nats a token, 0 at most, higher is chosen first) of the row's mean token loss from the "
        "pool's median; with order=lowest minus the loss, with order=highest the loss; the same for every target"
    )
    unscored: ClassVar[str] = "its loss is not finite; check the row's text, or use --dtype float32"
    not_resampled: ClassVar[str] = "its score is the same whatever the queries"

    @property
    def per_target(self) -> bool:
        return False

    @property
    def prepare_inputs(self) -> dict[str, Any] | None:
        return {"rows": self.rows, "seed": self.seed} if self.order == "mid" else None

    @property
    def fit_inputs(self) -> dict[str, Any]:
        return {"order": self.order}

    @property
    def pool_inputs(self) -> dict[str, Any]:
        return {}

    def width(self, n_queries: int) -> int:
        """The loss."""
        return 1

    def sample(self, n_rows: int) -> NDArray[np.intp]:
        """Drawn without replacement."""
        size = min(self.rows, n_rows)
        return np.sort(generator(self.seed, Stream.CURVATURE_SAMPLE, MEDIAN).choice(n_rows, size=size, replace=False))

    def prepare(self, sample: Sequence[Example], at: HiddenSource, folder: Path) -> Prepared:
        """The median loss. Raises `DataError` if no row of the sample has a finite loss."""
        from gistselect.model.hidden import ExampleLoss, collect_hidden

        collector = ExampleLoss()
        collect_hidden(at.forward, sample, [collector])
        losses = collector.result()[:, 0]
        if not (finite := np.isfinite(losses)).any():
            raise DataError("no row of the pool's sample has a finite loss; use --dtype float32.")
        return Prepared(arrays={}, facts={"median": float(np.median(losses[finite])), "rows": int(finite.sum())})

    def fit(self, queries: Queries, at: HiddenSource, folder: Path, prepared: Prepared | None) -> Fitted:
        """The names of the groups: nothing of the queries matters."""
        return Fitted(groups=queries.group_names, arrays={}, facts=dict(prepared.facts) if prepared else {})

    def collector(self, fitted: Fitted | None, at: HiddenSource) -> Any:
        """Mean token losses (n, 1)."""
        from gistselect.model.hidden import ExampleLoss

        return ExampleLoss()

    def score(self, shard: Sequence[Features], fitted: Sequence[Fitted], weights: FloatArray) -> Scores:
        """-|L - median|, -L or L, for each group alike."""
        (one,), (fit,) = shard, fitted
        losses = np.where(np.isfinite(one.values), one.values, np.nan).astype(np.float64)
        match self.order:
            case "mid":
                values = -np.abs(losses - fit.facts["median"])
            case "lowest":
                values = -losses
            case "highest":
                values = losses
        return Scores(values=np.repeat(values, len(fit.groups), axis=1))
