"""Stage `features`: task subspaces from the queries, then one backward pass over the pool for all targets at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from gistselect.errors import ArtifactMismatchError
from gistselect.model.adapters import load_adapter
from gistselect.model.batches import trimmed_lengths
from gistselect.model.engine_config import SketchConfig
from gistselect.model.gradients import Basis, GradientEngine, GradientFeatures
from gistselect.model.sketch import SketchedEngine, project
from gistselect.representations import gist
from gistselect.run.checkpoints import Checkpoint
from gistselect.run.context import Run
from gistselect.run.ingest import TokenizedPool
from gistselect.run.progress import Step
from gistselect.run.store import Artifact, read_table, replacing, write_table
from gistselect.run.targets import Target
from gistselect.types import Example

FIT_VERSION = 2
FEATURES_VERSION = 1
SKETCHES_VERSION = 1

Engine = GradientEngine | SketchedEngine


@dataclass(frozen=True, kw_only=True)
class TaskFeatures:
    """Where one task's subspace and the pool's features in it are, for one checkpoint."""

    task: str
    checkpoint: Checkpoint
    fit: Artifact
    features: Artifact

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self.fit.facts["groups"])

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """singular_values, left, query_features and target_features of the subspace."""
        return load_file(self.fit / "subspace.safetensors")

    def basis(self) -> Basis:
        """(p, r) orthonormal columns `V`, one tensor for each parameter block."""
        return Basis.load_parts(self.fit / "basis")

    def pool_features(self, pool: TokenizedPool) -> pa.Table:
        """Every pool example's features and measurements, in pool order; raises on a missing or foreign shard."""
        table = pa.concat_tables(read_table(self.features.shard(index)) for index in range(pool.n_shards))
        if table["id"].combine_chunks() != pool.rows()["id"].combine_chunks():
            raise ArtifactMismatchError(
                f"{self.features.folder} holds other rows than the pool; delete it and run again."
            )
        return table


class _LazyEngine:
    """The gradient engine of a checkpoint, made only if something has to be computed."""

    def __init__(self, run: Run, checkpoint: Checkpoint) -> None:
        self._run, self.checkpoint = run, checkpoint
        self._engine: Engine | None = None
        self._step: Step | None = None

    @contextmanager
    def step(self, name: str, total: int) -> Iterator[Step]:
        """Report on work of `total` tokens, which advances with every batch of the engine."""
        with self._run.reporter.step(name, total=total, unit="tokens") as self._step:
            yield self._step
        self._step = None

    def _advance(self, tokens: int) -> None:
        if self._step is not None:
            self._step.advance(tokens)

    def __call__(self) -> Engine:
        if self._engine is None:
            self._engine = checkpoint_engine(self._run, self.checkpoint, self._advance)
            if sketch := sketch_config(self._run):
                self._engine = SketchedEngine(self._engine, sketch)
            self._run.say(f"Gradients at {self.checkpoint.name}: {self._engine.mode}.")
        return self._engine


def checkpoint_engine(
    run: Run, checkpoint: Checkpoint, on_tokens: Callable[[int], None] | None = None
) -> GradientEngine:
    """Exact gradients at a checkpoint; `on_tokens` as of `GradientEngine`."""
    model = run.live or run.load_model()
    if checkpoint.adapter is not None:
        model = load_adapter(model, checkpoint.adapter)
    return GradientEngine(model, run.config.engine, on_tokens)


def sketch_config(run: Run) -> SketchConfig | None:
    """The run's sketch, or None for exact gradients."""
    return SketchConfig(dimension=run.config.sketch, seed=run.config.seed) if run.config.sketch else None


def _gradient_inputs(run: Run, checkpoint: Checkpoint) -> dict[str, Any]:
    """What gradients, or their sketches, depend on beside the examples."""
    sketch = sketch_config(run)
    return {
        **run.model_inputs,
        "adapter": checkpoint.digest,
        "sketch": sketch.model_dump(mode="json") if sketch else None,
    }


def features(
    run: Run, pool: TokenizedPool, targets: dict[str, Target], checkpoints: Sequence[Checkpoint]
) -> list[TaskFeatures]:
    """Features of the pool for every target and checkpoint; only what is missing is computed."""
    found = []
    for checkpoint in checkpoints:
        engine = _LazyEngine(run, checkpoint)
        of_checkpoint = [_fit(run, checkpoint, target, engine, pool) for target in targets.values()]
        _pool_pass(run, pool, [one for one in of_checkpoint if not one.features.is_complete], engine)
        found += of_checkpoint
    return found


