"""Cleaning up a run folder: what its results no longer need goes, and nothing that a link points at."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gistselect.errors import ArtifactMismatchError, ConfigError
from gistselect.files import digest, read_json
from gistselect.run.choosing import SELECTION
from gistselect.run.finished import FinishedRun
from gistselect.run.methods import METHODS
from gistselect.run.objects import Bucket
from gistselect.run.remember import recall
from gistselect.run.scoring import SCORES
from gistselect.run.store import COMPLETE, INPUTS, SHARED, SPENT, STORED, Store
from gistselect.training.checkpoints import CURVE

Keep = Literal["selection", "scores"]
STORE = "artifacts"
BULKY = {
    "features": "what the passes kept of every row",
    "measured": "losses and gradient norms of the passes",
    "prepared": "what all targets shared",
    "fit": "task subspaces and what else the queries determined",
    "warmup": "adapters and optimizer of the warm-up",
}
"""Stages that only scores need, and what people read for each."""
OTHERS = {
    "records": "the pool as it was read",
    "tokens": "the pool as tokens",
    "scores": "scores of other options",
    "selection": "selections of other options",
    "stability": "how stable selections of other options are",
    "train": "trained models of the comparison",
}
"""Stages of which what the last command used is kept with the scores."""
REST = {**OTHERS, "scores": "scores", "selection": "selections"}
"""The same where nothing of them is kept."""
NOTES = (INPUTS, SPENT, CURVE)
"""Small files that stay when the rest of an artifact goes: what it was, what it took, and how a training went."""
_ARTIFACT = re.compile(r"([a-z_]+)-[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True)
class Removal:
    """Files that go together."""

    what: str
    files: tuple[Path, ...]
    objects: tuple[tuple[str, str], ...]
    """Artifact and name of what goes in the object store of the run."""
    bytes: int
    """Freed by all removals together up to this one: a file with a second name elsewhere frees nothing."""


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """What cleaning a run folder would remove."""

    folder: Path
    keep: Keep
    bucket: Bucket | None
    removals: tuple[Removal, ...]
    links: tuple[Path, ...]
    """Links that were found; they and what they point at stay."""

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.removals)


def find_removals(folder: Path, keep: Keep) -> Cleaning:
    """What the results of a finished run no longer need, with sizes; nothing is changed.

    With `scores` another selection needs no pass; with `selection` only the selected rows and the report stay.

    Raises `ConfigError` for a folder that is no run folder or holds no selection, `ArtifactMismatchError` if scores
    are to be kept and are not there.
    """
    bucket = recall(folder).bucket
    run = FinishedRun.open(folder)
    links: list[Path] = []
    found: dict[str, list[Path]] = {}
    objects: dict[str, dict[tuple[str, str], int]] = {}
    kept = _stands_on(folder, _results(run)) if keep == "scores" else set()
    if keep == "scores" and not (run.methods and all(method.scores.is_complete for method in run.methods)):
        raise ArtifactMismatchError(
            f"{folder} does not hold its scores; 'gistselect score --output {folder}' makes them, or clean with "
            "--keep selection."
        )
    for artifact in _artifacts(folder, links):
        stage = artifact.name.rpartition("-")[0]
        if keep == "scores" and (stage not in (BULKY | OTHERS) or (artifact.name in kept and stage not in BULKY)):
            continue
        what = {**BULKY, **(OTHERS if keep == "scores" else REST)}.get(stage, f"{stage} of the run")
        files = [one for one in _files(artifact, links) if one.name not in NOTES]
        found.setdefault(what, []).extend(sorted(files, key=lambda one: (one.name != COMPLETE, one)))
        if bucket is not None and stage in SHARED:
            listed = bucket.listed(artifact.name, fresh=True)
            names = sorted(listed, key=lambda one: (one != COMPLETE, one))
            objects.setdefault(what, {}).update({(artifact.name, name): listed[name] for name in names})
    if keep == "selection":
        for path in [folder / SCORES, *_beneath(folder / METHODS, SCORES, links)]:
            if path.is_symlink():
                links.append(path)
            elif path.is_file():
                found.setdefault("scores", []).append(path)
    removals = tuple(_measured(found, objects))
    return Cleaning(folder=folder, keep=keep, bucket=bucket, removals=removals, links=tuple(sorted(set(links))))


def remove(cleaning: Cleaning) -> None:
    """Remove it. The mark of a whole result goes before its files, so an interruption leaves nothing half valid."""
    for one in cleaning.removals:
        _note_shards(cleaning, one)
        for artifact, name in one.objects:
            assert cleaning.bucket is not None
            cleaning.bucket.remove(artifact, [name])
        for path in one.files:
            path.unlink(missing_ok=True)
    for path, _, _ in os.walk(cleaning.folder / STORE, topdown=False):
        if path != str(cleaning.folder / STORE):
            with suppress(OSError):  # not empty
                os.rmdir(path)


def _note_shards(cleaning: Cleaning, removal: Removal) -> None:
    """Keep how large the features were, which the cost of a method tells."""
    folders = {path.parent for path in removal.files if path.name.startswith("shard-")}
    folders |= {cleaning.folder / STORE / name for name, one in removal.objects if one.startswith("shard-")}
    for folder in sorted(folders):
        artifact = Store(folder.parent, cleaning.bucket).existing(folder.name)
        if STORED not in artifact.spent and (n_bytes := artifact.shard_bytes):
            artifact.spend(**{STORED: n_bytes})


def cleaning_lines(cleaning: Cleaning, *, done: bool) -> Iterator[str]:
    """What was found, or removed, a line each."""
    if not cleaning.removals:
        yield f"{cleaning.folder} holds nothing that {_kept(cleaning.keep)} would not need."
    else:
        yield f"{'Removed from' if done else 'To remove from'} {cleaning.folder}:"
        for one in cleaning.removals:
            there = f"{len(one.files):,} files" + f", {len(one.objects):,} objects" * bool(one.objects)
            yield f"  {size(one.bytes):>9}  {one.what} ({there})"
        yield f"  {size(cleaning.bytes):>9}  in all"
    for link in cleaning.links:
        yield f"{link} is a link; it and what it points at stay."
    if cleaning.keep == "scores":
        yield f"'gistselect select --output {cleaning.folder}' needs no pass; another target or method makes one anew."
    else:
        yield f"'gistselect run --output {cleaning.folder}' would compute all anew."


def size(n_bytes: float) -> str:
    """Bytes in the largest unit of which there is one."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} GB"


