"""GSM8K: grade-school mathematics, answered by a worked solution."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

from gistselect.errors import DataError
from gistselect.tasks.files import Cut, Item, find, hub_rows, query, refuse_overlap
from gistselect.types import Record

N_SHOTS = 8
Pair = tuple[str, str]
"""Question and worked solution."""


class GSM8K:
    """One undivided target."""

    name = "gsm8k"
    version = 1

    def __init__(self, data_dir: Path | None) -> None:
        self.data_dir = data_dir
        """None reads the hub's data set."""

    def queries(self) -> list[Record]:
        """All rows of `gsm8k/target.jsonl`."""
        return _records(self._target, "")

    def evaluation(self) -> list[Record]:
        """All rows of `gsm8k/test.jsonl` (or `gsm/test.jsonl`)."""
        return _records(self._test, "test/")

    def items(self, cut: Cut) -> list[Item]:
        """All held-out rows after eight demonstrations, the first rows of `target.jsonl`; no passage to `cut`.

        Raises `DataError` for a row that is also a demonstration.
        """
        shots = self._target[:N_SHOTS]
        refuse_overlap("gsm8k", "", {question for question, _ in shots}, (question for question, _ in self._test))
        return [
            Item(
                id=f"gsm8k/{number}",
                group="",
                head="Answer the following questions.\n\n",
                shots=tuple(f"Question: {shown}\nAnswer: {solution}\n\n" for shown, solution in shots),
                question=f"Question: {question}",
                prefix="Answer:",
                reference=f" {answer}",
                answers=(answer,),
            )
            for number, (question, answer) in enumerate(self._test)
        ]

    def files(self) -> list[Path]:
        """Every file that is read; empty for the hub."""
        return [self._target_path, self._test_path] if self.data_dir else []

    @cached_property
    def _target_path(self) -> Path:
        return find(self.data_dir, "gsm8k/target.jsonl")

    @cached_property
    def _test_path(self) -> Path:
        return find(self.data_dir, "gsm8k/test.jsonl", "gsm/test.jsonl")

    @cached_property
    def _target(self) -> list[Pair]:
        # On the hub the train split stands in: target.jsonl is taken from it.
        return _read_rows(self._target_path) if self.data_dir else _hub_pairs("train")

    @cached_property
    def _test(self) -> list[Pair]:
        return _read_rows(self._test_path) if self.data_dir else _hub_pairs("test")


def _records(rows: list[Pair], part: str) -> list[Record]:
    """Rows of `question` and `answer`; the answer is the worked solution with its last line `#### n`."""
    return [
        query(f"gsm8k/{part}{i}", i, prompt=question, prefix="", answer=answer, group="")
        for i, (question, answer) in enumerate(rows)
    ]


def _hub_pairs(split: str) -> list[Pair]:
    return [(row["question"], row["answer"]) for row in hub_rows("openai/gsm8k", "main", split)]


def _read_rows(path: Path) -> list[Pair]:
    # A line ends at a line feed alone: text may hold U+2028 and its like.
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}. Fetch the file again.") from error
    rows = [_row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise DataError(f"{path} is empty. Fetch the file again.")
    return rows


def _row(path: Path, number: int, line: bytes) -> Pair:
    try:
        row = json.loads(line)
        question, answer = row["question"], row["answer"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}, line {number}: expected an object with 'question' and 'answer'.") from error
    if not isinstance(question, str) or not isinstance(answer, str):
        raise DataError(f"{path}, line {number}: expected text in 'question' and 'answer'.")
    return question, answer
