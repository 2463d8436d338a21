"""Decisions of a schedule, without a process or a clock."""

from __future__ import annotations

import pytest

from gistselect.run.scheduling import DEPARTURES, FIRST_LIMIT, GROW_AFTER, LEAST_LIMIT, PATIENCE, Limits, Schedule


def schedule(n: int, *workers: str, **limits: float) -> Schedule:
    made = Schedule(dict.fromkeys(range(n), 10.0), Limits(**limits))  # pyright: ignore[reportArgumentType]
    for worker in workers:
        made.join(worker)
    return made


def test_every_shard_is_done_once_in_order_by_whoever_is_free() -> None:
    one = schedule(5, "a", "b")
    assert [one.take(worker, 0.0).index for worker in "ab"] == [0, 1]  # pyright: ignore[reportOptionalMemberAccess]
    assert one.take("a", 0.0) is None, "it is busy"
    assert one.succeeded("b", 1.0) == 1
    assert [one.take("b", 1.0).index, one.succeeded("a", 2.0)] == [2, 0]  # pyright: ignore[reportOptionalMemberAccess]
    while not one.finished:
        for worker in "ab":
            if one.running(worker) or one.take(worker, 3.0):
                one.succeeded(worker, 4.0)
    assert sorted(one.done) == list(range(5))
    assert not one.lost


def test_a_failed_shard_goes_elsewhere_with_the_same_budget_first_and_then_with_half() -> None:
    one = schedule(1, "a", "b")
    shares = []
    for worker, other in (("a", None), ("b", "a"), ("a", None)):
        assert other is None or one.take(other, 0.0) is None, "it failed there"
        taken = one.take(worker, 0.0)
        assert taken is not None
        shares.append(taken.share)
        assert (one.failed(worker, "died", "gone") is not None) == (len(shares) == 3)
    assert shares == [1.0, 1.0, 0.5]
    assert one.finished
    assert [failure.worker for failure in one.lost[0].failures] == ["a", "b", "a"]


def test_a_worker_alone_tries_again_itself() -> None:
    one = schedule(2, "a", attempts=2)
    one.take("a", 0.0)
    one.failed("a", "error", "")
    again = one.take("a", 0.0)
    assert again is not None
    assert (again.index, again.share) == (0, 1.0)


def test_memory_halves_the_budget_of_shard_and_worker_and_it_grows_again() -> None:
    one = schedule(3 * GROW_AFTER, "a")
    assert one.take("a", 0.0)
    one.failed("a", "memory", "")
    shares = []
    while not one.finished:
        taken = one.take("a", 0.0)
        assert taken is not None
        shares.append(taken.share)
        one.succeeded("a", 1.0)
    assert shares == [0.5] * GROW_AFTER + [1.0] * (2 * GROW_AFTER)


def test_time_limits_are_given_or_learnt() -> None:
    given = schedule(1, "a", seconds=7.0)
    given.take("a", 100.0)
    assert (given.deadline(), given.overdue(106.9), given.overdue(107.0)) == (107.0, [], ["a"])
    learnt = schedule(3, "a")
    assert learnt.deadline() is None
    learnt.take("a", 0.0)
    assert learnt.deadline() == FIRST_LIMIT
    learnt.started("a", 500.0)
    assert learnt.deadline() == 500.0 + FIRST_LIMIT, "loading the model does not count"
    learnt.succeeded("a", 501.0)
    learnt.take("a", 600.0)
    assert learnt.deadline() == 600.0 + LEAST_LIMIT
    learnt.succeeded("a", 700.0)
    learnt.take("a", 1000.0)
    assert learnt.deadline() == 1000.0 + PATIENCE * 100.0


def test_a_broken_worker_gets_nothing_more_while_there_is_another() -> None:
    one = schedule(9, "broken", "good")
    for _ in range(3):
        assert one.take("broken", 0.0)
        one.failed("broken", "error", "")
    assert one.take("broken", 0.0) is None
    while not one.finished:
        assert one.take("good", 0.0)
        one.succeeded("good", 1.0)
    assert not one.lost
    alone = schedule(9, "broken")
    for _ in range(8):
        assert alone.take("broken", 0.0), "nobody else could"
        alone.failed("broken", "error", "")


def test_workers_join_and_leave() -> None:
    one = schedule(2, "a")
    one.take("a", 0.0)
    assert one.leave("a") is None
    assert one.workers == []
    one.join("b")
    assert one.take("b", 0.0).index == 0  # pyright: ignore[reportOptionalMemberAccess]
    one.join("b")
    assert one.running("b") is not None, "joining twice changes nothing"


def test_a_worker_that_leaves_says_nothing_against_its_shard_unless_all_do() -> None:
    one = schedule(1)
    for number in range(DEPARTURES):
        one.join(f"node {number}")
        taken = one.take(f"node {number}", 0.0)
        assert taken is not None
        assert taken.share == 1.0
        assert (one.leave(f"node {number}") is not None) == (number == DEPARTURES - 1)
    assert one.finished


@pytest.mark.parametrize(("more", "least", "most"), [({}, 1.0, 1.1), ({"mean_life": 4 * 3600.0}, 1.1, 1.6)])
def test_the_simulation_loses_nothing(more: dict[str, float], least: float, most: float) -> None:
    """The engine's own loop with a virtual clock: every shard once, and the time that arithmetic says."""
    simulate_scale = pytest.importorskip("simulate_scale")
    amounts = [4e6] * 2000
    cards = simulate_scale.Cards(n=16, tokens_per_second=1e4, spread=0.0, shard_seconds=0.0, open_seconds=0.0, **more)
    found = simulate_scale.simulate(cards, amounts)
    assert least <= found.hours / (sum(amounts) / 1e4 / 16 / 3600) <= most
    assert found.lost == 0
