"""What a representation is: which pass feeds it, what it keeps of a row, and how kept rows become scores.

A pass over the pool serves every representation that reads the same thing. Each brings a collector to the pass of
its kind, and nothing else of it is seen by the run. A representation is frozen and picklable, so that a worker
process can be told what to do; its fields are its options.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from gistselect.linalg.bootstrap import Mixture
from gistselect.linalg.similarity import cosine_scores, cosines, mean_of_columns, units
from gistselect.representations.queries import Queries
from gistselect.types import Example, Record

if TYPE_CHECKING:
    from gistselect.model.forward import Forward
    from gistselect.model.gradients import GradientEngine
    from gistselect.model.sketch_size import Shapes

FloatArray = NDArray[np.float64]
Reads = Literal["text", "hidden", "gradient"]
"""What a pass reads of a row: its records, a forward pass, or its gradient."""
KeptApart = Literal["queries", "draws"]
"""What scores are kept for beside those of the groups, for the stability of a selection."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the pool determines at one checkpoint, or by its text, whatever the target."""

    arrays: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON values for people and later stages."""
    folder: Path | None = None
    """Where what is too large for memory was written."""


@dataclass(frozen=True, kw_only=True)
class Fitted(Prepared):
    """What the queries of one target determine at one checkpoint, or over one pool's text."""

    groups: tuple[str, ...]
    """Names of the score columns."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a pass kept of the rows of a shard. Rows of a broken example hold NaN or infinity."""

    values: NDArray[np.floating]
    """(n, width)"""
    measured: Mapping[str, NDArray[np.floating]]
    """`loss` and `gradient_norm` (n,) of a gradient pass, `loss` of a forward pass, nothing of text."""


NO_GRADIENT = "the gradient is zero or not finite; check the row's text, or use --dtype float32"
"""Why a row of a gradient pass has no score, and the remedy."""


def have_gradients(shard: Sequence[Features]) -> NDArray[np.bool_]:
    """(n,) which rows have a finite gradient other than zero, and finite features, at every checkpoint."""
    return np.logical_and.reduce(
        [
            np.isfinite(one.values).all(axis=1)
            & np.isfinite(one.measured["loss"])
            & np.isfinite(one.measured["gradient_norm"])
            & (one.measured["gradient_norm"] > 0)
            for one in shard
        ]
    )


def in_place(values: NDArray[np.floating], usable: NDArray[np.bool_], instead: float = 0.0) -> FloatArray:
    """The values (n, ...) in float64, with `instead` for a row that is not usable.

    It is not left out, because a product of matrices may round a row by where it stands among the others: a broken row
    would move the scores of sound ones, in the last digit, on some processors.
    """
    return np.where(usable.reshape(-1, *[1] * (values.ndim - 1)), values, instead).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a shard for one target; a row that cannot be scored is NaN in all of them."""

    values: FloatArray
    """(n, n_group)"""
    columns: Mapping[str, FloatArray] = field(default_factory=dict)
    """Further numbers (n,) for people, such as `captured_energy`."""


def mean_cosines(features: Features, fit: Fitted) -> Scores:
    """Mean cosine of a row with the queries of each group; none of a row that is not finite or zero.

    `fit` has `query_features` (n_query, width) and `group` (n_query,).
    """
    values = features.values
    usable = np.isfinite(values).all(axis=1) & (np.linalg.norm(values, axis=1) > 0)
    cosines = cosine_scores(in_place(values, usable), fit.arrays["query_features"])
    return Scores(values=in_place(mean_of_columns(cosines, fit.arrays["group"]), usable, np.nan))


class TextCollector(Protocol):
    """Takes the records of a pass over text. Those of other passes are sinks of `model.sinks` and `model.hidden`."""

    def take(self, records: Sequence[Record]) -> NDArray[np.floating]:
        """What is kept (n, width) of the records of a shard, in their order."""
        ...


class TextSource(Protocol):
    """Records of the pool, shard by shard."""

    def shards(self) -> Iterator[Sequence[Record]]:
        """The usable records of each shard, in pool order."""
        ...


@dataclass(frozen=True, kw_only=True)
class GradientSource:
    """A model at a checkpoint."""

    engine: GradientEngine
    checkpoint: Path | None
    """Folder of the adapter, with the optimizer's moments if it comes from a training; None for a live model."""


