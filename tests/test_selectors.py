"""Selectors against brute force on random pools, and what must not matter to them: the order of the pool."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from gistselect.errors import ConfigError
from gistselect.registry import names
from gistselect.selection import selector as selector_module
from gistselect.selection import turns
from gistselect.selection.gates import Room, choose
from gistselect.selection.pursuit import captured
from gistselect.selection.selector import Blocks, Selector, Space
from gistselect.selection.transport import densities, transported
from gistselect.specification import parse


class Points:
    """A pool in memory: scores (n, n_target) and, in each space, rows (n, d) and queries (n_query, d)."""

    def __init__(
        self,
        ids: Sequence[str],
        values: np.ndarray,
        points: Sequence[np.ndarray] = (),
        queries: Sequence[np.ndarray] = (),
        weights: Sequence[float] = (),
    ) -> None:
        self.names, self.values = list(ids), values
        self.rows, self.spaces = (
            list(points),
            [Space(queries=q, weight=w) for q, w in zip(queries, weights, strict=True)],
        )
        self.targets = [str(index) for index in range(values.shape[1])]
        self.best = values.max(axis=1)

    def column(self, target: str) -> np.ndarray:
        return self.values[:, int(target)]

    def scores(self) -> Blocks:
        for start in range(0, len(self.values), 3):
            yield start, self.values[start : start + 3]

    def ids(self, positions: np.ndarray) -> list[str]:
        assert (np.diff(positions) > 0).all()
        return [self.names[position] for position in positions]

    def id_ranks(self) -> np.ndarray:
        return np.argsort(np.argsort(np.array(self.names, dtype=object)))

    def points(self, positions: np.ndarray) -> list[np.ndarray]:
        return [rows[positions] for rows in self.rows]

    def query_scores(self) -> Blocks:
        """Spaces of several checkpoints of one target."""
        cosines = sum(s.weight * unit(rows) @ unit(s.queries).T for s, rows in zip(self.spaces, self.rows, strict=True))
        for start in range(0, len(self.values), 4):
            yield start, np.asarray(cosines)[start : start + 4]

    def expect(self, positions: np.ndarray) -> None:
        pass

    def permuted(self, order: Sequence[int]) -> Points:
        order = list(order)
        return Points(
            [self.names[i] for i in order],
            self.values[order],
            [rows[order] for rows in self.rows],
            [space.queries for space in self.spaces],
            [space.weight for space in self.spaces],
        )


def unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


@st.composite
def pools(draw: st.DrawFn, *, most: int = 14) -> Points:
    """Small pools with ties, duplicates and rows of length zero."""
    n, n_target = draw(st.integers(1, most)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = [f"{rng.integers(0, 10**6)}-{index}" for index in range(n)]
    values = rng.integers(-2, 3, size=(n, n_target)) / 2
    n_query, widths = draw(st.integers(1, 5)), draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))
    points = [rng.standard_normal((n, width)).astype(np.float32) for width in widths]
    for copied in rng.integers(0, n, size=(n // 4, 2)):
        for rows in points:
            rows[copied[0]] = rows[copied[1]]
    if draw(st.booleans()):
        points[0][rng.integers(0, n)] = 0
    queries = [rng.standard_normal((n_query, width)) for width in widths]
    weights = rng.dirichlet(np.ones(len(widths)))
    return Points(ids, values, points, queries, weights.tolist())


def selected(
    pool: Points, selector: Selector, n: int | None = None, refused: frozenset[str] = frozenset()
) -> list[str]:
    class Refuse:
        reason = "refused"

        def admits(self, position: int) -> bool:
            return pool.names[position] not in refused

        def take(self, position: int) -> None:
            pass

    chosen = choose(selector.order(pool), Room(len(pool.names) if n is None else n), [Refuse()])
    return [pool.names[position] for position in chosen.positions]


def made(text: str) -> Selector:
    return parse("selector", text)


@given(st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", names("selector"))
def test_a_selection_does_not_depend_on_the_order_of_the_pool(name: str, data: st.DataObject) -> None:
    pool = data.draw(pools())
    refused = frozenset(data.draw(st.sets(st.sampled_from(pool.names))))
    selector = (
        made(name) if name in {"top_k", "vote", "round_robin", "doubly_greedy"} else made(f"{name}:candidates=1.0")
    )
    found = selected(pool, selector, refused=refused)
    assert sorted(found) == sorted(set(pool.names) - refused)
    order = data.draw(st.permutations(range(len(pool.names))))
    assert selected(pool.permuted(order), selector, refused=refused) == found


@given(pools(), st.sampled_from(["targets", "tasks", "queries"]), st.data())
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("held", [1, 2, 1 << 22])
def test_round_robin(held: int, pool: Points, who: str, data: st.DataObject) -> None:
    refused = frozenset(data.draw(st.sets(st.sampled_from(pool.names))))
    values = np.concatenate([block for _, block in (pool.query_scores() if who == "queries" else pool.scores())])
    teams = [[column] for column in range(values.shape[1])]
    if who == "tasks":
        n_first = data.draw(st.integers(1, values.shape[1]))
        teams = [team for team in (list(range(n_first)), list(range(n_first, values.shape[1]))) if team]
        pool.targets = [f"{'a' if column < n_first else 'b'}/{column}" for column in range(values.shape[1])]
    expected, left = [], set(range(len(pool.names)))
    for turn in itertools.count():
        if not left:
            break
        team = teams[turn % len(teams)]
        column = team[turn // len(teams) % len(team)]
        while left:
            row = min(left, key=lambda row: (-values[row, column], pool.names[row]))
            left.remove(row)
            if pool.names[row] not in refused:
                expected.append(pool.names[row])
                break
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "HELD", held)
        assert selected(pool, made(f"round_robin:turns={who}"), refused=refused) == expected


def test_tasks_share_a_budget_whatever_their_number_of_groups() -> None:
    """Nine groups of one task and the only one of another each get half of the rows."""
    values = np.random.default_rng(0).standard_normal((900, 10))
    pool = Points([str(index) for index in range(900)], values)
    pool.targets = [*(f"many/{group}" for group in range(9)), "single"]
    found = [int(one) for one in selected(pool, made("round_robin:turns=tasks"), 40)]
    assert set(found[1::2]) <= set(np.argsort(-values[:, 9])[:60].tolist())
    assert set(found[1::2]) >= set(np.argsort(-values[:, 9])[:20].tolist()) - set(found[::2])
    for group in range(9):
        assert found[2 * group] in np.argsort(-values[:, group])[:20]


def test_round_robin_is_fair_to_targets_of_another_scale() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((400, 4)) * [1, 10, 1e-3, 100]
    pool = Points([str(index) for index in range(400)], values)
    chosen = [int(one) for one in selected(pool, made("round_robin"), 40)]
    for target in range(4):
        best = set(np.argsort(-values[:, target])[:10].tolist())
        assert len(best & set(chosen)) >= 10
    assert [sum(values[row].argmax() == target for row in chosen) for target in range(4)] != [10, 10, 10, 10]
    assert {int(values[int(row)].argmax()) for row in selected(pool, made("top_k"), 40)} == {3}


@given(pools(), st.floats(0.01, 1))
@settings(max_examples=100, deadline=None)
def test_vote(pool: Points, share: float) -> None:
    n_voted = math.ceil(share * len(pool.names))
    votes = [
        sum(scores[row] >= sorted(scores, reverse=True)[n_voted - 1] for scores in pool.values.T)
        for row in range(len(pool.names))
    ]
    expected = sorted(range(len(pool.names)), key=lambda row: (-votes[row], -pool.best[row], pool.names[row]))
    assert selected(pool, made(f"vote:share={share}")) == [pool.names[row] for row in expected]


@given(pools())
@settings(max_examples=100, deadline=None)
def test_doubly_greedy_takes_the_nearest_pair_that_is_left(pool: Points) -> None:
    cosines = np.concatenate([block for _, block in pool.query_scores()])
    left, expected = set(range(len(cosines))), []
    while left:
        pairs = itertools.product(left, range(cosines.shape[1]))
        row, _ = min(pairs, key=lambda pair: (-cosines[pair], pool.names[pair[0]]))
        left.remove(row)
        expected.append(pool.names[row])
    assert selected(pool, made("doubly_greedy")) == expected


def shortlisted(pool: Points, share: float) -> list[int]:
    order = sorted(range(len(pool.names)), key=lambda row: (-pool.best[row], pool.names[row]))
    return order[: math.ceil(share * len(order))]


def greedy(pool: Points, gain: Callable[[list[int], int], float], refused: frozenset[str]) -> list[str]:
    """The candidate with the largest gain over the rows taken, one after another; the better ranked of equal ones."""
    left, taken = shortlisted(pool, 0.8), []
    while left:
        row = max(left, key=lambda row: (round(gain(taken, row), 6), -left.index(row)))
        left.remove(row)
        if pool.names[row] not in refused:
            taken.append(row)
    return [pool.names[row] for row in taken]


def similarity_matrix(pool: Points) -> np.ndarray:
    return np.asarray(sum(s.weight * unit(rows) @ unit(rows).T for s, rows in zip(pool.spaces, pool.rows, strict=True)))


@given(pools(), st.data())
@settings(max_examples=100, deadline=None)
def test_k_center(pool: Points, data: st.DataObject) -> None:
    refused = frozenset(data.draw(st.sets(st.sampled_from(pool.names))))
    similar = np.rint(similarity_matrix(pool) * 2**12)

    def distance(taken: list[int], row: int) -> float:
        return min((2**12 - similar[row, other] for other in taken), default=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gistselect.selection.cover.GRID", 2**12)
        assert selected(pool, made("k_center:candidates=0.8"), refused=refused) == greedy(pool, distance, refused)


@given(pools(), st.data())
@settings(max_examples=100, deadline=None)
def test_facility_location(pool: Points, data: st.DataObject) -> None:
    refused = frozenset(data.draw(st.sets(st.sampled_from(pool.names))))
    similar = np.rint(similarity_matrix(pool) * 2**12)
    ground = shortlisted(pool, 0.8)

    def gain(taken: list[int], row: int) -> float:
        before = [max((similar[i, other] for other in taken), default=0) for i in ground]
        return sum(max(0.0, similar[i, row] - max(0.0, low)) for i, low in zip(ground, before, strict=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gistselect.selection.cover.GRID", 2**12)
        assert selected(pool, made("facility_location:candidates=0.8"), refused=refused) == greedy(pool, gain, refused)


def test_facility_location_stands_for_clusters() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(5)
    rows = np.repeat(centres, 20, axis=0) + 0.05 * rng.standard_normal((100, 5))
    pool = Points([str(index) for index in range(100)], rng.random((100, 1)), [rows], [centres], [1.0])
    for name in ("facility_location", "k_center"):
        assert {int(row) // 20 for row in selected(pool, made(f"{name}:candidates=1.0"), 5)} == set(range(5))


@given(pools(most=9))
@settings(max_examples=100, deadline=None)
def test_gip_grows_the_projection_of_the_queries(pool: Points) -> None:
    """Each row of the first span adds the most; brute force takes the span's share anew for each candidate."""

    def share(rows: list[int]) -> float:
        return sum(
            space.weight * captured(points[rows], space.queries)
            for space, points in zip(pool.spaces, pool.rows, strict=True)
        )

    ground = shortlisted(pool, 1.0)
    found = [pool.names.index(name) for name in selected(pool, made("gip:candidates=1.0"))]
    taken: list[int] = []
    for row in found:
        gains = {other: share([*taken, other]) - (share(taken) if taken else 0) for other in ground}
        if max(gains.values()) < 1e-6:
            break
        best = max(gains.values())
        assert gains[row] > best - 1e-6
        if sum(gain > best - 1e-6 for gain in gains.values()) == 1:
            assert row == max(gains, key=lambda other: gains[other])
        taken.append(row)
        ground.remove(row)
    assert share(taken) == pytest.approx(share(list(range(len(pool.names)))), abs=1e-5) if taken else True


