"""What a page is about: the facts of finished runs, as plain data. The run gathers them; this room draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Status = Literal["selected", "borderline", "rejected", "prefiltered", "quarantined"]
"""`borderline`: not selected, with the best scores of all that were not. `prefiltered`: left out by a prefilter."""
Turn = tuple[str, str]
"""Role and text."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """An example of a target."""

    id: str
    target: str
    group: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The query of a row's best target that is nearest to the row."""

    query: int
    """Its place among all queries of the run."""
    value: float
    how: str
    """What `value` is."""


@dataclass(frozen=True, kw_only=True)
class Reasons:
    """Why a row of the pool was selected, or was not."""

    id: str
    source: str
    row: int
    status: Status
    reason: str = ""
    """Why it has no score, if it has none; or which constraint refused it, if one did."""
    rank: int | None = None
    """Its place by score, from 1; None without a score."""
    score: float | None = None
    best_target: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Score for each target."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """Whatever else the table of scores holds of it: loss, captured_energy, n_tokens, …"""
    nearest: Nearest | None = None
    other_ranks: Mapping[str, int] = field(default_factory=dict)
    """Its place by the score of each other representation."""
    turns: tuple[Turn, ...] = ()
    """Its conversation; empty for a row that is none."""


@dataclass(frozen=True, kw_only=True)
class MethodFacts:
    """What one representation made of the pool."""

    label: str
    title: str
    definition: str
    """What its score is."""
    folder: str
    """Of its files, seen from the run folder."""
    scores: NDArray[np.float64]
    """(n_scored,) best score of each row."""
    selected: NDArray[np.bool_]
    """(n_scored,)"""
    sources: NDArray[np.intp]
    """(n_scored,) source of each row, as a place in `source_names`."""
    source_names: tuple[str, ...]
    best_targets: NDArray[np.intp]
    """(n_scored,) best target of each row, as a place in `targets`."""
    targets: tuple[str, ...]
    measured: Mapping[str, NDArray[np.floating]]
    """(n_scored,) numbers of each row: n_tokens, n_cut, captured_energy, …; `stability` is NaN of rows that were not
    selected."""
    null: Mapping[str, Mapping[str, float] | None]
    """Target → quantile → score that rows without signal reach."""
    stability: Mapping[str, Any] = field(default_factory=dict)
    """`draws`, `mean` and `selector`, or the `reason` for which it is not measured; empty if that was left out."""
    spectra: Mapping[str, Any] = field(default_factory=dict)
    """Content of subspace.json; empty for methods without a subspace."""

    @property
    def threshold(self) -> float:
        """Lowest score of a selected row."""
        return float(self.scores[self.selected].min())


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The loss of one training."""

    name: str
    seed: int | None
    """None for the warm-up."""
    steps: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two representations rank the same rows alike."""

    first: str
    second: str
    n_rows: int
    spearman: float
    overlap: float
    """Share of the rows selected by the first that the second selected."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A finished run."""

    name: str
    output: str
    manifest: Mapping[str, Any]
    options: str
    """run.yaml."""
    budget: str
    methods: tuple[MethodFacts, ...]
    """The first made selected.jsonl."""
    targets: tuple[str, ...]
    """The tasks; a method's targets are their groups."""
    queries: tuple[Query, ...]
    n_rejected_queries: int
    reasons: Mapping[str, int]
    """Rows in quarantine by kind of reason, most common first."""
    n_quarantined: int
    n_left_out: int = 0
    """Rows that a prefilter did not leave to the main representation."""
    prefilter: Mapping[str, Any] = field(default_factory=dict)
    """What the manifest says of it; empty without one."""
    comparison: Sequence[Mapping[str, Any]] = ()
    """Content of comparison.json."""
    curves: tuple[Curve, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    rows: tuple[Reasons, ...] = ()
    """Rows to look at; a sample of each kind."""
    missing: tuple[str, ...] = ()
    """What the page cannot tell, since the run folder was cleaned."""
    n_repeated: int = 0
    """Selected rows that say exactly what another one says."""
    n_overlapping: int | None = None
    """Selected rows that share a passage with the targets; None where that was not looked for."""
    accounting: Mapping[str, Any] = field(default_factory=dict)
    """What was taken of the budget, and what constraints refused; empty for a run that did not count."""

    @property
    def main(self) -> MethodFacts:
        """The representation that made selected.jsonl."""
        return self.methods[0]
