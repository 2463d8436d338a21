"""What a user names as a source, to the parts of a pool: files, folders, globs and hub data sets."""

from __future__ import annotations

import glob
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from gistselect.data.json_files import Json
from gistselect.data.parts import File, Part, Rows
from gistselect.data.tables import Csv, Parquet
from gistselect.errors import DataError

_COMPRESSIONS = ("", ".gz", ".zst")
READERS: dict[str, Callable[[Path], Part]] = {
    **{kind + packed: Json for kind in (".jsonl", ".ndjson", ".json") for packed in _COMPRESSIONS},
    **{kind + packed: Csv for kind in (".csv", ".tsv") for packed in _COMPRESSIONS},
    ".parquet": Parquet,
}
_LONE_JSON = tuple(".json" + packed for packed in _COMPRESSIONS)
"""Folders hold all kinds of `.json` beside their data: there these count only where there is nothing else."""


LONGEST_NAME = 200
"""Characters of a source's name that are told."""
MOST_NAMED = 20
"""Folders that one message names."""
_LOADING_FAILS = (OSError, ValueError, TypeError, LookupError, RuntimeError, pa.ArrowException, pickle.UnpicklingError)
"""What `datasets` raises for a folder that is not what it seems, besides its own errors. It unpickles tensors alone."""


def open_parts(sources: Sequence[str | Path], exclude: Path | None, revision: str | None) -> list[Part]:
    """The parts that the sources name, in order; folders are searched recursively and sorted.

    Files below `exclude` are left out of folders and globs. Raises `DataError` for a source that is missing, of
    another kind or named twice, or a folder that is a data set with several configurations or splits.
    """
    parts = []
    for source in sources:
        try:
            parts += _open(source, exclude, revision)
        except OSError as error:  # a folder that may not be looked into, a name longer than names may be
            raise DataError(
                f"cannot look at {str(source)[:LONGEST_NAME]!r}: {error.strerror or error}. Check the name, and who "
                "may read what is below it."
            ) from None
    seen: set[str] = set()
    for part in parts:
        name = str(part.path.resolve()) if isinstance(part, File) else part.name
        if name in seen:
            raise DataError(f"{part.name} is named twice among the sources; name it once.")
        seen.add(name)
    return parts


def _open(source: str | Path, exclude: Path | None, revision: str | None) -> list[Part]:
    named = str(source)
    if named.startswith("hf:"):
        return [_hub_data_set(named.removeprefix("hf:"), revision)]
    path = Path(named)
    if path.exists():
        return _open_path(path, exclude)
    file, _, key = named.rpartition(":")
    if key and Path(file).is_file() and file.endswith(tuple(READERS)):
        return [Json(Path(file), key)]
    if not glob.has_magic(named):
        raise DataError(f"there is no file or folder {named!r}; for a hub data set write hf:owner/name.")
    matches = [path for match in sorted(glob.glob(named, recursive=True)) if not _below(path := Path(match), exclude)]
    if not matches:
        raise DataError(f"no file matches {named!r}; the pattern is relative to {Path.cwd()}.")
    for match in matches:
        _refuse_escape(match, _fixed(Path(named)))
    return [part for match in matches for part in _open_path(match, exclude)]


def _open_path(path: Path, exclude: Path | None) -> list[Part]:
    if not path.is_dir():
        return [_open_file(path)]
    if _is_saved(path):
        return [_hub_data_set(str(path), None)]
    _refuse_configurations(path)
    files = sorted(file for file in _visible(path) if file.name.endswith(tuple(READERS)) and not _below(file, exclude))
    if saved := {file.parent for file in files if _is_saved(file.parent)}:
        outer = sorted(str(folder) for folder in saved if folder.parent not in saved)
        raise DataError(
            f"below {path} lie data sets that datasets has saved; name each by itself, and what else is to be read: "
            f"{', '.join(outer[:MOST_NAMED])}{', …' * (len(outer) > MOST_NAMED)}."
        )
    files = [file for file in files if not file.name.endswith(_LONE_JSON)] or files
    for file in files:
        _refuse_escape(file, path)
    if not files:
        raise DataError(f"the folder {path} holds no data; looked for {', '.join(READERS)} below it.")
    return [_open_file(file) for file in files]


