"""GSM8K: grade-school mathematics, answered by a worked solution."""

from __future__ import annotations

import json
from pathlib import Path

from gistselect.errors import DataError
from gistselect.tasks.files import find, query
from gistselect.types import Record


class GSM8K:
    """One undivided target."""

    name = "gsm8k"
    version = 1

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    def queries(self) -> list[Record]:
        """All rows of `gsm8k/target.jsonl`."""
        return _records(find(self.data_dir, "gsm8k/target.jsonl"), "")

    def evaluation(self) -> list[Record]:
        """All rows of `gsm8k/test.jsonl` (or `gsm/test.jsonl`)."""
        return _records(find(self.data_dir, "gsm8k/test.jsonl", "gsm/test.jsonl"), "test/")


def _records(path: Path, part: str) -> list[Record]:
    """Rows of `question` and `answer`; the answer is the worked solution with its last line `#### n`."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}. Fetch the file again.") from error
    rows = [_row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return [
        query(f"gsm8k/{part}{i}", i, prompt=question, prefix="", answer=answer, group="")
        for i, (question, answer) in enumerate(rows)
    ]


def _row(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        return row["question"], row["answer"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}, line {number}: expected an object with 'question' and 'answer'.") from error
