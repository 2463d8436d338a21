"""Budgets in tokens and limits of sources against brute force over all selections."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gistselect.errors import ConfigError
from gistselect.selection.baselines import random_rows_within
from gistselect.selection.gates import Apart, Chosen, Distinct, Gate, Room, SourceLeast, SourceMost, choose
from gistselect.selection.limits import Limits, parse_limits
from gistselect.selection.selector import Order


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows in the order in which they are proposed, and limits by source."""

    sources: list[int]
    costs: list[int]
    total: int
    most: dict[int, int]
    least: dict[int, int]


@st.composite
def cases(draw: st.DrawFn, *, tokens: bool) -> Case:
    n = draw(st.integers(1, 10))
    amount = st.integers(0, 20 if tokens else 6)
    limits = st.dictionaries(st.integers(0, 2), amount, max_size=3)
    return Case(
        sources=draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)),
        costs=draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)) if tokens else [1] * n,
        total=draw(st.integers(1, 50 if tokens else n)),
        most=draw(limits),
        least=draw(limits),
    )


def in_order(n: int) -> Order:
    for position in range(n):  # noqa: UP028 - a range cannot be told what was taken
        yield position


def walked(case: Case, more: Sequence[Gate] = ()) -> tuple[Chosen, Room, SourceMost, SourceLeast]:
    room, codes = Room(case.total, np.array(case.costs)), np.array(case.sources)
    most, least = SourceMost(case.most, codes, room), SourceLeast(case.least, codes, room)
    return choose(in_order(len(codes)), room, [*more, most, least]), room, most, least


@given(cases(tokens=False))
def test_rows_are_the_best_selection_within_the_limits(case: Case) -> None:
    """Of all selections of that many rows that meet the limits, the one whose ranks come first."""

    def meets(rows: Sequence[int]) -> bool:
        counts = np.bincount([case.sources[row] for row in rows], minlength=3)
        within = all(counts[source] <= most for source, most in case.most.items())
        return within and all(counts[source] >= least for source, least in case.least.items())

    chosen, _, _, least = walked(case)
    possible = [rows for rows in itertools.combinations(range(len(case.sources)), case.total) if meets(rows)]
    if possible:
        assert tuple(chosen.positions.tolist()) == possible[0]
        assert chosen.is_full
        assert not any(least.needed.values())
    else:
        assert not chosen.is_full or any(least.needed.values()) or sum(case.least.values()) > case.total


@given(cases(tokens=True))
def test_tokens_stay_within_the_budget_and_the_limits(case: Case) -> None:
    chosen, room, _, least = walked(case)
    taken = chosen.positions.tolist()
    costs, sources = np.array(case.costs), np.array(case.sources)
    of_source = np.bincount(sources[taken], weights=costs[taken], minlength=3)
    assert costs[taken].sum() + room.left == case.total
    assert room.left >= 0
    assert all(of_source[source] <= limit for source, limit in case.most.items())
    refused = np.concatenate([np.zeros(0, dtype=int), *chosen.refused.values()]).tolist()
    assert not set(taken) & set(refused)
    if not chosen.is_full:
        assert sorted(taken + refused) == list(range(len(costs)))
    if sum(case.least.values()) <= case.total and not case.most:
        for source, wanted in case.least.items():
            if (there := costs[sources == source]).sum() >= wanted:
                # Met, or short of it by less than one of its rows; and the rest of the budget is used up to such ends.
                assert least.needed[source] == 0
                assert of_source[source] > wanted - there.max(initial=1)
        if costs.sum() >= case.total and not any(least.needed.values()):
            assert chosen.is_full or room.left <= least.unused


@given(cases(tokens=True))
def test_without_limits_tokens_are_the_longest_beginning_that_fits(case: Case) -> None:
    free = Case(sources=case.sources, costs=case.costs, total=case.total, most={}, least={})
    chosen, *_ = walked(free)
    ends = np.cumsum(case.costs)
    assert chosen.positions.tolist() == list(range(int((ends <= case.total).sum())))
    assert not chosen.refused


@given(cases(tokens=True))
def test_a_source_without_room_for_its_next_row_gets_no_shorter_one(case: Case) -> None:
    """What is left of a source's most counts as used, so that maxima that add up to the budget can be met."""
    chosen, room, most, _ = walked(Case(**{**vars(case), "least": {}}))
    for source, limit in case.most.items():
        own = [row for row in range(len(case.costs)) if case.sources[row] == source]
        fits = [row for row, end in zip(own, np.cumsum([case.costs[row] for row in own]), strict=True) if end <= limit]
        assert [row for row in chosen.positions if case.sources[row] == source] == [
            row for row in fits if row in chosen.positions
        ]
    of_source = np.bincount(case.sources, weights=case.costs, minlength=3)
    if sum(min(own, case.most.get(source, own)) for source, own in enumerate(of_source)) >= case.total:
        assert chosen.is_full or room.left <= most.unused