@given(pools(), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_nearest_neighbours(pool: Points, neighbours: int) -> None:
    cosines = np.concatenate([block for _, block in pool.query_scores()])
    left, expected = shortlisted(pool, 1.0), []
    while left:
        votes = dict.fromkeys(left, 0)
        for query in range(cosines.shape[1]):
            for row in sorted(left, key=lambda row: -cosines[row, query])[:neighbours]:
                votes[row] += 1
        round_ = sorted((row for row in left if votes[row]), key=lambda row: -votes[row])
        expected += round_
        left = [row for row in left if row not in round_]
    assert selected(pool, made(f"knn:neighbours={neighbours},candidates=1.0")) == [pool.names[row] for row in expected]


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 4), st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_optimal_transport_is_optimal(seed: int, n_rows: int, n_query: int, alpha: float) -> None:
    """Against a linear programme over all plans: `min α/C Σ γ d + (1-α) M u` with `γ <= u`, rows of γ adding to 1/M."""
    distances = np.random.default_rng(seed).random((n_rows, n_query))
    scale = float(distances.mean())
    mass = transported(distances, np.ones(n_rows), alpha, 1000, scale)
    assert mass.sum() == pytest.approx(1)
    n = n_rows * n_query
    cost = np.concatenate([alpha / scale * distances.T.reshape(-1), [(1 - alpha) * n_query]])
    capped = np.concatenate([np.eye(n), -np.ones((n, 1))], axis=1)
    handed = np.concatenate([np.kron(np.eye(n_query), np.ones(n_rows)), np.zeros((n_query, 1))], axis=1)
    best = linprog(cost, A_ub=capped, b_ub=np.zeros(n), A_eq=handed, b_eq=np.full(n_query, 1 / n_query))
    plan = best.x[:-1].reshape(n_query, n_rows)
    # The plan may be one of several that are equally good: its cost decides.
    k = np.arange(1, n_rows + 1)
    mean = np.mean([np.cumsum(np.sort(column)) for column in distances.T], axis=0) / k
    assert (alpha / scale * mean + (1 - alpha) / k).min() == pytest.approx(best.fun, abs=1e-9)
    if (np.abs(plan.sum(axis=0) - mass) > 1e-9).any():
        gamma = [alpha / scale * mean[count - 1] + (1 - alpha) / count for count in k]
        assert sorted(gamma)[0] == pytest.approx(sorted(gamma)[1], abs=1e-6)