def _fit(run: Run, checkpoint: Checkpoint, target: Target, engine: _LazyEngine, pool: TokenizedPool) -> TaskFeatures:
    fit = run.store.artifact(
        "fit",
        FIT_VERSION,
        **_gradient_inputs(run, checkpoint),
        queries=target.digest,
        rank=run.config.rank,
        rtol=run.config.rtol,
    )
    features_ = run.store.artifact("features", FEATURES_VERSION, fit=fit.key, tokens=pool.artifact.key)
    if not fit.is_complete:
        n_groups = len(set(target.groups))
        run.say(f"Target {target.task}: {len(target.examples):,} queries in {n_groups} group{'s' * (n_groups != 1)}.")
        queries = target.examples
        n_tokens = int(trimmed_lengths(queries).sum())
        with engine.step("query gradients", n_tokens * engine().gram_passes(len(queries))):
            fitted = gist.fit(engine(), queries, target.groups, rank=run.config.rank, rtol=run.config.rtol)
        with (
            engine.step("basis", n_tokens * engine().basis_passes(fitted.subspace.rank)),
            run.store.folder(fit, "basis") as folder,
        ):
            Basis.save_parts(engine().basis_parts(queries, fitted.subspace.basis_weights), folder)
        _save_fit(fit, fitted)
        subspace = fitted.subspace
        kept = subspace.explained_variance[subspace.rank - 1]
        run.say(
            f"  subspace: rank {subspace.rank} of {len(target.examples)} keeps {kept:.1%} of the gradient variance."
        )
    return TaskFeatures(task=target.task, checkpoint=checkpoint, fit=fit, features=features_)


def _save_fit(artifact: Artifact, fitted: gist.TaskSubspace) -> None:
    subspace = fitted.subspace
    arrays = {
        "left": subspace.left,
        "singular_values": subspace.singular_values,
        "query_features": subspace.query_features,
        "target_features": fitted.target_features,
    }
    with replacing(artifact / "subspace.safetensors") as part:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, part)
    artifact.complete(rank=subspace.rank, groups=list(fitted.groups))


def _pool_pass(run: Run, pool: TokenizedPool, pending: list[TaskFeatures], engine: _LazyEngine) -> None:
    """One backward pass over the pool for all pending targets, shard by shard."""
    if not pending:
        return
    bases = [one.basis() for one in pending]
    edges = np.cumsum([0, *(basis.rank for basis in bases)])
    in_stacked_basis = _shard_features(run, pool, engine, Basis.concatenate(bases))
    with engine.step("pool gradients", pool.facts["n_tokens"]) as step:
        for index in range(pool.n_shards):
            examples = pool.examples(index)
            n_tokens = sum(example.n_tokens for example in examples)
            if all(one.features.shard(index).is_file() for one in pending):
                step.find_done(n_tokens)
                continue
            end = step.done + n_tokens
            result = in_stacked_basis(index, examples)
            for place, one in enumerate(pending):
                own = result.features[:, edges[place] : edges[place + 1]]
                table = features_table(examples, dataclasses.replace(result, features=own))
                write_table(one.features.shard(index), table)
            step.reach(end)
    for one in pending:
        one.features.complete(rows=pool.facts["n_examples"])


def _shard_features(
    run: Run, pool: TokenizedPool, engine: _LazyEngine, basis: Basis
) -> Callable[[int, Sequence[Example]], GradientFeatures]:
    """How a shard's features come about: from the engine, or from its sketches if the run keeps them."""
    if not run.config.keep_sketch:
        on_device = cache(lambda: basis.to(engine().device))
        return lambda _index, examples: engine().features(examples, on_device())
    kept = run.store.artifact(
        "sketches", SKETCHES_VERSION, **_gradient_inputs(run, engine.checkpoint), tokens=pool.artifact.key
    )

    def from_kept(index: int, examples: Sequence[Example]) -> GradientFeatures:
        if not kept.shard(index).is_file():
            sketching = engine()
            assert isinstance(sketching, SketchedEngine)
            write_table(kept.shard(index), features_table(examples, sketching.sketches(examples)))
        return project(read_features(kept.shard(index)), basis)

    return from_kept


def features_table(examples: Sequence[Example], result: GradientFeatures) -> pa.Table:
    """id, loss, n_supervised, gradient_norm, captured_energy and features (or a sketch) of each example."""
    features_ = np.ascontiguousarray(result.features, dtype=np.float32)
    norms = np.asarray(result.gradient_norm, dtype=np.float64)
    energy = np.divide(
        (features_.astype(np.float64) ** 2).sum(axis=1), norms**2, out=np.zeros_like(norms), where=norms > 0
    )
    return pa.table(
        {
            "id": [example.id for example in examples],
            "loss": np.asarray(result.loss, dtype=np.float32),
            "n_supervised": np.asarray(result.n_supervised, dtype=np.int32),
            "gradient_norm": norms.astype(np.float32),
            "captured_energy": energy.astype(np.float32),
            "features": pa.FixedSizeListArray.from_arrays(features_.reshape(-1), features_.shape[1]),
        }
    )


def read_features(path: Path) -> GradientFeatures:
    """What `features_table` stored."""
    table = read_table(path)
    return GradientFeatures(
        features=feature_matrix(table),
        loss=table["loss"].to_numpy(),
        n_supervised=table["n_supervised"].to_numpy().astype(np.int64),
        gradient_norm=table["gradient_norm"].to_numpy(),
    )


def feature_matrix(table: pa.Table) -> NDArray[np.float32]:
    """The features (n, r) of a features table."""
    column = table["features"].combine_chunks()
    return column.values.to_numpy().reshape(len(column), -1)
