"""Selectors in a run: from the features it has kept, and without reading more than they need."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from gistselect.errors import ConfigError
from gistselect.linalg.similarity import cosine_scores
from gistselect.registry import names
from gistselect.run.config import RunConfig
from gistselect.run.plan import make_plan
from gistselect.run.scored import ScoredPool
from tiny_runs import row, run, write_rows


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a run with two targets, two checkpoints and two methods that has got as far as its scores."""
    folder = tmp_path_factory.mktemp("selectors")
    from tiny_runs import WARMUP, write_pool, write_target

    other = [row(f"Which number follows {n}?", f"{n + 1}, of course.") for n in range(4)]
    config = {
        "model": str(tiny_model),
        "pool": (str(write_pool(folder / "pool.jsonl")),),
        "target": (str(write_target(folder / "sums.jsonl")), str(write_rows(folder / "next.jsonl", other))),
        "representation": ("gist", "less:dimension=64"),
        "budget": 10,
        "output": folder / "run",
        "warmup": WARMUP,
        "warmup_share": 0.3,
        "warmup_checkpoints": (1, 2),
        "device": "cpu",
    }
    run(config, until="score")
    return config


def pools(config: dict[str, Any]) -> tuple[ScoredPool, ScoredPool]:
    plan = make_plan(RunConfig.from_values(config), "select", None)
    gist, less = plan.methods
    return ScoredPool(gist.score), ScoredPool(less.score)


def test_points_are_those_behind_the_scores(made: dict[str, Any]) -> None:
    gist, less = pools(made)
    n = len(gist.best)
    everything = np.random.default_rng(0).permutation(n)
    scores = pq.read_table(gist.path)
    assert gist.targets == ["sums/a", "sums/b", "sums/c", "next"]
    # GIST: a space for each target and checkpoint. The one group of the second target is the mean of its queries.
    assert len(gist.spaces) == 4
    assert sum(space.weight for space in gist.spaces) == pytest.approx(1)
    points = gist.points(everything)
    found = sum(
        2 * space.weight * cosine_scores(rows, space.queries.mean(axis=0, keepdims=True))[:, 0]
        for space, rows in zip(gist.spaces[2:], points[2:], strict=True)
    )
    assert found == pytest.approx(scores["score/next"].to_numpy()[everything], abs=1e-9)
    # LESS: one space a checkpoint; a group's score is the mean of the cosines with its queries.
    assert len(less.spaces) == 2
    assert [len(space.queries) for space in less.spaces] == [11, 11]
    cosines = np.concatenate([block for _, block in less.query_scores()])
    scores = pq.read_table(less.path)
    assert cosines[:, 7:].mean(axis=1) == pytest.approx(scores["score/next"].to_numpy(), abs=1e-6)
    assert cosines[:, [0, 2, 4]].mean(axis=1) == pytest.approx(scores["score/sums/a"].to_numpy(), abs=1e-6)
    assert np.concatenate([block for _, block in less.scores()])[:, 3] == pytest.approx(scores["score/next"].to_numpy())


def test_id_ranks_are_those_of_python(made: dict[str, Any]) -> None:
    gist, _ = pools(made)
    ids = pq.read_table(gist.path)["id"].to_pylist()
    assert np.argsort(gist.id_ranks()).tolist() == sorted(range(len(ids)), key=lambda index: ids[index])


@pytest.mark.parametrize("name", names("selector"))
def test_every_selector_selects_from_what_is_kept(name: str, made: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(made["output"], tmp_path / "run")
    config = {**made, "output": tmp_path / "run"}
    before = {path.name for path in (tmp_path / "run" / "artifacts").iterdir()}
    output = run(config, selector=name, budget=8)
    new = {path.name.split("-")[0] for path in (output / "artifacts").iterdir() if path.name not in before}
    assert new - {"overlap"} == {"selection", "stability"}
    for folder in (output, output / "methods" / "less-dimension-64"):
        table = pq.read_table(folder / "selection.parquet")
        assert len(set(table["id"].to_pylist())) == 8
        if name != "top_k":
            continue
        assert table["score"].to_pylist() == sorted(table["score"].to_pylist(), reverse=True)


def test_a_selector_that_compares_points_says_what_it_cannot_use(made: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"BM25 keeps only scores; leave it out, or use round_robin, top_k, vote"):
        run({**made, "output": tmp_path / "other", "representation": ("bm25",)}, selector="k_center")
    with pytest.raises(ConfigError, match="BM25"):
        run(
            {**made, "output": tmp_path / "other", "representation": ("gist", "bm25")},
            selector="round_robin:turns=queries",
        )
    assert not list((tmp_path / "other").glob("artifacts/*"))
    with pytest.raises(ConfigError, match=r"no selector 'topk'.*Did you mean 'top_k'"):
        RunConfig.from_values({**made, "selector": "topk"})
    with pytest.raises(ConfigError, match="no option 'turn'; its options: turns"):
        RunConfig.from_values({**made, "selector": "round_robin:turn=queries"})


def test_a_budget_beyond_the_shortlist_is_refused(made: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"looks at the 10 best rows only, 2 fewer than the budget.*candidates=0.5"):
        run(made, selector="k_center", budget=12)