def _visible(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _below(path: Path, exclude: Path | None) -> bool:
    return exclude is not None and path.resolve().is_relative_to(exclude.resolve())


def _fixed(pattern: Path) -> Path:
    """The folder in which a pattern begins to match."""
    while glob.has_magic(str(pattern)):
        pattern = pattern.parent
    return pattern


def _refuse_escape(file: Path, folder: Path) -> None:
    """Raises `DataError` for a link that leads out of the folder it was found in, but for the hub's cache."""
    real, root = file.resolve(), folder.resolve()
    if real.is_relative_to(root):
        return
    blobs = next((parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots"), None)
    if blobs is None or real.parent != blobs:
        raise DataError(
            f"{file} is a link that leads out of {folder}, to {real}; name that file itself if it belongs to the pool."
        )


def _refuse_configurations(folder: Path) -> None:
    """Raises `DataError` if the card of a data set says that its files are of several configurations or splits."""
    card = folder / "README.md"
    try:
        opening = card.read_text(encoding="utf-8", errors="replace").split("---")[:2] if card.is_file() else []
        described = yaml.safe_load(opening[1]) if len(opening) == 2 and not opening[0].strip() else None
        configs = described.get("configs") if isinstance(described, dict) else None
        named = [
            (config["config_name"], one["split"])
            for config in configs or ()
            for one in config["data_files"]
            if isinstance(config["data_files"], list)
        ]
    except (OSError, yaml.YAMLError, LookupError, TypeError):
        return
    if len(named) > 1:
        listed = ", ".join(f"hf:{folder}:{config}:{split}" for config, split in named)
        raise DataError(
            f"{folder} is a data set of {len(named)} parts that do not belong together; name one: {listed}."
        )


def _open_file(path: Path) -> Part:
    for suffix, reader in READERS.items():
        if path.name.endswith(suffix):
            return reader(path)
    raise DataError(f"{path} is of no known kind; known: {', '.join(READERS)}. Convert or rename it.")


def _is_saved(path: Path) -> bool:
    """Whether the folder is what `save_to_disk` of `datasets` writes."""
    several, one = ("dataset_dict.json",), ("state.json", "dataset_info.json")
    return any(all((path / name).is_file() for name in names) for names in (several, one))


def _hub_data_set(name: str, revision: str | None) -> Rows:
    """One configuration and split (`train` if none is named) of a data set on the hub, in a folder, or saved there.

    After the name, `:config:split`, or one of the two.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    pieces = name.split(":")
    length = next((n for n in range(len(pieces), 1, -1) if Path(":".join(pieces[:n])).exists()), 1)
    path, parts = ":".join(pieces[:length]), pieces[length:]
    if len(parts) > 2:
        raise DataError(f"hf:{name} has more than a configuration and a split after its name.")
    try:
        if _is_saved(Path(path)):
            data: Any = datasets.load_from_disk(path)
        else:
            configs = list(map(str, datasets.get_dataset_config_names(path, revision=revision)))
            config = parts.pop(0) if parts and (len(parts) == 2 or parts[0] in configs) else None
            if config is not None and config not in configs:
                raise DataError(f"the data set {path!r} has no configuration {config!r}; it has: {', '.join(configs)}.")
            if config is None and len(configs) > 1:
                listed = ", ".join(f"hf:{path}:{one}" for one in configs)
                raise DataError(f"the data set {path!r} has several configurations; name one: {listed}.")
            data = datasets.load_dataset(path, config, revision=revision)
    except (*_LOADING_FAILS, DatasetsError) as error:
        raise DataError(f"cannot load the data set {path!r}: {error}") from error
    split = parts[0] if parts else None
    if not isinstance(data, datasets.DatasetDict):
        if split is not None:
            raise DataError(f"the data set {path!r} has no splits, so leave out {split!r}")
        return Rows(name, data)
    split = split or ("train" if "train" in data or len(data) != 1 else str(next(iter(data))))
    if split not in data:
        raise DataError(f"the data set {path!r} has no split {split!r}; it has: {', '.join(map(str, data))}.")
    return Rows(name, data[split])