class Taken(set[int]):
    def holds(self, one: int) -> bool:
        return one in self


@given(cases(tokens=False), st.data())
def test_gates_work_together(case: Case, data: st.DataObject) -> None:
    """A loop that asks for each row whether all constraints can still be met with it."""
    assume(sum(case.least.values()) <= case.total)  # Anything else is refused before the walk.
    n = len(case.sources)
    text = data.draw(st.lists(st.none() | st.integers(0, 3), min_size=n, max_size=n))
    sharing = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    chosen, *_ = walked(case, [Apart(sharing), Distinct(lambda row: text[row], Taken())])
    taken: list[int] = []
    for row in range(n):
        if len(taken) == case.total:
            break
        counts = np.bincount([case.sources[one] for one in taken], minlength=3)
        kept = sum(max(0, least - counts[one]) for one, least in case.least.items() if one != case.sources[row])
        own = max(0, case.least.get(case.sources[row], 0) - counts[case.sources[row]])
        if (
            not sharing[row]
            and not (text[row] is not None and text[row] in {text[one] for one in taken})
            and counts[case.sources[row]] < case.most.get(case.sources[row], n)
            and (kept + own == 0 or len(taken) + 1 + kept + max(0, own - 1) <= case.total)
        ):
            taken.append(row)
    assert chosen.positions.tolist() == taken
    seen = n if not chosen.is_full else taken[-1] + 1
    assert sum(chosen.dropped.values()) + len(taken) == seen


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 60), st.integers(0, 99))
def test_random_rows_within_tokens(costs: list[int], total: int, seed: int) -> None:
    rows = random_rows_within(total, np.array(costs), np.random.default_rng(seed))
    order = np.random.default_rng(seed).permutation(len(costs)).tolist()
    assert rows.tolist() == order[: len(rows)]
    used = sum(costs[row] for row in rows)
    assert used <= total
    assert len(rows) == len(costs) or used + costs[order[len(rows)]] > total


def limits(most: Sequence[str] = (), least: Sequence[str] = (), total: int = 100, **there: int) -> Limits:
    found = (parse_limits("source-max", most), parse_limits("source-min", least))
    return Limits.of(*found, there=there or {"a": 60, "b": 80, "c": 7}, total=total, unit="rows")


def test_shares_are_of_the_budget_and_never_passed() -> None:
    found = limits(["a=40.5%", "*=60%"], ["b=0.33%"], total=100)
    assert found.most == {"a": 40, "b": 60, "c": 60}
    assert found.least == {"b": 1}


@pytest.mark.parametrize(
    ("most", "least", "said"),
    [
        (["d=5"], [], "is of source 'd'; its sources: 'a', 'b', 'c'"),
        ([], ["c=9"], "asks for 9 rows, 2 more than the 7 it has"),
        (["a=10"], ["a=12"], "asks for 12 rows, 2 more than the 10 of --source-max"),
        ([], ["a=60", "b=50"], "asks for 110 rows in all, 10 more than the budget of 100"),
        (["*=10%"], [], "leaves room for 27 rows, 73 fewer than the budget of 100"),
        (["a=0", "b=0%"], [], "leaves room for 7 rows, 93 fewer"),
    ],
)
def test_limits_that_cannot_be_met_say_which_and_by_how_much(most: list[str], least: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        limits(most, least)
    assert said in str(caught.value)


def test_all_limits_that_cannot_be_met_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        limits(["a=1"], ["a=2", "c=8"])
    assert "'a'" in str(caught.value)
    assert "'c'" in str(caught.value)


@pytest.mark.parametrize("value", ["a", "=5", "a=", "a=x", "a=-1", "a=200%", "a=5-tokens", "a=1e3"])
def test_bad_limits_name_the_option(value: str) -> None:
    with pytest.raises(ConfigError, match="--source-max"):
        parse_limits("source-max", [value])


@given(st.text(min_size=1), st.integers(1, 99))
def test_a_source_may_be_called_anything(name: str, amount: int) -> None:
    assert {source: one.number for source, one in parse_limits("source-max", [f"{name}={amount}"]).items()} == {
        name: amount
    }
    with pytest.raises(ConfigError, match="twice"):
        parse_limits("source-max", [f"{name}=1", f"{name}=2"])
