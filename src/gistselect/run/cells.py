"""Preparations, fits and cells: what is computed once and kept, for each representation, target and checkpoint.

A *preparation* is what the pool determines whatever the target, for the few representations that need it. A *fit* is
what the queries of one target determine. A *cell* is what a pass keeps of every pool row: for one target,
or for all where a representation keeps the same for each. Both have keys before any work begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gistselect.errors import ArtifactMismatchError
from gistselect.files import replacing_folder
from gistselect.representations.interface import Fitted, Prepared, Reads, Representation
from gistselect.representations.queries import Queries
from gistselect.run.ingest import RecordRows, TokenRows
from gistselect.run.store import Artifact, Store, verify

PREPARED_VERSION = 1
FIT_VERSION = 3
FEATURES_VERSION = 2
MEASURED_VERSION = 1
FOLDER, ARRAYS = "fit", "arrays.safetensors"
"""Of a fit or a preparation: what it wrote, within its artifact."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where gradients are taken; known by its key before the warm-up has made it."""

    name: str
    key: str
    """Digest of a given adapter, or of all that a warm-up depends on and its epoch."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What the pool determines for one representation at one checkpoint, or by its text, before any target."""

    representation: Representation
    checkpoint: Checkpoint | None
    artifact: Artifact

    def save(self, source: Any, rows: RecordRows | TokenRows) -> None:
        """Prepare from a sample of the pool's rows, and keep the result in the artifact, which has begun."""
        examples = []
        if isinstance(rows, TokenRows):
            usable = rows.columns(["row"])["row"].to_numpy()
            examples = rows.select(usable[self.representation.sample(len(usable))].tolist())
        with replacing_folder(self.artifact / FOLDER) as folder:
            prepared = self.representation.prepare(examples, source, folder)
            _save_arrays(prepared, folder)
        self.artifact.complete(**prepared.facts)

    def load(self) -> Prepared:
        """What `save` kept."""
        return Prepared(arrays=_load_arrays(self.artifact), facts=self.artifact.facts, folder=self.artifact / FOLDER)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What one target's queries determine at one checkpoint, or over the pool's text."""

    representation: Representation
    queries: Queries
    checkpoint: Checkpoint | None
    preparation: Preparation | None
    artifact: Artifact

    def save(self, source: Any) -> None:
        """Fit and keep the result in the artifact, which has begun."""
        prepared = self.preparation.load() if self.preparation else None
        with replacing_folder(self.artifact / FOLDER) as folder:
            fitted = self.representation.fit(self.queries, source, folder, prepared)
            _save_arrays(fitted, folder)
        self.artifact.complete(groups=list(fitted.groups), **fitted.facts)


def load_fit(artifact: Artifact) -> Fitted:
    """What `Fit.save` kept."""
    facts = artifact.facts
    groups = tuple(facts.pop("groups"))
    return Fitted(groups=groups, arrays=_load_arrays(artifact), facts=facts, folder=artifact / FOLDER)


def _save_arrays(result: Prepared, folder: Path) -> None:
    save_file({name: np.ascontiguousarray(array) for name, array in result.arrays.items()}, folder / ARRAYS)


def _load_arrays(artifact: Artifact) -> dict[str, NDArray[Any]]:
    path = artifact / FOLDER / ARRAYS
    artifact.bring()
    verify(artifact / FOLDER)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactMismatchError(
            f"{path} is missing or damaged ({error}); delete {artifact.folder} and run again."
        ) from None


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

    @property
    def is_complete(self) -> bool:
        """Whether it is made, with what is measured beside it."""
        return self.features.is_complete and (self.measured is None or self.measured.is_complete)


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
    kept: Mapping[Reads, str] = field(default_factory=dict)
    """Of the rows that a prefilter leaves to passes that read so much."""


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
    preparations = {place: _preparation(store, representation, place, keys) for place in places}
    for one in queries:
        entries = []
        for place in places:
            preparation = preparations[place]
            fit = Fit(
                representation=representation,
                queries=one,
                checkpoint=place,
                preparation=preparation,
                artifact=store.artifact(
                    "fit",
                    FIT_VERSION,
                    **_representation(representation),
                    options=representation.fit_inputs,
                    queries=keys.queries[one.target],
                    **_source(representation, place, keys),
                    **({"prepared": preparation.artifact.key} if preparation else {}),
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


def _preparation(
    store: Store, representation: Representation, place: Checkpoint | None, keys: Keys
) -> Preparation | None:
    if (inputs := representation.prepare_inputs) is None:
        return None
    artifact = store.artifact(
        "prepared",
        PREPARED_VERSION,
        **_representation(representation),
        options=inputs,
        rows=_rows(representation, keys),
        **_source(representation, place, keys),
    )
    return Preparation(representation=representation, checkpoint=place, artifact=artifact)


def _rows(representation: Representation, keys: Keys) -> str | None:
    return keys.records if representation.reads == "text" else keys.tokens


def _narrowed(representation: Representation, keys: Keys) -> dict[str, Any]:
    """What a cell depends on beside the rows of the pool, if it holds only some of them."""
    return {"kept": keys.kept[representation.reads]} if representation.reads in keys.kept else {}


def _measured(store: Store, representation: Representation, place: Checkpoint | None, keys: Keys) -> Artifact | None:
    if representation.reads == "text":
        return None
    return store.artifact(
        "measured",
        MEASURED_VERSION,
        reads=representation.reads,
        tokens=keys.tokens,
        **_source(representation, place, keys),
        **_narrowed(representation, keys),
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
        **_narrowed(representation, keys),
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
    features = store.artifact(
        "features",
        FEATURES_VERSION,
        fit=fit.artifact.key,
        rows=_rows(representation, keys),
        **_narrowed(representation, keys),
    )
    return Cell(
        representation=representation,
        checkpoint=fit.checkpoint,
        fit=fit.artifact,
        features=features,
        measured=_measured(store, representation, fit.checkpoint, keys),
    )
