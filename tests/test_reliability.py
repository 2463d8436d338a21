"""docs/reliability.md: what it counts of the tests is what they hold."""

from __future__ import annotations

import re

import pytest

from conftest import REPOSITORY
from test_changes import CHANGES
from test_disk import STAGES, TRAINED
from test_hostile import ADAPTERS, CONFIGURATIONS, CORPUS, FILES, READ_ROWS, REFUSED_ROWS

PAGE = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
BY_HAND = (REFUSED_ROWS, READ_ROWS, FILES, CONFIGURATIONS, ADAPTERS)


@pytest.mark.parametrize(
    ("sentence", "counts"),
    [
        (r"(\d+) strange and hostile ones by hand", [sum(map(len, BY_HAND))]),
        (r"keeps (\d+) rows that must be refused", [len(REFUSED_ROWS)]),
        (r"(\d+) strange rows that must be read", [len(READ_ROWS)]),
        (r"(\d+) changes, each makes anew", [len(CHANGES)]),
        (r"names what each of (\d+) changes", [len(CHANGES)]),
        (r"every one of (\d+) stages", [len(STAGES | TRAINED)]),
        (r"at each of (\d+) stages", [len(STAGES | TRAINED)]),
    ],
)
def test_counts(sentence: str, counts: list[int]) -> None:
    assert [int(found) for found in re.findall(sentence, PAGE)] == counts


def test_what_the_fuzz_kept() -> None:
    kept = len(CORPUS.read_text(encoding="utf-8").splitlines())
    assert f"{kept} that a fuzzer found" in PAGE