def test_near_duplicates_share_the_mass_of_one() -> None:
    rng = np.random.default_rng(0)
    single = unit(rng.standard_normal((23, 6))).astype(np.float32)
    copied = np.concatenate([np.repeat(single[:1], 8, axis=0), single[1:]])
    queries = unit(rng.standard_normal((4, 6)))
    alone, together = 1 - single @ queries.T, 1 - copied @ queries.T
    density = densities(copied, together, 1000, 0.01)
    assert density == pytest.approx([8] * 8 + [1] * 22, rel=1e-4)
    expected = transported(alone, np.ones(23), 0.5, 1000, 0.9)
    found = transported(together, np.round(density), 0.5, 1000, 0.9)
    assert found[:8].sum() == pytest.approx(expected[0])
    assert found[8:] == pytest.approx(expected[1:])


def test_a_shortlist_is_a_share_or_a_number() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 3))
    pool = Points([f"{index:02}" for index in range(50)], rng.random((50, 1)), [rows], [rows[:4]], [1.0])
    best = {pool.names[row] for row in np.argsort(-pool.best)[:10]}
    for text in ("k_center:candidates=10", "k_center:candidates=0.2", "k_center"):
        assert set(selected(pool, made(text))) == best
    with pytest.raises(ConfigError, match="whole"):
        made("k_center:candidates=2.5")


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    pool = Points([str(index) for index in range(40)], rng.integers(0, 3, size=(40, 3)) / 2)
    expected = {name: selected(pool, made(name)) for name in ("top_k", "vote")}
    monkeypatch.setattr(selector_module, "BLOCK", 1)
    assert {name: selected(pool, made(name)) for name in expected} == expected
