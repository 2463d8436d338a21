"""The Python API: the command line's run, from paths or from objects in memory."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistselect.errors import ArtifactMismatchError, ConfigError
from gistselect.selected import Selection

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from gistselect.model.loading import LanguageModel

Rows = Iterable[Mapping[str, Any]]


def select(
    *,
    model: str | Path | PeftModel | None = None,
    pool: str | Path | Sequence[str | Path] | Rows | Dataset,
    targets: str | Path | Sequence[str | Path] | Mapping[str, Rows] | Rows | Dataset,
    budget: str | int | float | None = None,
    output: str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: bool = True,
    **options: Any,
) -> Selection:
    """Select from `pool` the rows that teach `targets`, within `budget` (by default that of `gistselect run`).

    `model` is a folder, a hub id, or a live `PeftModel` with its `tokenizer`, at whose adapter the gradients are
    taken and which is given back as it came; methods that read only text need none. `pool` is files, or rows in
    memory (dicts, a `datasets.Dataset` or a data frame), which are written into the run folder. `targets` names
    built-in tasks or files, is rows in memory, or maps names to such rows. `output` is the run folder; without it a
    temporary one, which goes when the selection does. `options` are those of `gistselect run`.

    Raises `GistSelectError` and its kinds, with the remedy in the message.
    """
    from gistselect.run.config import LIVE, RunConfig
    from gistselect.run.pipeline import execute
    from gistselect.run.progress import Reporter, SilentReporter

    folder = Path(output) if output is not None else Path(tempfile.mkdtemp(prefix="gistselect-"))
    try:
        live = None if model is None or isinstance(model, (str, Path)) else _live_model(model, tokenizer)
        config = RunConfig.from_values(
            {
                "model": LIVE if live else model and str(model),
                "pool": _files(pool, folder / "inputs" / "pool.jsonl"),
                "target": _target_files(targets, folder / "inputs"),
                **({} if budget is None else {"budget": budget}),
                "output": folder,
                **options,
            }
        )
        execute(config, Reporter() if progress else SilentReporter(), live=live)
        selection = load_selection(folder)
    except BaseException:
        if output is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if output is None:
        weakref.finalize(selection, shutil.rmtree, folder, ignore_errors=True)
    return selection


def load_selection(folder: str | Path) -> Selection:
    """The selection of a finished run folder. Raises `ArtifactMismatchError` if there is none."""
    from gistselect.run.store import read_table

    table = read_table(Path(folder) / "selection.parquet")
    try:
        with (Path(folder) / "selected.jsonl").open("rb") as lines:
            rows = tuple(json.loads(line) for line in lines)
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactMismatchError(f"{folder} holds no whole selected.jsonl ({error}); select again.") from None
    if len(rows) != table.num_rows:
        raise ArtifactMismatchError(
            f"{folder}: selected.jsonl has {len(rows)} rows and selection.parquet {table.num_rows}; select again."
        )
    return Selection(
        ids=tuple(table["id"].to_pylist()),
        scores=table["score"].to_numpy(),
        best_targets=tuple(table["best_target"].to_pylist()),
        sources=tuple(table["source"].to_pylist()),
        rows=rows,
        output=str(folder),
    )


def _live_model(model: PeftModel, tokenizer: PreTrainedTokenizerBase | None) -> LanguageModel:
    from gistselect.model.loading import LanguageModel

    if tokenizer is None:
        raise ConfigError("a live model needs its tokenizer: select(model=model, tokenizer=tokenizer, ...).")
    if not hasattr(model, "peft_config"):
        raise ConfigError(
            f"a live model must be a PeftModel with a trained adapter, not {type(model).__name__}; "
            "give the model's folder instead to have the warm-up done."
        )
    return LanguageModel(model=model, tokenizer=tokenizer, device=model.device, dtype=model.dtype)


def _files(rows: Any, path: Path) -> tuple[str, ...]:
    """Paths as they are; rows in memory as a file at `path`."""
    if isinstance(rows, (str, Path)):
        return (str(rows),)
    if isinstance(rows, Mapping):
        raise ConfigError(f"a mapping of {', '.join(map(str, rows))} is no rows; give one of its values.")
    if "pandas" in sys.modules and isinstance(rows, sys.modules["pandas"].DataFrame):
        from datasets import Dataset

        rows = Dataset.from_pandas(rows, preserve_index=False)
    rows = list(rows)
    if not rows or isinstance(rows[0], (str, Path)):
        return tuple(str(one) for one in rows)
    from gistselect.data.parts import serialised
    from gistselect.files import write_lines

    write_lines(path, (serialised(dict(row) if isinstance(row, Mapping) else row) for row in rows))
    return (str(path),)


def _target_files(targets: Any, folder: Path) -> tuple[str, ...]:
    if isinstance(targets, Mapping):
        for name in targets:
            if not name.isidentifier():
                raise ConfigError(f"target name {name!r} must be letters, digits and underscores: it names a file.")
        return tuple(path for name, rows in targets.items() for path in _files(rows, folder / f"{name}.jsonl"))
    return _files(targets, folder / "target.jsonl")
