"""Target-aligned loss drop: what a short training on the target's queries alone takes off a row's loss.

"Target-aligned" selection by the normalised drop (L_0 - L_1) / L_0 between the pretrained model and one that had a
short warm-up of limited capacity on the target (arXiv 2605.09404). Cost of a row: one forward pass of the plain model,
which all targets share, and one more for each target, no gradient; 4 bytes stored for each target (for each group with
per=group). Once for each target a training on its queries. Use it as the cheap rival that knows the target; its
adapter is kept, so that another pool costs forward passes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gistselect.increments import increments
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
from gistselect.types import Example

if TYPE_CHECKING:
    from gistselect.model.forward import Forward
    from gistselect.training.trainer import Progress


PASSES = 3
"""A step of training, in forward passes over what it reads."""


class LossDrop(Representation):
    """Share of its loss that a row loses when the model is trained on the target's queries."""

    per: Literal["target", "group"] = "target"
    """One training on all queries of a target, or one on the queries of each group."""
    adapter_rank: int = Field(default=8, ge=1)
    """Rank of the adapter that is trained: its capacity."""
    epochs: int = Field(default=4, ge=1)
    """Passes over the queries."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate, from which it falls to zero."""
    batch: int = Field(default=8, ge=1)
    """Queries in an optimizer step."""
    seed: int = Field(default=0, ge=0)
    """Seed of the adapter and of the order of the queries."""

    name: ClassVar[str] = "loss_drop"
    title: ClassVar[str] = "Loss drop"
    reads: ClassVar[Reads] = "hidden"
    definition: ClassVar[str] = (
        "share of the row's mean token loss (at most 1, higher is nearer, below 0 it rises) that a short training "
        "on the target's queries takes away"
    )
    unscored: ClassVar[str] = "its loss is zero or not finite; check the row's text, or use --dtype float32"
    not_resampled: ClassVar[str] = "other queries would need other trainings"

    def width(self, n_queries: int) -> int:
        return n_queries if self.per == "group" else 1

    def passes(self, n_queries: int, at: Any) -> int:
        """Forward and backward of each epoch, and the queries' losses before and after."""
        return PASSES * self.epochs + 2

    def fit(self, queries: Queries, at: HiddenSource, folder: Path, prepared: Prepared | None) -> Fitted:
        """The factors of an adapter for the target, or for each of its groups.

        Raises `ModelError` if the training's loss is not a number, or for a live model that carries an adapter.
        """
        from gistselect.model.hidden import AdaptedLoss, collect_hidden
        from gistselect.model.updates import LoraUpdate
        from gistselect.training.train import train

        arrays: dict[str, NDArray[Any]] = {}
        before, after = at.forward.losses(queries.examples), np.empty(len(queries.examples))
        names, members = self._trainings(queries)
        for index in range(len(names)):
            places = np.flatnonzero(members == index)
            rows = [queries.examples[place] for place in places]
            with TemporaryDirectory(dir=folder) as scratch:
                result = train(
                    at.forward.language_model,
                    rows,
                    self._training(rows),
                    output=Path(scratch),
                    seed=self.seed,
                    progress=self._telling(at.forward, rows),
                )
                update = LoraUpdate.read(result.adapter)
            collector = AdaptedLoss([update])
            collect_hidden(at.forward, rows, [collector])
            after[places] = collector.result()[:, 0]
            for layer, (down, up) in update.factors.items():
                arrays |= {f"{index}/{layer}/down": down.numpy(), f"{index}/{layer}/up": up.numpy()}
        facts = {
            "queries": len(queries.examples),
            "query_loss": float(before.mean()),
            "trained_query_loss": float(after.mean()),
        }
        return Fitted(groups=names, arrays=arrays, facts=facts)

    def _telling(self, forward: Forward, rows: Sequence[Example]) -> Progress:
        """Counts a step of the training as what its part of the epochs reads, forward and backward."""
        whole = PASSES * self.epochs * sum(row.n_tokens for row in rows)
        reach = increments(forward.tell)
        return lambda step, steps, _: reach(whole * step // steps)

    def _trainings(self, queries: Queries) -> tuple[tuple[str, ...], NDArray[np.intp]]:
        """Names of the score columns, and which of them each query is trained for."""
        if self.per == "group":
            return queries.group_names, queries.group_of
        return ("",), np.zeros(len(queries.groups), dtype=np.intp)

    def _training(self, rows: Sequence[Example]) -> Any:
        from gistselect.model.adapters import AdapterConfig
        from gistselect.training.recipe import TrainingConfig

        return TrainingConfig(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            warmup_ratio=0,
            global_batch_size=min(self.batch, len(rows)),
            adapter=AdapterConfig(rank=self.adapter_rank, alpha=2 * self.adapter_rank, dropout=0),
        )

    def collector(self, fitted: Fitted | None, at: HiddenSource) -> Any:
        """Mean token losses (n, n_column) under each adapter."""
        import torch

        from gistselect.model.hidden import AdaptedLoss
        from gistselect.model.updates import LoraUpdate

        assert fitted is not None
        updates = []
        for index in range(len(fitted.groups)):
            found = {name.rpartition("/")[0] for name in fitted.arrays if name.startswith(f"{index}/")}
            sides = {
                layer: tuple(torch.from_numpy(fitted.arrays[f"{layer}/{side}"]) for side in ("down", "up"))
                for layer in sorted(found)
            }
            updates.append(LoraUpdate(factors={layer.partition("/")[2]: pair for layer, pair in sides.items()}))  # pyright: ignore[reportArgumentType]
        return AdaptedLoss(updates)

    def score(self, shard: Sequence[Features], fitted: Sequence[Fitted], weights: FloatArray) -> Scores:
        """(L_0 - L_1) / L_0."""
        (features,) = shard
        before, after = features.measured["loss"].astype(np.float64), features.values.astype(np.float64)
        usable = np.isfinite(before) & (before > 0) & np.isfinite(after).all(axis=1)
        values = np.full(after.shape, np.nan)
        values[usable] = (before[usable, None] - after[usable]) / before[usable, None]
        return Scores(values=values)
