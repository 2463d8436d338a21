"""Batches hold every example once, within the budget, with the right labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistselect.errors import DataError
from gistselect.model.batches import Layout, build_batch, plan_batches, trimmed_lengths
from gistselect.types import Example

PAD = 99


def example(name: str, ids: list[int], supervised: list[int]) -> Example:
    return Example(id=name, input_ids=np.array(ids, dtype=np.int32), supervised=np.array(supervised, dtype=bool))


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=50),
    budget=st.integers(1, 200),
    layout=st.sampled_from(["packed", "padded", "single"]),
)
def test_every_row_once_longest_first_within_the_budget(lengths: list[int], budget: int, layout: Layout) -> None:
    sizes = np.array(lengths)
    plan = list(plan_batches(sizes, budget, layout))
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(lengths)))
    assert np.all(np.diff(sizes[np.concatenate(plan)]) <= 0)
    for rows in plan:
        used = sizes[rows].sum() if layout == "packed" else sizes[rows].max() * len(rows)
        assert len(rows) == 1 or (used <= budget and layout != "single")


def test_packing_fills_the_budget() -> None:
    plan = list(plan_batches(np.full(100, 7), 70, "packed"))
    assert [len(rows) for rows in plan] == [10] * 10


EXAMPLES = [
    example("a", [1, 2, 3, 4, 5], [1, 0, 1, 1, 0]),
    example("b", [6, 7, 8], [0, 1, 1]),
]


def test_padded_layout() -> None:
    lengths = trimmed_lengths(EXAMPLES)
    assert lengths.tolist() == [3, 2]
    batch = build_batch(EXAMPLES, np.array([1, 0]), lengths, "padded", PAD)
    assert batch.input_ids.tolist() == [[6, 7, PAD], [1, 2, 3]]
    assert not batch.packed
    assert batch.predictors.tolist() == [0, 1, 4, 5]
    assert batch.labels.tolist() == [7, 8, 3, 4]
    assert batch.owners.tolist() == [0, 0, 1, 1]
    assert batch.n_supervised.tolist() == [2, 2]


def test_packed_layout() -> None:
    batch = build_batch(EXAMPLES, np.array([0, 1]), trimmed_lengths(EXAMPLES), "packed", PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3, 6, 7]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.starts.tolist() == [0, 3]
    assert batch.predictors.tolist() == [1, 2, 3, 4]
    assert batch.labels.tolist() == [3, 4, 7, 8]


def test_a_row_without_label_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="'first only'"):
        trimmed_lengths([*EXAMPLES, example("first only", [1, 2], [1, 0])])
