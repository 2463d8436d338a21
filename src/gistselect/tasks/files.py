"""The evaluation files of the published tasks, and the one shape of their queries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gistselect.errors import DataError
from gistselect.types import Message, Record


def find(data_dir: Path, *names: str) -> Path:
    """The first of these paths that exists below `data_dir/eval`, or below `data_dir` as the eval folder.

    Raises `DataError` with the expected path if there is none.
    """
    for folder in (data_dir / "eval", data_dir):
        for name in names:
            if (folder / name).exists():
                return folder / name
    expected = " or ".join(str(data_dir / "eval" / name) for name in names)
    raise DataError(f"missing {expected}; --data-dir names the folder that holds eval/ (the layout of LESS).")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `DataError` naming the file if it is unreadable or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}. Fetch the file again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not an object. Fetch the file again.")
    return content


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
