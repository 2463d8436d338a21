"""Budgets and selectors against brute force."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistselect.errors import ConfigError, DataError
from gistselect.run.warmup import warmup_positions
from gistselect.selection import selector as selector_module
from gistselect.selection.baselines import LENGTH_BINS, length_matched_rows, random_rows
from gistselect.selection.budget import Amount, parse_budget, rows_for_budget
from gistselect.selection.gates import Room, choose
from gistselect.selection.orders import TopK
from gistselect.selection.selector import Order, PoolView
from gistselect.shares import rows_of


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("5%", Fraction(1, 20)),
        ("0.05", Fraction(1, 20)),
        (0.05, Fraction(1, 20)),
        ("500", 500),
        (500, 500),
        ("100%", Fraction(1)),
        (1, 1),
        (1.0, Fraction(1)),
        ("1.0", Fraction(1)),
        ("2.5 %", Fraction(1, 40)),
        ("10k", 10_000),
        ("1.5M", 1_500_000),
    ],
)
def test_budget_forms(text: str | int | float, amount: int | Fraction) -> None:
    assert parse_budget(text) == Amount(number=amount)
    assert parse_budget(text).is_share == isinstance(amount, Fraction)


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("2M-tokens", 2_000_000, "tokens"),
        ("500k-supervised-tokens", 500_000, "supervised tokens"),
        ("0.25m-tokens", 250_000, "tokens"),
        ("7-TOKENS", 7, "tokens"),
    ],
)
def test_budgets_in_tokens(text: str, number: int, unit: str) -> None:
    assert parse_budget(text) == Amount(number=number, unit=unit)  # pyright: ignore[reportArgumentType]


bad = ["", "five", "-3", "0", "0%", "101%", "1.5", "500.0", "nan", "5%%", "1e3", "5k%", "5%-tokens", "1.5-tokens", "٣"]


@pytest.mark.parametrize("text", [*bad, "0-tokens", "2M-words", "2Mtokens", "k", "0k", "0.0001k"])
def test_bad_budgets_name_the_remedy(text: str) -> None:
    with pytest.raises(ConfigError, match="share"):
        parse_budget(text)


def test_budget_over_the_pool() -> None:
    assert rows_for_budget("5%", {"n_rows": 1001}, 1000) == 51
    with pytest.raises(ConfigError, match="at most 10"):
        rows_for_budget(11, {"n_rows": 12}, 10)


def test_a_share_is_exact() -> None:
    """0.07 * 100 is 7.000000000000001 in floats, and seven percent of a hundred rows are seven."""
    assert [rows_for_budget(f"{percent}%", {"n_rows": 100}, 100) for percent in range(1, 101)] == list(range(1, 101))
    assert rows_for_budget(0.07, {"n_rows": 100}, 100) == 7


def test_a_budget_in_tokens_is_rows_of_mean_length() -> None:
    facts = {"n_rows": 12, "n_tokens": 1000, "n_supervised": 500}
    assert rows_for_budget("300-tokens", facts, 10) == 3
    assert rows_for_budget("300-supervised-tokens", facts, 10) == 6
    assert rows_for_budget("1-tokens", facts, 10) == 1
    with pytest.raises(ConfigError, match="is 1 more than the 1,000 tokens"):
        rows_for_budget("1001-tokens", facts, 10)
    with pytest.raises(ConfigError, match="give --model"):
        rows_for_budget("1001-tokens", {"n_rows": 12}, 10)


def top_k(scores: InMemory) -> Order:
    return TopK().order(cast(PoolView, scores))


class InMemory:
    """A view of scores that notes which ids were asked for."""

    def __init__(self, ids: list[str], scores: list[list[float]]) -> None:
        self.names, self.best = ids, np.asarray(scores, dtype=float).max(axis=1)
        self.asked = 0

    def ids(self, positions: np.ndarray) -> list[str]:
        assert list(positions) == sorted(positions)
        self.asked += len(positions)
        return [self.names[position] for position in positions]

    def id_ranks(self) -> np.ndarray:
        return np.argsort(sorted(range(len(self.names)), key=self.names.__getitem__))

    def expect(self, positions: np.ndarray) -> None:
        pass


@given(st.data())
def test_top_k_equals_sorting_and_ignores_the_order_of_the_pool(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 30))
    ids = data.draw(st.lists(st.text(min_size=1), min_size=n, max_size=n, unique=True))
    level = st.sampled_from([-0.5, 0.0, 0.25, 0.5])
    scores = data.draw(st.lists(st.tuples(level, level), min_size=n, max_size=n))
    k = data.draw(st.integers(1, n))
    block = data.draw(st.integers(1, 40))
    expected = sorted(range(n), key=lambda i: (-max(scores[i]), ids[i]))[:k]
    order = data.draw(st.permutations(range(n)))
    for permutation in (range(n), order):
        shuffled = InMemory([ids[i] for i in permutation], [list(scores[i]) for i in permutation])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selector_module, "BLOCK", block)
            found = list(itertools.islice(top_k(shuffled), k))
        assert [shuffled.names[i] for i in found] == [ids[i] for i in expected]


def test_an_order_may_be_told_what_was_taken() -> None:
    scores = InMemory(["a", "b", "c"], [[3.0], [2.0], [1.0]])
    order = top_k(scores)
    assert [next(order), order.send(False), order.send(True)] == [0, 1, 2]


def test_ids_are_compared_whole() -> None:
    """Fixed-width arrays of text drop trailing NUL characters, and one long id makes all of them long."""
    names = ["a\0", "a", "b" * 1_000_000]
    assert list(top_k(InMemory(names, [[1.0]] * 3))) == [1, 0, 2]


def test_ids_are_read_for_ties_only() -> None:
    view = InMemory(
        [str(index) for index in range(100)], [[float(index // 2 if index < 4 else index)] for index in range(100)]
    )
    list(top_k(view))
    assert view.asked == 4


@given(st.data())
def test_the_loop_takes_what_every_gate_admits_and_tells_the_order(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 20))
    n_rows = data.draw(st.integers(1, n))
    refused = data.draw(st.sets(st.integers(0, n - 1)))
    told: list[bool | None] = []

    def order() -> Order:
        for position in range(n):
            told.append((yield position))

    class Refuse:
        reason = "refused"

        def admits(self, position: int) -> bool:
            return position not in refused

        def take(self, position: int) -> None:
            assert position not in refused

    chosen = choose(order(), Room(n_rows), [Refuse()])
    expected = [position for position in range(n) if position not in refused][:n_rows]
    assert chosen.positions.tolist() == expected
    assert chosen.is_full == (len(expected) == n_rows)
    seen = expected[-1] if chosen.is_full else n
    assert chosen.dropped.get("refused", 0) == sum(position < seen for position in refused)
    assert told == [position not in refused for position in range(seen)]


def test_nan_is_never_ranked() -> None:
    with pytest.raises(DataError, match="not finite"):
        next(top_k(InMemory(["good", "bad"], [[0.1], [np.nan]])))


def test_length_matched_rows_have_the_lengths_of_the_selection() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(5, 1, size=4000).astype(int)
    chosen = np.argsort(-lengths)[:300]
    drawn = length_matched_rows(lengths, chosen, rng)
    assert len(set(drawn.tolist())) == len(chosen)
    assert len(set(drawn.tolist()) & set(chosen.tolist())) < len(chosen)
    # The longest 7.5 % of the pool lie in its two highest bins, and so must the draw.
    assert lengths[drawn].min() >= np.quantile(lengths, 1 - 2 / LENGTH_BINS)


def test_random_rows_are_uniform_without_replacement() -> None:
    rng = np.random.default_rng(0)
    draws = [random_rows(10, 50, rng) for _ in range(2000)]
    assert all(len(set(draw.tolist())) == 10 for draw in draws)
    counts = np.bincount(np.concatenate(draws), minlength=50)
    assert np.abs(counts - 400).max() < 5 * np.sqrt(400)


def test_a_share_is_the_one_that_is_written_wherever_rows_are_counted_by_it() -> None:
    """0.07 · 100 is a little more than 7 in floats, which made an eighth row."""
    assert math.ceil(0.07 * 100) == 8
    assert rows_of(0.07, 100) == rows_for_budget("7%", {"n_rows": 100}, 100) == 7
    assert len(warmup_positions(100, 0.07, seed=0)) == 7
    assert [rows_of(share, 10) for share in (1e-05, 0.1, 0.101, 0.5, 1.0)] == [1, 1, 2, 5, 10]
