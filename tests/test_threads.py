"""Threads over shards: the order of the results, how many wait, and what a failure leaves."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from gistselect.run import threads
from gistselect.run.threads import AHEAD, MOST, in_order, n_threads


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_come_in_order_whichever_is_done_first(count: int) -> None:
    def slow_at_first(index: int) -> int:
        time.sleep(0.02 if index % 3 == 0 else 0.0)
        return index * index

    assert list(in_order(slow_at_first, 20, count)) == [index * index for index in range(20)]
    assert list(in_order(slow_at_first, 0, count)) == []


def test_no_more_is_made_than_may_wait() -> None:
    made: list[int] = []
    for index in in_order(lambda index: (made.append(index), index)[1], 50, 3):
        time.sleep(0.002)
        assert len(made) <= index + 1 + AHEAD * 3 + 1


def test_the_first_failure_is_raised_and_nothing_further_begun() -> None:
    begun: list[int] = []

    def failing(index: int) -> int:
        begun.append(index)
        if index in (4, 5):
            raise ValueError(f"shard {index}")
        time.sleep(0.002)
        return index

    shards = in_order(failing, 1000, 2)
    assert list(itertools.islice(shards, 4)) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="shard 4"):
        next(shards)
    assert max(begun) <= 4 + AHEAD * 2
    assert not [one for one in threading.enumerate() if one.name.startswith("shards")]


def test_leaving_early_ends_the_threads() -> None:
    shards = in_order(lambda index: index, 1000, 2)
    assert next(shards) == 0
    shards.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("shards")]


@pytest.mark.parametrize(
    ("told", "expected"), [("1", 1), ("3", 3), ("4,2", 4), ("64", MOST), ("", 6), ("0", 6), ("many", 6)]
)
def test_as_many_threads_as_torch_is_told_to_take(told: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    assert n_threads() == expected
