"""Fits and cells: what is computed once and kept, for each representation, target and checkpoint.

A *fit* is what the queries of one target determine. A *cell* is what a pass keeps of every pool row: for one target,
or for all where a representation keeps the same for each. Both have keys before any work begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gistselect.errors import ArtifactMismatchError
from gistselect.files import replacing_folder
from gistselect.representations.interface import Fitted, Queries, Representation
from gistselect.run.store import Artifact, Store

FIT_VERSION = 3
FEATURES_VERSION = 2
MEASURED_VERSION = 1
FOLDER, ARRAYS = "fit", "arrays.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where gradients are taken; known by its key before the warm-up has made it."""

    name: str
    key: str
    """Digest of a given adapter, or of all that a warm-up depends on and its epoch."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What one target's queries determine at one checkpoint, or over the pool's text."""

    representation: Representation
    queries: Queries
    checkpoint: Checkpoint | None
    artifact: Artifact

    def save(self, source: Any) -> None:
        """Fit and keep the result in the artifact, which has begun."""
        with replacing_folder(self.artifact / FOLDER) as folder:
            fitted = self.representation.fit(self.queries, source, folder)
            arrays = {name: np.ascontiguousarray(array) for name, array in fitted.arrays.items()}
            save_file(arrays, folder / ARRAYS)
        self.artifact.complete(groups=list(fitted.groups), **fitted.facts)


def load_fit(artifact: Artifact) -> Fitted:
    """What `Fit.save` kept."""
    facts = artifact.facts
    groups = tuple(facts.pop("groups"))
    folder = artifact / FOLDER
    try:
        arrays = load_file(folder / ARRAYS)
    except (OSError, SafetensorError) as error:
        raise ArtifactMismatchError(
            f"{folder / ARRAYS} is missing or damaged ({error}); delete {artifact.folder} and run again."
        ) from None
    return Fitted(groups=groups, arrays=arrays, facts=facts, folder=folder)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a pass keeps of every row for one representation: for one target's fit, or for all targets.

    Small and picklable: it is told to worker processes.
    """

    representation: Representation
    checkpoint: Checkpoint | None
    fit: Artifact | None
    features: Artifact
    measured: Artifact | None
    """Loss and gradient norm of every row, shared by all cells of one checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One target of one representation: its fit and its cell at each checkpoint (one entry without checkpoints)."""

    representation: Representation
    target: str
    entries: tuple[tuple[Fit, Cell], ...]


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Digests of what fits and cells depend on beside queries and options."""

    records: str
    tokens: str | None
    model: Mapping[str, Any]
    """What gradients and hidden states depend on, beside tokens and adapter."""
    queries: Mapping[str, str]
    """Of each target: ids, tokens, labels and groups of its queries (their text in a run without a tokenizer)."""


def lay_out(
    store: Store,
    representation: Representation,
    queries: Sequence[Queries],
    checkpoints: Sequence[Checkpoint],
    keys: Keys,
) -> list[Column]:
    """The columns of one representation, with every key made and nothing computed."""
    places: Sequence[Checkpoint | None] = checkpoints if representation.reads == "gradient" else [None]
    cells = {place: _shared_cell(store, representation, place, keys) for place in places}
    columns = []
    for one in queries:
        entries = []
        for place in places:
            fit = Fit(
                representation=representation,
                queries=one,
                checkpoint=place,
                artifact=store.artifact(
                    "fit",
                    FIT_VERSION,
                    **_representation(representation),
                    options=representation.fit_inputs,
                    queries=keys.queries[one.target],
                    **_source(representation, place, keys),
                ),
            )
            entries.append((fit, cells[place] or _own_cell(store, fit, keys)))
        columns.append(Column(representation=representation, target=one.target, entries=tuple(entries)))
    return columns


def _representation(representation: Representation) -> dict[str, Any]:
    return {"representation": representation.name, "representation_version": representation.version}


def _source(representation: Representation, checkpoint: Checkpoint | None, keys: Keys) -> dict[str, Any]:
    """What the source of a pass depends on."""
    if representation.reads == "text":
        return {"records": keys.records}
    return {**keys.model, "adapter": checkpoint.key if checkpoint else None}


def _rows(representation: Representation, keys: Keys) -> str | None:
    return keys.records if representation.reads == "text" else keys.tokens


def _measured(store: Store, representation: Representation, place: Checkpoint | None, keys: Keys) -> Artifact | None:
    if representation.reads == "text":
        return None
    return store.artifact(
        "measured",
        MEASURED_VERSION,
        reads=representation.reads,
        tokens=keys.tokens,
        **_source(representation, place, keys),
    )


def _shared_cell(store: Store, representation: Representation, place: Checkpoint | None, keys: Keys) -> Cell | None:
    if representation.per_target:
        return None
    features = store.artifact(
        "features",
        FEATURES_VERSION,
        **_representation(representation),
        options=representation.pool_inputs,
        rows=_rows(representation, keys),
        **_source(representation, place, keys),
    )
    return Cell(
        representation=representation,
        checkpoint=place,
        fit=None,
        features=features,
        measured=_measured(store, representation, place, keys),
    )


def _own_cell(store: Store, fit: Fit, keys: Keys) -> Cell:
    representation = fit.representation
    features = store.artifact("features", FEATURES_VERSION, fit=fit.artifact.key, rows=_rows(representation, keys))
    return Cell(
        representation=representation,
        checkpoint=fit.checkpoint,
        fit=fit.artifact,
        features=features,
        measured=_measured(store, representation, fit.checkpoint, keys),
    )
