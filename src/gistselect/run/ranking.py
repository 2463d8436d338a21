"""Stages `score` and `select`: the files of the output contract, from stored features."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import save_file

from gistselect import registry
from gistselect.data.stored import normalised
from gistselect.errors import ArtifactMismatchError, DataError
from gistselect.linalg.similarity import null_scores
from gistselect.linalg.subspace import cumulative_variance, rank_for_variance
from gistselect.representations import gist
from gistselect.run.context import Run
from gistselect.run.features import TaskFeatures, feature_matrix
from gistselect.run.ingest import TokenizedPool
from gistselect.run.store import read_table, replacing, write_json, write_lines, write_quarantine, write_table
from gistselect.run.targets import Target
from gistselect.selection.budget import rows_for_budget
from gistselect.types import Record, Rejected, ScoreMatrix

NULL_DRAWS = 2
"""Name of the null level's random stream beside the run's seed."""

MEASUREMENTS = ("loss", "gradient_norm")


@dataclass(frozen=True, kw_only=True)
class _TaskScores:
    """One task's scores over all checkpoints, for every example of the pool; not finite where a gradient is not."""

    names: tuple[str, ...]
    scores: NDArray[np.float64]
    energy: NDArray[np.float64]
    measured: dict[str, NDArray[np.float64]]
    finite: NDArray[np.bool_]
    null: NDArray[np.float64]


def target_name(task: str, group: str) -> str:
    return f"{task}/{group}" if group else task


def score(run: Run, pool: TokenizedPool, found: Sequence[TaskFeatures], targets: dict[str, Target]) -> ScoreMatrix:
    """Score every pool row for every target; writes scores.parquet, quarantine.jsonl and subspace.*."""
    rows = pool.rows()
    by_task = {task: [one for one in found if one.task == task] for task in targets}
    per_task = [_task_scores(run, pool, of_task) for of_task in by_task.values()]
    finite = np.logical_and.reduce([one.finite for one in per_task])
    kept, lost = rows.filter(pa.array(finite)), rows.filter(pa.array(~finite))

    names = tuple(itertools.chain.from_iterable(one.names for one in per_task))
    columns = np.concatenate([one.scores[finite] for one in per_task], axis=1)
    best = columns.argmax(axis=1)
    task_of_column = np.repeat(np.arange(len(per_task)), [len(one.names) for one in per_task])
    energy = np.stack([one.energy[finite] for one in per_task], axis=1)
    table = {
        "id": kept["id"],
        "source": kept["source"],
        "row": kept["row"],
        "score": columns.max(axis=1),
        "best_target": np.asarray(names, dtype=object)[best],
        **{f"score/{name}": columns[:, index] for index, name in enumerate(names)},
        "loss": per_task[0].measured["loss"][finite],
        "n_supervised": kept["n_supervised"],
        "gradient_norm": per_task[0].measured["gradient_norm"][finite],
        "captured_energy": np.take_along_axis(energy, task_of_column[best][:, None], axis=1)[:, 0],
    }
    write_table(run.path("scores.parquet"), pa.table(table))

    without_gradient = [
        Rejected(**row, reason="the gradient is zero or not finite; check the row's text, or use --dtype float32")
        for row in lost.select(["id", "source", "row"]).to_pylist()
    ]
    rejected = [*pool.rejected(), *without_gradient]
    if kept.num_rows + len(rejected) != pool.facts["n_rows"]:
        raise ArtifactMismatchError(f"{kept.num_rows} scored and {len(rejected)} quarantined rows are not the pool.")
    if run.config.strict and rejected:
        raise DataError(
            f"--strict: {len(rejected)} rows cannot be scored, first {rejected[0].id!r}: {rejected[0].reason}"
        )
    rejected += itertools.chain.from_iterable(target.rejected for target in targets.values())
    write_quarantine(run.path("quarantine.jsonl"), rejected)
    _write_subspace(run, by_task, per_task)
    return ScoreMatrix(ids=np.asarray(kept["id"].to_pylist(), dtype=object), targets=names, scores=columns)


