"""What can be evaluated: published protocols, files of one's own, tasks of lm-eval; and what is known of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml

from gistselect.errors import ConfigError, DataError, MissingDependencyError
from gistselect.tasks import PROTOCOLS, own_target
from gistselect.tasks.custom import Custom, is_file_name

TASK_FILES = Path(__file__).parent / "tasks"
OWN_TARGETS = "target"
"""Name of the task file for targets of one's own."""

Average = Literal["items", "groups"]
"""A task's mean: over all items, or over the means of its groups."""


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """How a task is run and averaged."""

    version: str
    average: Average
    chance: float | None = None
    """What guessing scores on the first metric, where that is known."""
    limit: int | None = None
    """Published number of items in each group."""
    max_new_tokens: int | None = None
    """Published bound on generated tokens; None where nothing is generated."""


class _TaskFile(yaml.SafeLoader):
    """Reads lm-eval's task files; functions are named, not imported."""


_TaskFile.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # pyright: ignore[reportArgumentType]


def require_lm_eval() -> None:
    """Raises `MissingDependencyError` with the line that installs it."""
    if find_spec("lm_eval") is None:
        raise MissingDependencyError("evaluation needs lm-eval; pip install 'gistselect[eval]'.")


def task_facts(name: str) -> TaskFacts:
    """Facts of a target: a published protocol's own, or those of targets of one's own.

    This is the one rule of how a target's items are averaged, losses included.
    """
    path = TASK_FILES / f"{name if name in PROTOCOLS else OWN_TARGETS}.yaml"
    config: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), _TaskFile)
    known = config["metadata"]
    return TaskFacts(
        version=str(known["version"]),
        average=known["average"],
        chance=known.get("chance"),
        limit=known.get("limit"),
        max_new_tokens=config.get("generation_kwargs", {}).get("max_gen_toks"),
    )


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The tasks of one evaluation by kind, each kind in the order given."""

    protocols: tuple[str, ...]
    own: tuple[Custom, ...]
    others: tuple[str, ...]
    """Names for lm-eval."""


def choose(names: Sequence[str]) -> Chosen:
    """Sort names by kind. Raises `ConfigError` if there is none, or one twice, `DataError` for a missing file."""
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"tasks={list(names)}: name at least one task, and each once.")
    files = [name for name in names if is_file_name(name)]
    if missing := [name for name in files if not name.startswith("hf:") and not Path(name).exists()]:
        raise DataError(f"there is no file {missing[0]!r} to evaluate.")
    own = tuple(own_target(name) for name in files)
    others = tuple(name for name in names if name not in PROTOCOLS and name not in files)
    found = [one.name for one in own] + [name for name in names if name not in files]
    if twice := {name for name in found if found.count(name) > 1}:
        raise ConfigError(f"two tasks are called {min(twice)!r}; rename one of the files.")
    return Chosen(protocols=tuple(name for name in names if name in PROTOCOLS), own=own, others=others)


def tasks_digest(names: Sequence[str], data_dir: Path | None, *, template: str) -> str:
    """SHA-256 of what an evaluation asks: every byte of the files it reads, lm-eval's version, the template's digest.

    Data sets of the hub and tasks of lm-eval enter by name. Raises as `choose` does, and `DataError` for a missing
    file, and `MissingDependencyError` without lm-eval.
    """
    require_lm_eval()
    chosen = choose(names)
    content = hashlib.sha256(json.dumps([version("lm_eval"), template, chosen.protocols, chosen.others]).encode())
    for name in chosen.protocols:
        content.update((TASK_FILES / f"{name}.yaml").read_bytes())
        for path in PROTOCOLS[name](data_dir).files():
            _add_file(content, path)
    for one in chosen.own:
        content.update(json.dumps([one.name, str(one.path).startswith("hf:") and str(one.path)]).encode())
        content.update((TASK_FILES / f"{OWN_TARGETS}.yaml").read_bytes())
        if not str(one.path).startswith("hf:"):
            _add_file(content, Path(one.path))
    return content.hexdigest()


def _add_file(content: Any, path: Path) -> None:
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}.") from None
    content.update(json.dumps([path.name, found]).encode())
