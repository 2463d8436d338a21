"""The documents that lm-eval reads: prompts that were rendered, counted and written down before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import DatasetDict


def read(*, folder: str, name: str, **_: Any) -> DatasetDict:
    """The split `test` from `<folder>/<name>.jsonl`; lm-eval passes the task's metadata too."""
    from datasets import Dataset, DatasetDict

    lines = (Path(folder) / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
    return DatasetDict({"test": Dataset.from_list([json.loads(line) for line in lines if line])})
