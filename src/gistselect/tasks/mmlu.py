"""MMLU: 57 subjects; five questions each as queries and demonstrations, the test files held out."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

from gistselect.errors import DataError
from gistselect.tasks.files import Cut, Item, find, hub_rows, query, refuse_overlap
from gistselect.types import Record

LETTERS = "ABCD"
N_QUERIES = 5
"""Published number of queries a subject, and of demonstrations."""
CATEGORIES = {
    "STEM": (
        "abstract_algebra",
        "astronomy",
        "college_biology",
        "college_chemistry",
        "college_computer_science",
        "college_mathematics",
        "college_physics",
        "computer_security",
        "conceptual_physics",
        "electrical_engineering",
        "elementary_mathematics",
        "high_school_biology",
        "high_school_chemistry",
        "high_school_computer_science",
        "high_school_mathematics",
        "high_school_physics",
        "high_school_statistics",
        "machine_learning",
    ),
    "humanities": (
        "formal_logic",
        "high_school_european_history",
        "high_school_us_history",
        "high_school_world_history",
        "international_law",
        "jurisprudence",
        "logical_fallacies",
        "moral_disputes",
        "moral_scenarios",
        "philosophy",
        "prehistory",
        "professional_law",
        "world_religions",
    ),
    "social sciences": (
        "econometrics",
        "high_school_geography",
        "high_school_government_and_politics",
        "high_school_macroeconomics",
        "high_school_microeconomics",
        "high_school_psychology",
        "human_sexuality",
        "professional_psychology",
        "public_relations",
        "security_studies",
        "sociology",
        "us_foreign_policy",
    ),
    "other": (
        "anatomy",
        "business_ethics",
        "clinical_knowledge",
        "college_medicine",
        "global_facts",
        "human_aging",
        "management",
        "marketing",
        "medical_genetics",
        "miscellaneous",
        "nutrition",
        "professional_accounting",
        "professional_medicine",
        "virology",
    ),
}
"""The four categories of the 57 subjects (Hendrycks et al. 2021)."""

Row = list[str]
"""Question, four options, and the letter of the answer."""


class MMLU:
    """Groups are the subjects, in the order of the sorted names of the files in `mmlu/test/`."""

    name = "mmlu"
    version = 1

    def __init__(self, data_dir: Path | None) -> None:
        self.data_dir = data_dir
        """None reads the hub's data set."""

    def queries(self) -> list[Record]:
        """The first five rows of each `dev/<subject>_dev.csv`."""
        return _records({subject: rows[:N_QUERIES] for subject, rows in self._dev.items()}, "")

    def evaluation(self) -> list[Record]:
        """All rows of `test/<subject>_test.csv`, asked like the queries: no worked examples, to be cheap."""
        return _records(self._test, "test/")

    def items(self, cut: Cut) -> list[Item]:
        """All test rows after the subject's five demonstrations; passages have none to `cut`.

        Raises `DataError` for a test row that is also a demonstration.
        """
        items = []
        for subject, test in self._test.items():
            dev = self._dev[subject]
            refuse_overlap("mmlu", subject, set(map(tuple, dev)), map(tuple, test))
            shots = tuple(f"{_question(row)} {row[-1]}\n\n" for row in dev[:N_QUERIES])
            for number, row in enumerate(test):
                items.append(
                    Item(
                        id=f"mmlu/{subject}/{number}",
                        group=subject,
                        head=_intro(subject),
                        shots=shots,
                        question=_question(row),
                        prefix="The answer is:",
                        reference=f" {row[-1]}",
                        answers=(f" {row[-1]}",),
                        choices=tuple(f" {letter}" for letter in LETTERS),
                    )
                )
        return items

    def files(self) -> list[Path]:
        """Every file that is read; empty for the hub."""
        return [self._path(split, subject) for subject in self._subjects for split in ("dev", "test") if self.data_dir]

    @cached_property
    def _dev(self) -> dict[str, list[Row]]:
        return {subject: self._rows("dev", subject) for subject in self._subjects}

    @cached_property
    def _test(self) -> dict[str, list[Row]]:
        return {subject: self._rows("test", subject) for subject in self._subjects}

    @cached_property
    def _subjects(self) -> list[str]:
        if self.data_dir is None:
            return sorted(chain.from_iterable(CATEGORIES.values()))
        folder = find(self.data_dir, "mmlu/test")
        subjects = sorted(path.name.removesuffix("_test.csv") for path in folder.glob("*_test.csv"))
        if not subjects:
            raise DataError(f"{folder} holds no <subject>_test.csv, from which the subjects are taken.")
        return subjects

    def _path(self, split: str, subject: str) -> Path:
        return find(self.data_dir, f"mmlu/{split}/{subject}_{split}.csv")

    def _rows(self, split: str, subject: str) -> list[Row]:
        if self.data_dir is None:
            rows = hub_rows("cais/mmlu", subject, split)
            return [[row["question"], *row["choices"], LETTERS[row["answer"]]] for row in rows]
        return _read_rows(self._path(split, subject))


def _records(rows: dict[str, list[Row]], part: str) -> list[Record]:
    records: list[Record] = []
    for subject, asked in rows.items():
        for number, row in enumerate(asked):
            records.append(
                query(
                    f"mmlu/{subject}/{part}{number}",
                    len(records),
                    prompt=_intro(subject) + _question(row),
                    prefix="The answer is:",
                    answer=f" {row[-1]}",
                    group=subject,
                )
            )
    return records


def _intro(subject: str) -> str:
    # Two spaces after "about", as published.
    return f"The following are multiple choice questions (with answers) about  {subject.replace('_', ' ')}.\n\n"


def _question(row: Sequence[str]) -> str:
    options = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, row[1:-1], strict=True))
    return f"{row[0]}{options}\nAnswer:"


def _read_rows(path: Path) -> list[Row]:
    """Rows as text: "None" and "NA" are answers. Raises `DataError` for any other row, or for none."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.reader(stream, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}. Fetch the file again.") from error
    for number, row in enumerate(rows, start=1):
        if len(row) != len(LETTERS) + 2 or row[-1] not in LETTERS:
            raise DataError(f"{path}, row {number}: expected question, four options and a letter, found {row!r}")
    if not rows:
        raise DataError(f"{path} is empty. Fetch the file again.")
    return rows
