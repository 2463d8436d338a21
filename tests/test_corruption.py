"""Whatever lies in a run folder and is damaged is named, and made anew or refused; it is never used."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gistselect.errors import ArtifactMismatchError
from gistselect.run import ingest
from tiny_runs import run

ALL = ("gist", "less:dimension=64", "rds", "bm25")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    replace(path, bytes(content))


def flip_near_the_end(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-min(60, len(content))] ^= 1
    replace(path, bytes(content))


def halve(path: Path) -> None:
    replace(path, path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    replace(path, b"")


def grow(path: Path) -> None:
    replace(path, path.read_bytes() + b"\0")


def delete(path: Path) -> None:
    path.unlink()


def replace(path: Path, content: bytes) -> None:
    path.unlink()  # published tables are the same file under a second name
    path.write_bytes(content)


DAMAGES: tuple[Callable[[Path], None], ...] = (flip, flip_near_the_end, halve, empty, grow, delete)
PUBLISHED = ("selected.jsonl", "selection.parquet", "scores.parquet", "quarantine.jsonl", "subspace.json")
STAGES = ("records", "tokens", "warmup", "fit", "measured", "features", "agreement", "scores", "selection")


def published(output: Path) -> dict[str, bytes]:
    files = [output / name for name in PUBLISHED] + list(output.glob("methods/*/*.*"))
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in files
        if path.is_file() and path.suffix in (".jsonl", ".parquet", ".json")
    }


def artifact_of(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.parent.name == "artifacts")


def without_results_after(output: Path, artifact: Path) -> None:
    """Remove what later stages made, so that this artifact must be read again."""
    stage = artifact.name.rpartition("-")[0]
    for later in STAGES[STAGES.index(stage) + 1 :]:
        for folder in output.glob(f"artifacts/{later}-*"):
            shutil.rmtree(folder)
    for name in PUBLISHED:
        (output / name).unlink(missing_ok=True)


@pytest.fixture
def finished(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A run of several shards and methods, and its results."""
    monkeypatch.setattr(ingest, "SHARD_ROWS", 16)
    values = {**config, "representation": ALL}
    return values, published(run(values))


def outcome(values: dict[str, Any], sound: dict[str, bytes], path: Path, what: str) -> str:
    """Refused by name and then mended as it was told, or right; anything else fails the test."""
    artifact = artifact_of(path)
    said = ""
    try:
        run(values)
    except ArtifactMismatchError as error:
        said = str(error)
    if said:
        assert artifact.name in said, (what, said)
        shutil.rmtree(artifact)
        run(values)
        assert published(values["output"]) == sound, what
        return "refused"
    assert published(values["output"]) == sound, what
    return "made anew or not needed"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "agreement"])
def test_no_damage_to_any_artifact_changes_a_result(
    finished: tuple[dict[str, Any], dict[str, bytes]],
    tmp_path: Path,
    stage: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Every kind of file × every kind of damage; the counts stand in docs/reliability.md."""
    values, sound = finished
    output, kept = values["output"], tmp_path / "kept"
    shutil.copytree(output, kept)
    files: dict[str, Path] = {}
    for path in sorted(kept.glob(f"artifacts/{stage}-*/**/*")):
        file = path.relative_to(kept)
        if path.is_file() and path.name != "seconds.jsonl":
            files.setdefault(re.sub(r"-[0-9a-f]{16}|\d+", "", str(file)), file)
    assert files
    told: dict[str, int] = {}
    for file in files.values():
        for damage in DAMAGES:
            shutil.rmtree(output)
            shutil.copytree(kept, output)
            path = output / file
            without_results_after(output, artifact_of(path))
            damage(path)
            said = outcome(values, sound, path, f"{damage.__name__} {file}")
            told[said] = told.get(said, 0) + 1
    record_property("damage", f"{stage}: {len(files)} kinds of files, {told}")
    assert told.get("refused", 0) >= len(files)


@pytest.mark.parametrize(
    "pattern",
    [
        "tokens-*/shard-00001.parquet",
        "fit-*/fit/arrays.safetensors",
        "warmup-*/training/checkpoint-*/adapter_model.safetensors",
        "warmup-*/training/checkpoint-*/adapter_config.json",
        "scores-*/complete.json",
    ],
)
def test_a_flipped_bit_is_refused_by_name(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.setattr(ingest, "SHARD_ROWS", 16)
    sound = published(run(config))
    path = min(config["output"].glob(f"artifacts/{pattern}"))
    without_results_after(config["output"], artifact_of(path))
    flip(path)
    assert outcome(config, sound, path, pattern) == "refused"


def swapped(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    replace(one, second)
    replace(other, first)


def test_swapped_files_are_refused(finished: tuple[dict[str, Any], dict[str, bytes]]) -> None:
    """Shards of one artifact, of two artifacts, and whole results: sound files in the wrong place."""
    values, sound = finished
    artifacts = values["output"] / "artifacts"
    features = sorted(path for path in artifacts.glob("features-*"))
    fits = sorted(path for path in artifacts.glob("fit-*/fit/arrays.safetensors"))
    pairs = [
        *[tuple(sorted(next(artifacts.glob(f"{stage}-*")).glob("shard-*"))[:2]) for stage in ("records", "tokens")],
        tuple(sorted(features[0].glob("shard-*"))[:2]),
        (features[0] / "shard-00000.parquet", features[1] / "shard-00000.parquet"),
        (fits[0], fits[1]),
        tuple(sorted(artifacts.glob("scores-*/scores.parquet"))[:2]),
        tuple(sorted(artifacts.glob("scores-*/complete.json"))[:2]),
        tuple(sorted(artifacts.glob("features-*/complete.json"))[:2]),
        tuple(sorted(artifacts.glob("selection-*/selected.jsonl"))[:2]),
    ]
    for one, other in pairs:
        before = {path: path.read_bytes() for path in artifacts.rglob("*") if path.is_file()}
        without_results_after(values["output"], artifact_of(one))
        swapped(one, other)
        with pytest.raises(ArtifactMismatchError):
            run(values)
        for path, content in before.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(content)
        run(values)
        assert published(values["output"]) == sound


def test_an_artifact_under_another_name_is_refused(config: dict[str, Any]) -> None:
    """A whole folder in the place of another's, as a copied cache might leave it."""
    output = run(config)
    (first,) = output.glob("artifacts/records-*")
    described = json.loads((first / "inputs.json").read_text())
    described["pool"] = "0" * 64
    (first / "inputs.json").write_text(json.dumps(described))
    (first / "complete.json").unlink()
    with pytest.raises(ArtifactMismatchError, match="holds the result of other inputs"):
        run(config)


def test_results_in_sight_are_made_anew(config: dict[str, Any]) -> None:
    """What people may edit or lose is a copy: the same command puts it back."""
    output = run(config)
    sound = published(output)
    for name in sound:
        for damage in (flip, halve, delete):
            damage(output / name)
            run(config)
            assert published(output) == sound, (name, damage.__name__)