@dataclass(frozen=True, kw_only=True)
class HiddenSource:
    """A model without an adapter."""

    forward: Forward


class Representation(BaseModel, ABC):
    """A way to say how near a pool row is to a target."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: ClassVar[str]
    title: ClassVar[str]
    """As people write it."""
    version: ClassVar[int] = 1
    """Raised whenever the numbers change."""
    reads: ClassVar[Reads]
    definition: ClassVar[str]
    """What a score is, with its sign and unit."""
    unscored: ClassVar[str]
    """Why a row of this representation can have no score, and the remedy."""
    score_only: ClassVar[frozenset[str]] = frozenset()
    """Options that only the scores depend on, not what is kept of a row."""
    not_resampled: ClassVar[str] = "its scores do not follow from what is kept of single queries"
    """Why queries cannot be drawn anew, where that is so."""
    former: ClassVar[Mapping[str, str]] = {}
    """Options that are no more, each with what stands in its place."""
    has_points: ClassVar[bool] = False
    """Whether rows are points of a space that the `query_features` of a fit lie in too, so that rows can be compared
    with each other and with single queries."""

    @property
    def per_target(self) -> bool:
        """Whether what is kept of a row depends on the target."""
        return True

    @property
    def is_of_the_row_alone(self) -> bool:
        """Whether what is kept of a row follows from what is read of it, from the fit, and from no other row or id, so
        that it can be taken over where an earlier pool had the row too. What a model gives always does."""
        return self.reads != "text"

    @property
    def is_approximate(self) -> bool:
        """Whether `reference` gives better scores than `score`."""
        return False

    def on_adapters(self, shapes: Callable[[], Sequence[Shapes]]) -> Self:
        """Itself with everything filled in that follows from the adapters' matrices, before any key is made.

        `shapes` finds those of each checkpoint. Raises `ConfigError` for an option that they do not allow.
        """
        return self

    @property
    def fit_inputs(self) -> dict[str, Any]:
        """The options that `fit` depends on, as JSON."""
        return self.model_dump(mode="json", exclude=set(self.score_only))

    @property
    def pool_inputs(self) -> dict[str, Any]:
        """The options that a collector depends on beside what was fitted, as JSON."""
        return self.fit_inputs

    @property
    def score_inputs(self) -> dict[str, Any]:
        """The options that the scores depend on beside the features, as JSON."""
        return self.model_dump(mode="json", include=set(self.score_only))

    def width(self, n_queries: int) -> int | None:
        """Most numbers kept of a row, for a forecast; None if that takes the model to know."""
        return None

    @property
    def sketch_width(self) -> int | None:
        """See `SketchConfig`; None where gradients are not sketched."""
        return None

    def directions(self, queries: Queries) -> int:
        """Most directions of the adapter's space that a pass holds for a target, each as large as the adapter."""
        return 0

    @property
    def prepare_inputs(self) -> dict[str, Any] | None:
        """The options that `prepare` depends on, as JSON; None if there is nothing to prepare."""
        return None

    def sample(self, n_rows: int) -> NDArray[np.intp]:
        """Places, ascending, of the examples that `prepare` is to see among the `n_rows` usable rows of the pool."""
        return np.zeros(0, dtype=np.intp)

    def prepare(self, sample: Sequence[Example], at: Any, folder: Path) -> Prepared:
        """What all targets share at one checkpoint, made before any `fit`; large files go into `folder`.

        Text is read from `at` and needs no sample.
        """
        raise NotImplementedError

    def passes(self, n_queries: int, at: Any) -> int:
        """Times that `fit` reads the queries, for a forecast."""
        return 1

    def prepare_bytes(self, shapes: Shapes) -> int:
        """Bytes of the files that `prepare` writes for an adapter of these matrices, for a forecast of the disk."""
        return 0

    @abstractmethod
    def fit(self, queries: Queries, at: Any, folder: Path, prepared: Prepared | None) -> Fitted:
        """What the queries determine; large files go into `folder`. `at` is the source that `reads` names.

        `prepared` is None unless there are `prepare_inputs`.
        """

    @abstractmethod
    def collector(self, fitted: Fitted | None, at: Any) -> Any:
        """A collector for passes of the kind that `reads` names, used again for every shard.

        `fitted` is None unless `per_target`.
        """

    @abstractmethod
    def score(self, shard: Sequence[Features], fitted: Sequence[Fitted], weights: FloatArray) -> Scores:
        """Scores of a shard from what was kept at each checkpoint (one entry without checkpoints).

        Called for several shards at once, by threads: it changes nothing beside its own arrays.
        """

    @property
    def own_space(self) -> bool:
        """Whether the space of a representation with points depends on the target."""
        return self.per_target

    def points(self, kept: Features, fitted: Fitted) -> NDArray[np.floating]:
        """Rows (n, d) of a shard in the space of the fit's `query_features` (n_query, d)."""
        return kept.values

    def null_level(self, fitted: Sequence[Fitted], weights: FloatArray, rng: np.random.Generator) -> FloatArray | None:
        """Best scores (n_draws,) of rows without signal, where there is such a model of chance."""
        return None

    def resampled(self, fitted: Fitted, groups: NDArray[np.integer], counts: NDArray[np.intp]) -> Mixture | None:
        """What stands for each group had each query been drawn `counts` (n_draws, n_query) times, instead of once.

        `groups` (n_query,) is the score column of each query. None where that would take new gradients, trainings or a
        reading of the pool; see `apart` and `not_resampled`.
        """
        return None

    @property
    def apart(self) -> KeptApart | None:
        """What the passes keep beside the scores, so that queries can be drawn anew without `resampled`.

        `queries`: the scores for every query as a group of its own, whose mean is the group's score. `draws`: the
        scores for the queries of every draw. None where `resampled` does without, or nothing helps.
        """
        return None

    @property
    def can_be_resampled(self) -> bool:
        """Whether other queries can be drawn in the place of those that were given."""
        return self.apart is not None or type(self).resampled is not Representation.resampled

    def directed(self, kept: Features, fitted: Fitted) -> FloatArray:
        """Rows (n, d) whose inner products with the mixtures of `resampled` are their scores at a checkpoint."""
        return units(self.points(kept, fitted))

    def nearness(self, features: Features, fitted: Fitted) -> FloatArray | None:
        """How near rows are to single queries (n, n_query), to explain a score; None where they are not told apart.

        By default the cosine with the `query_features` of the fit, if what is kept of a row is of the same kind.
        """
        queries = fitted.arrays.get("query_features")
        if queries is None:
            return None
        rows = self.points(features, fitted)
        return cosines(rows, queries) if queries.shape[1] == rows.shape[1] else None

    def reference(self, queries: Queries, sample: Sequence[Example], at: Any) -> FloatArray | None:
        """Scores (n_sample, n_group) of a few rows without the approximation of this representation, if it is one."""
        return None


class ScoredText(Representation, ABC):
    """A representation of text that keeps nothing of a row but its scores."""

    reads: ClassVar[Reads] = "text"

    @property
    def apart(self) -> KeptApart | None:
        """Those of every draw: the pass has the text at hand."""
        return "draws"

    def width(self, n_queries: int) -> int:
        """One number for each group; at most one a query."""
        return n_queries

    def score(self, shard: Sequence[Features], fitted: Sequence[Fitted], weights: FloatArray) -> Scores:
        """The scores as they were collected."""
        return Scores(values=shard[0].values.astype(np.float64))
