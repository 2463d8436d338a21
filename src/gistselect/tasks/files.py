"""What the published tasks share: how their files are found and read, and the two shapes of a question."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistselect.errors import ConfigError, DataError
from gistselect.types import Message, Record

Cut = Callable[[str], str]
"""Shortens a passage to the published number of tokens."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question of an evaluation protocol, with everything that its prompt may hold."""

    id: str
    group: str
    head: str
    """Start of the prompt; ends where the first demonstration begins."""
    shots: tuple[str, ...]
    """Demonstrations, each ending where the next begins; the first k are used if not all fit the context."""
    question: str
    prefix: str
    """Start of the answer, given to the model."""
    lead: str = ""
    """More of the answer that stands before the reference when its loss is measured."""
    reference: str
    """The answer whose loss is measured, as it continues the prefix."""
    answers: tuple[str, ...]
    """What counts as right."""
    choices: tuple[str, ...] = ()
    """Continuations to choose from by likelihood; empty if the answer is generated."""

    def record(self, n_shots: int, row: int) -> Record:
        """The prompt with the first `n_shots` demonstrations, and the reference as the scored answer."""
        return Record(
            id=self.id,
            source=self.group,
            row=row,
            messages=(
                Message(role="user", content=self.head + "".join(self.shots[:n_shots]) + self.question),
                Message(role="assistant", content=self.reference),
            ),
            prefix=self.prefix + self.lead,
            closed=False,
            group=self.group,
        )


def query(id: str, row: int, *, prompt: str, prefix: str, answer: str, group: str) -> Record:
    """A question with its reference answer, verbatim and without end of sequence (METHOD section 5).

    Ids read `task/…`; evaluation items differ from queries by a part named `test`.
    """
    return Record(
        id=id,
        source=id.split("/")[0],
        row=row,
        messages=(Message(role="user", content=prompt), Message(role="assistant", content=answer)),
        prefix=prefix,
        closed=False,
        group=group,
    )


def find(data_dir: Path | None, *names: str, hint: str = "") -> Path:
    """The first of these paths that exists below `data_dir/eval`, or below `data_dir` as the eval folder.

    Raises `DataError` with the expected path if there is none, `ConfigError` without a folder.
    """
    if data_dir is None:
        raise ConfigError(f"{names[0]} is read from a folder; give --data-dir, the folder that holds eval/.")
    for folder in (data_dir / "eval", data_dir):
        for name in names:
            if os.path.exists(folder / name):  # False for a name that is too long, not an error
                return folder / name
    expected = " or ".join(str(data_dir / "eval" / name) for name in names)
    raise DataError(f"missing {expected}; --data-dir names the folder that holds eval/ (the layout of LESS).{hint}")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `DataError` naming the file if it is unreadable or holds something else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {error}. Fetch the file again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not an object. Fetch the file again.")
    return content


def hub_rows(path: str, name: str, split: str) -> Any:
    """The rows of a hub data set. Raises `DataError` if it cannot be loaded."""
    from datasets import load_dataset

    try:
        return load_dataset(path, name, split=split)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot load {path!r} ({name}, {split}) from the hub: {error}; give its files with --data-dir."
        ) from None


def refuse_overlap(task: str, group: str, demonstrations: set[Any], items: Iterable[Any]) -> None:
    """Raises `DataError` if an item to evaluate is also shown as a demonstration."""
    if shared := demonstrations & set(items):
        raise DataError(
            f"{task} {group}: {len(shared)} items to evaluate are also demonstrations, e.g. {str(min(shared))[:80]!r}; "
            "the evaluation file is not a held-out one."
        )