def _task_scores(run: Run, pool: TokenizedPool, checkpoints: Sequence[TaskFeatures]) -> _TaskScores:
    tables = [one.pool_features(pool) for one in checkpoints]
    targets = [one.arrays()["target_features"] for one in checkpoints]
    weights = np.asarray([one.checkpoint.weight for one in checkpoints])
    features = [feature_matrix(table) for table in tables]
    measured = {name: _weighted_column(tables, name, weights) for name in MEASUREMENTS}
    energy = _weighted_column(tables, "captured_energy", weights)
    finite = np.isfinite(np.stack([*measured.values(), energy])).all(axis=0) & (measured["gradient_norm"] > 0)
    finite &= np.logical_and.reduce([np.isfinite(one).all(axis=1) for one in features])

    scores = np.full((len(finite), targets[0].shape[0]), np.nan)
    energies = [table["captured_energy"].to_numpy()[finite] for table in tables]
    scores[finite] = gist.scores(
        [one[finite] for one in features], targets, weights, energies if run.config.energy_weighting else None
    )
    return _TaskScores(
        names=tuple(target_name(checkpoints[0].task, group) for group in checkpoints[0].groups),
        scores=scores,
        energy=energy,
        measured=measured,
        finite=finite,
        null=null_scores(targets, weights, np.random.default_rng([run.config.seed, NULL_DRAWS])),
    )


def _weighted_column(tables: Sequence[pa.Table], name: str, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    columns = np.stack([table[name].to_numpy().astype(np.float64) for table in tables])
    return weights @ columns


def _write_subspace(run: Run, by_task: dict[str, list[TaskFeatures]], per_task: Sequence[_TaskScores]) -> None:
    """subspace.safetensors (singular values, query and target features, left vectors) and subspace.json."""
    arrays, described = {}, {}
    for (task, checkpoints), scores in zip(by_task.items(), per_task, strict=True):
        described[task] = {
            "groups": list(checkpoints[0].groups),
            "null_score_quantiles": {str(level): float(np.quantile(scores.null, level)) for level in (0.5, 0.95, 0.99)},
            "checkpoints": [],
        }
        for number, one in enumerate(checkpoints):
            stored = one.arrays()
            arrays |= {f"{task}/{number}/{name}": np.ascontiguousarray(array) for name, array in stored.items()}
            values = stored["singular_values"]
            described[task]["checkpoints"].append(
                {
                    "name": one.checkpoint.name,
                    "weight": one.checkpoint.weight,
                    "rank": stored["left"].shape[1],
                    "rank_at_95_percent": rank_for_variance(values, 0.95),
                    "singular_values": values.tolist(),
                    "explained_variance": cumulative_variance(values).tolist(),
                    "basis": str((one.fit / "basis").relative_to(run.output)),
                }
            )
    with replacing(run.path("subspace.safetensors")) as part:
        save_file(arrays, part)
    write_json(run.path("subspace.json"), described)


def select(run: Run, pool: TokenizedPool, matrix: ScoreMatrix) -> pa.Table:
    """Rank by score within the budget; writes selection.parquet and selected.jsonl. Returns the selection table."""
    n_rows = rows_for_budget(run.config.budget, pool.facts["n_rows"], len(matrix.ids))
    chosen = registry.resolve("selector", "top_k")(matrix, n_rows)
    scores = read_table(run.path("scores.parquet"), ["id", "source", "row", "score", "best_target", "captured_energy"])
    table = scores.take(pa.array(chosen)).add_column(0, "rank", pa.array(np.arange(1, n_rows + 1)))
    write_table(
        run.path("selection.parquet"),
        table.select(["rank", "id", "source", "row", "score", "best_target", "captured_energy"]),
    )
    write_rows(run, table["row"].to_pylist(), "selected.jsonl")
    return table


def write_rows(run: Run, rows: Sequence[int], name: str) -> None:
    """Pool rows as one JSONL file, in the given order, byte-identical to the pool unless normalised."""
    if run.config.output_format == "pool":
        wanted = set(rows)
        places = {one.row: one.place for one in run.pool.rows() if one.row in wanted and one.place}
        raw = run.pool.fetch(places)
        write_lines(run.path(name), (raw[row] for row in rows))
        return
    wanted = set(rows)
    records = {one.row: one for one in run.pool.rows() if isinstance(one, Record) and one.row in wanted}
    write_lines(run.path(name), (json.dumps(normalised(records[row]), ensure_ascii=False).encode() for row in rows))
