"""The methods of a run: each representation with its scores, its selection and the folder of its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gistselect.data.pool import Pool
from gistselect.representations.interface import Representation
from gistselect.run import agreement, choosing, prefilter, scoring
from gistselect.run.agreement import Agreement
from gistselect.run.arms import BASELINES
from gistselect.run.cells import Column
from gistselect.run.choosing import Select
from gistselect.run.config import RunConfig
from gistselect.run.features import Features
from gistselect.run.ingest import Rows, TokenRows
from gistselect.run.prefilter import Prefilter
from gistselect.run.reading import ReadPool, Tokenise
from gistselect.run.scoring import Score
from gistselect.run.stability import Stability
from gistselect.run.store import Store
from gistselect.run.texts import TextPass
from gistselect.run.warmup import Given, WarmUp

METHODS = "methods"
"""Folder of the results of all methods but the first."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One representation of the run, with its stages and the folder of its results."""

    label: str
    representation: Representation
    columns: tuple[Column, ...]
    score: Score
    agreement: Agreement | None
    select: Select
    stability: Stability | None
    """None if the queries are not to be drawn anew."""
    folder: Path

    @property
    def selection(self) -> Path:
        """The table of the selection that people get: with its stability, where that is measured."""
        stability = self.stability if self.stability and self.stability.artifact.is_complete else None
        return (stability or self.select).artifact / choosing.SELECTION

    @property
    def described(self) -> dict[str, Any]:
        """What the method is and what came of it, for manifest.json."""
        stability = self.stability.facts if self.stability and self.stability.artifact.is_complete else None
        return {
            "title": self.representation.title,
            "score": self.representation.definition,
            **({"stability": stability} if stability else {}),
        }


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What every method of a run works on."""

    config: RunConfig
    store: Store
    pool: Pool
    records: ReadPool
    tokens: Tokenise | None
    warmup: WarmUp | Given | None
    texts: TextPass
    prefilter: Prefilter | None = None


def make_prefilter(
    inputs: Inputs, columns: tuple[Column, ...], features: Features, narrowed: Sequence[str]
) -> Prefilter:
    """The stage that narrows the pool, with its key: a method of its own, but for a selection.

    `narrowed` are titles of the methods that read what it leaves. Raises `ConfigError` if the prefilter is not
    understood.
    """
    config = inputs.config
    narrowing = config.narrowing()
    assert narrowing is not None
    score = _score(inputs, f"prefilter {narrowing.text}", narrowing.representation, columns)
    return Prefilter(
        narrowing=narrowing,
        narrowed=tuple(dict.fromkeys(narrowed)),
        features=features,
        score=score,
        budgets=config.budgets_asked,
        seed=config.seed,
        artifact=inputs.store.artifact(
            "prefilter",
            prefilter.VERSION,
            scores=score.artifact.key,
            share=narrowing.share,
            sampled=narrowing.n_sampled,
            seed=config.seed,
        ),
    )


def make_method(
    inputs: Inputs,
    label: str,
    representation: Representation,
    columns: tuple[Column, ...],
    apart: tuple[Column, ...],
    *,
    first: bool,
) -> Method:
    """The stages of one method, with their keys; `apart` is what is kept of rows for its stability alone."""
    config, store = inputs.config, inputs.store
    score = _score(inputs, label, representation, columns)
    select = Select.planned(
        store,
        score,
        records=inputs.records.rows,
        pool=inputs.pool,
        options=config.selection,
        output_format=config.output_format,
        texts=inputs.texts,
    )
    stability = None
    if draws := config.stability_draws:
        bounds = {"draws": draws, "most": config.stability_columns, "seed": config.seed}
        stability = Stability.planned(select, apart, **bounds, store=store)
    return Method(
        label=label,
        representation=representation,
        columns=columns,
        score=score,
        agreement=_agreement(inputs, columns, score.rows) if representation.is_approximate else None,
        select=select,
        stability=stability,
        folder=config.output if first else config.output / METHODS / label,
    )


def _score(inputs: Inputs, label: str, representation: Representation, columns: tuple[Column, ...]) -> Score:
    candidates = inputs.tokens.rows if inputs.tokens else inputs.records.rows
    narrowed_by = inputs.prefilter
    if narrowed_by is not None and not narrowed_by.narrowing.narrows(representation):
        narrowed_by = None
    if narrowed_by is not None:
        candidates = replace(candidates, kept=narrowed_by.artifact)
    warmup = inputs.warmup if representation.reads == "gradient" else None
    return Score(
        label=label,
        representation=representation,
        columns=columns,
        rows=candidates,
        warmup=warmup,
        strict=inputs.config.strict,
        seed=inputs.config.seed,
        prefilter=narrowed_by,
        artifact=inputs.store.artifact(
            "scores",
            scoring.VERSION,
            representation=representation.name,
            representation_version=representation.version,
            options=representation.score_inputs,
            rows=candidates.artifact.key,
            columns=[
                [column.target, *([fit.artifact.key, cell.features.key] for fit, cell in column.entries)]
                for column in columns
            ],
            weights=warmup.weight_rule if warmup else None,
            seed=inputs.config.seed,
        ),
    )


def _agreement(inputs: Inputs, columns: tuple[Column, ...], rows: Rows) -> Agreement:
    assert isinstance(rows, TokenRows)
    seed = inputs.config.seed
    return Agreement(
        columns=columns,
        rows=rows,
        seed=seed,
        artifact=inputs.store.artifact(
            "agreement",
            agreement.VERSION,
            columns=[[fit.artifact.key, cell.features.key] for column in columns for fit, cell in column.entries],
            seed=seed,
        ),
    )


def arm_names(methods: Sequence[Method]) -> dict[str, str]:
    """The name of each method among the arms of a comparison, by label.

    It is the title, except where two methods may have one, or a title may be a baseline's.
    """

    def name(method: Method) -> str:
        own = method.label == method.representation.name and method.representation.title not in BASELINES.values()
        return method.representation.title if own or len(methods) == 1 else method.label

    return {method.label: name(method) for method in methods}
