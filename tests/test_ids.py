"""Ids in bounded memory against a set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gistselect.data import ids as ids_module
from gistselect.data.ids import Ids
from gistselect.data.parts import Rows
from gistselect.data.pool import Pool


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of 32 places, blocks of 4 and merges of 6 numbers at a time, so that a few hundred ids make many runs."""
    monkeypatch.setattr(ids_module, "TABLE", 32)
    monkeypatch.setattr(ids_module, "FEWEST", 8)
    monkeypatch.setattr(ids_module, "BLOCK", 4)
    monkeypatch.setattr(ids_module, "MERGED", 6)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("seed", range(5))
def test_it_knows_what_a_set_knows(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    ids, known = Ids(tmp_path), set[str]()
    for number in rng.integers(3000, size=4000).tolist():
        id = f"row {number} größer"
        assert (id in ids) == (id in known)
        assert ids.claim(id) == (id not in known)
        known.add(id)
    assert all(id in ids for id in known)
    assert not any(f"other {number}" in ids for number in range(1000))
    assert 2 <= len(ids._runs) <= 9
    sizes = [run.n for run in ids._runs]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) + ids._used == len(known)
    for run in ids._runs:
        numbers = run.read(0, run.n)
        assert (numbers[1:] > numbers[:-1]).all()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("seed", range(5))
def test_many_at_a_time_are_claimed_as_one_by_one(seed: int, tmp_path: Path) -> None:
    """All of a batch, or none if one is taken or occurs twice; batches may be larger than the table."""
    rng = np.random.default_rng(seed)
    ids, known, outcomes = Ids(tmp_path), set[str](), set[bool]()
    for size in rng.integers(40, size=300).tolist():
        batch = [f"row {number}" for number in rng.integers(30_000, size=size).tolist()]
        free = len({*batch} - known) == len(batch)
        assert ids.claim_all(ids_module.keys(batch)) == free
        outcomes.add(free)
        known |= set(batch) if free else set()
        single = f"row {int(rng.integers(30_000))}"
        assert ids.claim(single) == (single not in known)
        known.add(single)
    assert outcomes == {True, False}
    assert all((id in ids) == (id in known) for id in (f"row {number}" for number in range(30_000)))
    assert sum(run.n for run in ids._runs) + ids._used == len(known)


@pytest.mark.usefixtures("tiny")
def test_smallest_and_largest_number_are_found_and_nothing_stays_on_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    numbers = [1, 2, 2**64 - 1, 2**64 - 2, *(2**63 + 7 * index for index in range(200))]
    monkeypatch.setattr(ids_module, "_key", lambda id: int(id))
    ids = Ids(tmp_path)
    assert all(ids.claim(str(number)) for number in numbers)
    assert not any(ids.claim(str(number)) for number in numbers)
    assert ids._runs
    assert str(3) not in ids
    assert str(2**63 + 1) not in ids
    del ids
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("tiny")
def test_rows_are_named_as_before_when_ids_go_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"question": f"Q{number}?", "answer": "A.", **({"id": f"{number}"} if number % 3 else {})}
        for number in rng.integers(120, size=400).tolist()
    ]
    rows[50]["id"] = "7@memory:300"  # the longer name of a later row

    def named() -> list[str]:
        return [row.id for row in Pool(parts=(Rows("memory", rows),)).rows()]

    small = named()
    monkeypatch.setattr(ids_module, "TABLE", 1 << 23)
    assert named() == small
    assert len(set(small)) == len(rows)
