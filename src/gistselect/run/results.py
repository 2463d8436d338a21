"""The run folder that people read: the files of the output contract, from finished artifacts."""

from __future__ import annotations

import filecmp
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from gistselect import __version__
from gistselect.errors import ArtifactMismatchError, ConfigError
from gistselect.files import replacing, write_json, write_json_lines
from gistselect.linalg.subspace import cumulative_variance, rank_for_variance
from gistselect.report.spectrum import draw_spectrum
from gistselect.run.cells import FOLDER, load_fit
from gistselect.run.choosing import REFUSED, SELECTED, SELECTION
from gistselect.run.comparing import COMPARISON
from gistselect.run.contamination import OVERLAP
from gistselect.run.finished import MANIFEST, QUERIES, described
from gistselect.run.methods import METHODS, Method
from gistselect.run.plan import Plan
from gistselect.run.prefilter import PLACED, Prefilter, loss_described
from gistselect.run.progress import duration
from gistselect.run.remember import RUN_YAML
from gistselect.run.scoring import QUARANTINE, SAMPLED, SCORES, quarantine_entry
from gistselect.run.store import Artifact, read_table, verify
from gistselect.run.study_config import STUDY_YAML
from gistselect.run.targets import Target
from gistselect.run.validate_config import VALIDATE_YAML
from gistselect.selection.budget import rows_for_budget

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "numpy", "pyarrow", "datasets")
SPECTRUM = "spectrum.svg"
REPORT = "report.html"
SUBSPACE_JSON, SUBSPACE_ARRAYS = "subspace.json", "subspace.safetensors"
OF_A_METHOD = (
    *(SCORES, QUARANTINE, SAMPLED, SELECTION, SELECTED, REFUSED, OVERLAP),
    *(SUBSPACE_JSON, SUBSPACE_ARRAYS, SPECTRUM),
)
"""Files that are published of a method, where they are."""
OF_A_RUN = (MANIFEST, REPORT, QUERIES, COMPARISON, PLACED, "rejected_queries.jsonl")
"""Those of the whole run."""


def publish_scores(method: Method) -> None:
    """scores.parquet, quarantine.jsonl, and of a method with a subspace its description and spectrum.

    What an earlier command left of another selection goes: no file of the folder is about other scores than these.
    Where the fits were cleaned away, what was published of them beside these scores stays.
    """
    _retract_selection(method)
    has_fits = all(fit.artifact.is_complete for column in method.columns for fit, _ in column.entries)
    if has_fits or not _is_published(method.score.artifact / SCORES, method.folder / SCORES):
        for name in (SUBSPACE_ARRAYS, SUBSPACE_JSON, SPECTRUM):
            (method.folder / name).unlink(missing_ok=True)
    (method.folder / SAMPLED).unlink(missing_ok=True)
    for name in (SCORES, QUARANTINE, *([SAMPLED] if method.score.prefilter else [])):
        publish(method.score.artifact / name, method.folder / name)
    if has_fits and any(
        "singular_values" in load_fit(fit.artifact).arrays for column in method.columns for fit, _ in column.entries
    ):
        _write_subspace(method)


def _is_published(made: Path, shown: Path) -> bool:
    return shown.is_file() and (shown.samefile(made) or filecmp.cmp(made, shown, shallow=False))


def publish_prefilter(prefilter: Prefilter | None, output: Path) -> None:
    """prefilter.parquet; that of an earlier command goes."""
    (output / PLACED).unlink(missing_ok=True)
    if prefilter is not None:
        publish(prefilter.artifact / PLACED, output / PLACED)


def publish_selection(method: Method, overlap: Artifact) -> None:
    """selection.parquet and selected.jsonl; refused.parquet if a constraint refused a row, and overlap.parquet if a
    selected row shares a passage with the targets. A comparison of another selection goes."""
    select, folder = method.select, method.folder
    _retract_selection(method)
    publish(method.selection, folder / SELECTION)
    publish(select.artifact / SELECTED, folder / SELECTED)
    for source, there in (
        (select.artifact / REFUSED, bool(select.artifact.facts.get("accounting", {}).get("refused"))),
        (overlap / OVERLAP, overlap.facts["n_rows"] > 0),
    ):
        if there:
            publish(source, folder / source.name)
        else:
            (folder / source.name).unlink(missing_ok=True)


def retract_methods(plan: Plan, output: Path) -> None:
    """Remove the results of methods that this run does not have: files by their names, and a folder that they leave
    empty. What else lies there is not ours, and a link is not followed."""
    kept = {method.folder for method in plan.methods}
    for folder in (output / METHODS).glob("*"):
        if folder in kept or folder.is_symlink() or not folder.is_dir():
            continue
        for name in OF_A_METHOD:
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            folder.rmdir()


def refuse_foreign(folder: Path) -> None:
    """Raises `ConfigError` for a folder that no run has begun and that holds a file by the name of a result."""
    if any((folder / name).is_file() for name in (RUN_YAML, STUDY_YAML, VALIDATE_YAML)):
        return
    if found := sorted(name for name in {*OF_A_METHOD, *OF_A_RUN} if (folder / name).exists()):
        raise ConfigError(
            f"--output {folder} holds {found[0]!r} but no {RUN_YAML}, so no run has put it there, and this one would "
            "replace it; choose another folder, or remove the file."
        )


def _retract_selection(method: Method) -> None:
    made, shown = method.select.artifact / SELECTION, method.folder / SELECTION
    if shown.exists() and not (made.exists() and _same_selection(made, shown)):
        # The manifest goes first: while it is there, it is about the files beside it.
        for name in (MANIFEST, SELECTION, SELECTED, REFUSED, OVERLAP, COMPARISON, REPORT):
            (method.folder / name).unlink(missing_ok=True)


