"""What a user names as a source, to the parts of a pool: files, folders, globs and hub data sets."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from gistselect.data.parts import File, JsonLines, Parquet, Part, Rows
from gistselect.errors import DataError

READERS: dict[str, type[JsonLines | Parquet]] = {
    ".jsonl": JsonLines,
    ".jsonl.gz": JsonLines,
    ".jsonl.zst": JsonLines,
    ".json": JsonLines,
    ".parquet": Parquet,
}
FOLDER_SUFFIXES = tuple(suffix for suffix in READERS if suffix != ".json")
"""Folders hold all kinds of `.json` beside their data, so there only these count."""


def open_parts(sources: Sequence[str | Path], exclude: Path | None) -> list[Part]:
    """The parts that the sources name, in order; folders are searched recursively and sorted.

    Files below `exclude` are left out of folders and globs. Raises `DataError` for a source that is missing, of
    another kind or named twice.
    """
    parts = [part for source in sources for part in _open(source, exclude)]
    seen: set[str] = set()
    for part in parts:
        name = str(part.path.resolve()) if isinstance(part, File) else part.name
        if name in seen:
            raise DataError(f"{part.name} is named twice among the sources; name it once.")
        seen.add(name)
    return parts


def _open(source: str | Path, exclude: Path | None) -> list[Part]:
    named = str(source)
    if named.startswith("hf:"):
        return [_hub_data_set(named.removeprefix("hf:"))]
    path = Path(named)
    if path.exists():
        return _open_path(path, exclude)
    if not glob.has_magic(named):
        raise DataError(f"there is no file or folder {named!r}; for a hub data set write hf:owner/name.")
    matches = [path for match in sorted(glob.glob(named, recursive=True)) if not _below(path := Path(match), exclude)]
    if not matches:
        raise DataError(f"no file matches {named!r}; the pattern is relative to {Path.cwd()}.")
    return [part for match in matches for part in _open_path(match, exclude)]


def _open_path(path: Path, exclude: Path | None) -> list[Part]:
    if not path.is_dir():
        return [_open_file(path)]
    found = (file for file in path.rglob("*") if file.name.endswith(FOLDER_SUFFIXES) and file.is_file())
    files = sorted(file for file in found if not _below(file, exclude))
    if not files:
        raise DataError(f"the folder {path} holds no data; looked for {', '.join(FOLDER_SUFFIXES)} below it.")
    return [_open_file(file) for file in files]


def _below(path: Path, exclude: Path | None) -> bool:
    return exclude is not None and path.resolve().is_relative_to(exclude.resolve())


def _open_file(path: Path) -> Part:
    for suffix, reader in READERS.items():
        if path.name.endswith(suffix):
            return reader(path)
    raise DataError(f"{path} is of no known kind; known: {', '.join(READERS)}. Convert or rename it.")


def _hub_data_set(name: str) -> Rows:
    """One split (`train` if none is named) of a data set on the hub, in a folder, or from `save_to_disk`."""
    import datasets
    from datasets.exceptions import DatasetsError

    path, split = name, None
    if not Path(name).exists() and ":" in name:
        path, _, split = name.rpartition(":")
    try:
        if any((Path(path) / file).is_file() for file in ("state.json", "dataset_dict.json")):
            data = datasets.load_from_disk(path)
        else:
            data = datasets.load_dataset(path)
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(f"cannot load the data set {path!r}: {error}") from error
    if not isinstance(data, datasets.DatasetDict):
        if split is not None:
            raise DataError(f"the data set {path!r} has no splits, so leave out {split!r}")
        return Rows(name, data)
    split = split or ("train" if "train" in data or len(data) != 1 else next(iter(data)))
    if split not in data:
        raise DataError(f"the data set {path!r} has no split {split!r}; it has: {', '.join(map(str, data))}.")
    return Rows(name, data[split])
