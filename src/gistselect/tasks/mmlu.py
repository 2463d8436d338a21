"""MMLU: 57 subjects with five questions each as queries."""

from __future__ import annotations

import csv
from pathlib import Path

from gistselect.errors import DataError
from gistselect.tasks.files import find, query
from gistselect.types import Record

CHOICES = "ABCD"
N_QUERIES = 5
"""Published number of queries a subject."""


class MMLU:
    """Groups are the subjects, in the order of the sorted names of the files in `mmlu/test/`."""

    name = "mmlu"
    version = 1

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    def queries(self) -> list[Record]:
        """The first five rows of each `dev/<subject>_dev.csv`."""
        return self._records("dev", "", N_QUERIES)

    def evaluation(self) -> list[Record]:
        """All rows of `test/<subject>_test.csv`, asked like the queries: no worked examples, to be cheap."""
        return self._records("test", "test/", None)

    def _subjects(self) -> list[str]:
        folder = find(self.data_dir, "mmlu/test")
        subjects = sorted(path.name.removesuffix("_test.csv") for path in folder.glob("*_test.csv"))
        if not subjects:
            raise DataError(f"{folder} holds no <subject>_test.csv, from which the subjects are taken.")
        return subjects

    def _records(self, split: str, part: str, limit: int | None) -> list[Record]:
        records: list[Record] = []
        for subject in self._subjects():
            rows = _read_rows(find(self.data_dir, f"mmlu/{split}/{subject}_{split}.csv"))
            for number, (question, *options, letter) in enumerate(rows[:limit]):
                records.append(
                    query(
                        f"mmlu/{subject}/{part}{number}",
                        len(records),
                        prompt=_prompt(subject, question, options),
                        prefix="The answer is:",
                        answer=f" {letter}",
                        group=subject,
                    )
                )
        return records


def _prompt(subject: str, question: str, options: list[str]) -> str:
    # Two spaces after "about", as published.
    topic = " " + subject.replace("_", " ")
    lines = [f"{letter}. {option}" for letter, option in zip(CHOICES, options, strict=True)]
    return (
        f"The following are multiple choice questions (with answers) about {topic}.\n\n"
        + "\n".join([question, *lines])
        + "\nAnswer:"
    )


def _read_rows(path: Path) -> list[list[str]]:
    """Rows of question, four options and letter, as text: "None" and "NA" are answers."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.reader(stream, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}. Fetch the file again.") from error
    for number, row in enumerate(rows, start=1):
        if len(row) != len(CHOICES) + 2 or row[-1] not in CHOICES:
            raise DataError(f"{path}, row {number}: expected question, four options and a letter, found {row!r}")
    return rows