def _same_selection(made: Path, shown: Path) -> bool:
    """Whether two tables hold the same selection, whatever is said of its stability. What is damaged is another."""
    try:
        first, second = read_table(made), read_table(shown)
    except ArtifactMismatchError:
        return False
    names = first.column_names
    return second.column_names[: len(names)] == names and first.equals(second.select(names))


def write_rejected_queries(targets: Sequence[Target], folder: Path) -> None:
    """rejected_queries.jsonl: target examples that cannot be used, apart from the pool's quarantine."""
    rejected = [one for target in targets for one in target.rejected]
    write_json_lines(folder / "rejected_queries.jsonl", map(quarantine_entry, rejected))


def _write_subspace(method: Method) -> None:
    """subspace.json, subspace.safetensors (singular values, left vectors, query and target features), spectrum.svg."""
    assert method.score.warmup is not None
    weights = {one.checkpoint.key: one.weight for one in method.score.warmup.placed()}
    null = method.score.artifact.facts["null_score_quantiles"]
    arrays: dict[str, Any] = {}
    described: dict[str, Any] = {}
    agreement = _agreement(method)
    for column in method.columns:
        checkpoints = []
        for number, (fit, _) in enumerate(column.entries):
            fitted = load_fit(fit.artifact)
            assert fit.checkpoint is not None
            arrays |= {
                f"{column.target}/{number}/{name}": np.ascontiguousarray(array)
                for name, array in fitted.arrays.items()
                if name != "basis"
            }
            values = fitted.arrays["singular_values"]
            name = fit.checkpoint.name
            checkpoints.append(
                {
                    "name": name,
                    "weight": weights[fit.checkpoint.key],
                    "rank": fitted.facts["rank"],
                    "rank_at_95_percent": rank_for_variance(values, 0.95),
                    "singular_values": values.tolist(),
                    "explained_variance": cumulative_variance(values).tolist(),
                    "basis": f"artifacts/{fit.artifact.folder.name}/{FOLDER}",
                    **({"sketch_agreement": agreement[f"{column.target}/{name}"]} if agreement else {}),
                }
            )
        described[column.target] = {
            "groups": list(dict.fromkeys(column.entries[0][0].queries.groups)),
            "null_score_quantiles": null[column.target],
            "checkpoints": checkpoints,
        }
    with replacing(method.folder / SUBSPACE_ARRAYS) as part:
        save_file(arrays, part)
    write_json(method.folder / SUBSPACE_JSON, described)
    draw_spectrum(described, method.folder / SPECTRUM)


def _agreement(method: Method) -> dict[str, dict[str, Any]]:
    if method.agreement is None:
        return {}
    facts = method.score.artifact.facts
    n_rows = rows_for_budget(method.select.options.budget, method.score.rows.facts, facts["n_scored"])
    return method.agreement.measured(n_rows / facts["n_scored"])


def agreement_lines(method: Method) -> Iterable[str]:
    """What the sample said of an approximation, a line each."""
    for name, one in _agreement(method).items():
        yield (
            f"Sketch of {name}: against exact scores on {one['rows']} rows, Spearman {one['spearman']:.3f}, "
            f"{one['overlap_at_budget']:.0%} of the best at the budget the same."
        )


def write_manifest(
    plan: Plan, folder: Path, seed: int, seconds: Mapping[str, float], counts: Mapping[str, Any]
) -> None:
    """manifest.json: versions, digests, counts and times."""
    write_json(
        folder / MANIFEST,
        {
            "gistselect": __version__,
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "seed": seed,
            **plan.described,
            "methods": {method.label: method.described for method in plan.methods},
            "pool": plan.candidates.facts,
            "results": described(plan, folder),
            "selections": _selections(plan) if plan.goes_to("select") else {},
            "found": plan.records.rows.facts["found"],
            "truncated_queries": {target.queries.target: target.n_truncated for target in plan.targets},
            **counts,
            **_prefilter(plan),
            "wall_seconds": dict(seconds),
            "wall": duration(sum(seconds.values())),
            "peak_memory_bytes": peak_memory_bytes(),
        },
    )


def _selections(plan: Plan) -> dict[str, Any]:
    """Of each method what was taken of the budget, what was refused, and the overlap with the targets."""
    found = {}
    for method in plan.methods:
        select, overlap = method.select.artifact, plan.overlaps.of(method.select.artifact)
        found[method.label] = {
            "n_selected": select.facts["n_selected"],
            **select.facts.get("accounting", {}),
            "overlap": overlap.facts if overlap.is_complete else None,
        }
    return found


def _prefilter(plan: Plan) -> dict[str, Any]:
    """What the prefilter left of the pool, and what share of the best rows of each method it lost."""
    if plan.prefilter is None or not plan.prefilter.artifact.is_complete:
        return {}
    selections = {method.label: method.select for method in plan.methods if method.score.prefilter}
    return {
        "prefilter": {
            **plan.prefilter.described(),
            "lost": {
                label: loss_described(select.score, select.artifact.facts["n_selected"])
                for label, select in selections.items()
                if plan.goes_to("select")
            },
        }
    }


def peak_memory_bytes() -> int | None:
    """Largest resident memory of this process so far; unknown on Windows."""
    import sys

    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def publish(source: Path, path: Path) -> None:
    """Put a file of an artifact where people look for it.

    Tables are the same file under a second name, where the file system can; text is a copy, since people edit it.
    """
    verify(source)
    with replacing(path) as part:
        if source.suffix == ".parquet":
            with suppress(OSError):
                os.link(source, part)
        if not part.exists():
            shutil.copyfile(source, part)