def _kept(keep: Keep) -> str:
    return "another selection" if keep == "scores" else "its selection"


def _results(run: FinishedRun) -> set[str]:
    """Folders of the store that hold results of the last command."""
    names = {method.scores.folder.name for method in run.methods}
    names |= {arm["artifact"] for arm in run.results["arms"]}
    for arm in run.results["arms"]:
        artifact = run.stored(arm["artifact"])
        if artifact.is_complete:
            names.add(artifact.facts["training"])
    shown = [method.selection_file.read_bytes() for method in run.methods]
    for made in (run.folder / STORE).glob(f"*/{SELECTION}"):
        if made.read_bytes() in shown:
            names.add(made.parent.name)
    return names | {run.results[name] for name in ("records", "tokens") if name in run.results}


def _stands_on(folder: Path, names: set[str]) -> set[str]:
    """These artifacts, and all that they were made from: whose keys stand in what they say of their inputs."""
    inputs: dict[str, Any] = {}
    for path in (folder / STORE).glob(f"*/{INPUTS}"):
        with suppress(ArtifactMismatchError):
            inputs[path.parent.name] = read_json(path)
    of_key = {digest(described): name for name, described in inputs.items()}
    found, waiting = set(names), list(names)
    while waiting:
        for key in _texts(inputs.get(waiting.pop(), {})):
            name = of_key.get(key)
            if name is not None and name not in found:
                found.add(name)
                waiting.append(name)
    return found


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _artifacts(folder: Path, links: list[Path]) -> Iterator[Path]:
    """Folders of the store that a stage has made."""
    store = folder / STORE
    if store.is_symlink():
        links.append(store)
        return
    for path in sorted(store.iterdir()) if store.is_dir() else []:
        if path.is_symlink():
            links.append(path)
        elif path.is_dir() and _ARTIFACT.fullmatch(path.name):
            yield path


def _files(folder: Path, links: list[Path]) -> Iterator[Path]:
    for path, folders, names in os.walk(folder, followlinks=False):
        for name in (*folders, *names):
            one = Path(path) / name
            if one.is_symlink():
                links.append(one)
            elif name in names:
                yield one


def _beneath(folder: Path, name: str, links: list[Path]) -> Iterator[Path]:
    """Files of this name in the folders of a folder."""
    if folder.is_symlink():
        links.append(folder)
        return
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_symlink():
            links.append(path)
        else:
            yield path / name


def _measured(found: dict[str, list[Path]], objects: dict[str, dict[tuple[str, str], int]]) -> Iterable[Removal]:
    names: dict[tuple[int, int], int] = {}
    for what, files in found.items():
        there = objects.get(what, {})
        freed = sum(there.values())
        for path in files:
            state = path.stat(follow_symlinks=False)
            place = state.st_dev, state.st_ino
            names[place] = names.get(place, 0) + 1
            if names[place] == state.st_nlink:
                freed += state.st_size
        if files or there:
            yield Removal(what=what, files=tuple(files), objects=tuple(there), bytes=freed)


def refuse_unasked(folder: Path) -> ConfigError:
    """What is said where nobody can be asked."""
    return ConfigError(f"nothing was removed from {folder}: give --yes to remove, or --dry-run to look.")
