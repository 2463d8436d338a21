"""Runs under constraints: what is selected equals a walk over the scores by hand, whatever the order of the pool."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import gistselect
from gistselect.data.overlap import HashedWords, Signatures, said, text_digest
from gistselect.errors import ConfigError
from gistselect.run import constraints, ingest, texts
from gistselect.run.arms import Arm, Recipe
from gistselect.run.config import RunConfig
from gistselect.run.finished import FinishedRun
from gistselect.run.plan import make_plan
from gistselect.run.reasons import Explainer
from gistselect.run.sources import Sources
from gistselect.run.validate_config import ValidateConfig
from gistselect.selection.options import SelectionOptions
from gistselect.types import Message, Record
from tiny_runs import RecordingReporter, ids, row, run, write_rows

SOURCES = ["a", "*=5", "=", "x=10%", "<b>\u202e", "none"]
QUERY = "how many apples does tom have after he gives three of his seven red apples to anna"


def pool_rows() -> list[dict[str, Any]]:
    """60 rows that are like the target to different degrees; some repeat others, and two hold its query."""
    rng = np.random.default_rng(7)
    words = QUERY.split() + [f"w{number}" for number in range(40)]
    rows = []
    for number in range(60):
        text = " ".join(rng.choice(words, size=rng.integers(12, 40)).tolist())
        if number % 4 == 3:
            text = str(rows[number - 2]["messages"][0]["content"])
            text = f"  {text}" if number % 8 == 3 else f"{text} and one more word"
        if number in (10, 30):
            text = f"Solve this. {QUERY.upper()}!"
        rows.append(row(text, f"answer {'yes' * (number % 3)}", id=f"row {number:02}", dataset=SOURCES[number % 6]))
        if number % 4 == 3:
            rows[-1]["messages"][1] = dict(rows[number - 2]["messages"][1])
    return rows


ROWS = pool_rows()


@pytest.fixture
def base(tmp_path: Path) -> dict[str, Any]:
    target = [row(f"{QUERY}?", "Four apples are left, since seven minus three is four, so the answer is four.")]
    return {
        "pool": (str(write_rows(tmp_path / "pool.jsonl", ROWS)),),
        "target": (str(write_rows(tmp_path / "apples.jsonl", target)),),
        "representation": ("bm25",),
        "budget": 12,
        "output": tmp_path / "run",
    }


def records() -> dict[str, Record]:
    """The pool's rows by id."""
    found = {}
    for one in ROWS:
        turns = tuple(Message(**turn) for turn in one["messages"])
        found[one["id"]] = Record(id=one["id"], source=one["dataset"], row=0, messages=turns)
    return found


def by_score(output: Path) -> list[str]:
    """Ids, the best score first."""
    table = pq.read_table(output / "scores.parquet")
    pairs = zip(table["score"].to_pylist(), table["id"].to_pylist(), strict=True)
    return [name for _, name in sorted(pairs, key=lambda one: (-one[0], one[1]))]


def test_repeats_are_left_out_by_rank(base: dict[str, Any]) -> None:
    """Exactly the greedy choice by hand over the same digests."""
    found = ids(run(base, dedup="exact") / "selected.jsonl")
    kept: dict[bytes, str] = {}
    for name in by_score(base["output"]):
        kept.setdefault(text_digest(records()[name]), name)
    assert found == list(kept.values())[:12]
    assert found != by_score(base["output"])[:12]


@pytest.mark.parametrize("selector", ["top_k", "round_robin"])
@pytest.mark.parametrize("threshold", [0.6, 0.9])
def test_near_repeats_are_left_out_by_rank(
    base: dict[str, Any], monkeypatch: pytest.MonkeyPatch, threshold: float, selector: str
) -> None:
    """The same whether signatures are read a few or many at a time, and a shard is large or small."""
    made, rows = Signatures(), records()
    signature = {name: made.of([one], HashedWords([said(one)]))[0] for name, one in rows.items()}
    plain = run(base, budget=60, selector=selector)
    order = ids(plain / "selected.jsonl")
    expected: list[str] = []
    for name in order:
        if all((signature[name] == signature[other]).mean() < threshold for other in expected):
            expected.append(name)
    assert len(expected) < 55
    monkeypatch.setattr(ingest, "SHARD_ROWS", 7)
    monkeypatch.setattr(constraints, "AHEAD", 5)
    changes = {"dedup": "near", "dedup_threshold": threshold, "budget": 30, "selector": selector}
    found = run(base, output=base["output"].with_name("small"), **changes)
    assert ids(found / "selected.jsonl") == expected[:30]


def test_the_order_of_the_pool_and_its_shards_do_not_matter(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constrained = {
        "dedup": "near",
        "source_max": {"a": 2, "*": "40%"},
        "source_min": {"*=5": 2, "none": "10%"},
        "decontaminate": base["target"],
    }
    found = run(base, **constrained)
    shuffled = np.random.default_rng(0).permutation(len(ROWS))
    other = write_rows(tmp_path / "other.jsonl", [ROWS[index] for index in shuffled])
    monkeypatch.setattr(ingest, "SHARD_ROWS", 11)
    again = run(base, pool=(str(other),), output=tmp_path / "again", **constrained)
    assert ids(found / "selected.jsonl") == ids(again / "selected.jsonl")
    first, second = (
        {(one["id"], one["reason"]) for one in pq.read_table(folder / "refused.parquet").to_pylist()}
        for folder in (found, again)
    )
    assert first == second
    accounts = [json.loads((folder / "manifest.json").read_text())["selections"]["bm25"] for folder in (found, again)]
    assert accounts[0]["limits"] == accounts[1]["limits"]
    assert Counter(one for _, one in first) == accounts[0]["refused"]


def test_limits_hold_and_are_accounted_for(base: dict[str, Any]) -> None:
    reporter = RecordingReporter()
    output = run(base, reporter, source_max=["x=10%=1", "*=30%"], source_min=["<b>\u202e=3", "==25%"])
    chosen = Counter(json.loads(line)["dataset"] for line in (output / "selected.jsonl").open())
    assert chosen.total() == 12
    assert chosen["x=10%"] <= 1
    assert chosen["<b>\u202e"] == 3
    assert max(chosen.values()) <= 3
    account = json.loads((output / "manifest.json").read_text())["selections"]["bm25"]
    assert account["limits"]["="] == {"most": 3, "least": 3, "selected": 3}
    assert sum(one["selected"] for one in account["limits"].values()) == 12
    said_lines = "\n".join(reporter.said)
    assert "better ranked rows were refused: of a source that has its most (--source-max)" in said_lines
    page = (output / "report.html").read_text()
    assert "Limits of sources" in page
    assert "<b>\u202e" not in page


def test_contamination_is_counted_always_and_left_out_on_request(base: dict[str, Any]) -> None:
    reporter = RecordingReporter()
    output = run(base, reporter)
    line = next(text for text in reporter.said if "Overlap:" in text)
    assert "Overlap: 2 of 12 selected rows share 13 words in a row" in line
    found = pq.read_table(output / "overlap.parquet").to_pylist()
    assert sorted(one["id"] for one in found) == ["row 10", "row 30"]
    assert all(one["item"].startswith("apples, query") for one in found)
    account = json.loads((output / "manifest.json").read_text())["selections"]["bm25"]["overlap"]
    assert (account["n_rows"], account["n_items"], account["n_short"]) == (2, 1, 0)
    assert "2 of 12" in (output / "report.html").read_text()
    run(base, decontaminate=base["target"])
    assert not {"row 10", "row 30"} & set(ids(output / "selected.jsonl"))
    assert not (output / "overlap.parquet").exists()
    refused = pq.read_table(output / "refused.parquet").to_pylist()
    assert {(one["id"], one["row"]) for one in refused} == {("row 10", 10), ("row 30", 30)}
    reasons = Explainer(FinishedRun.open(output)).find(row=30)
    assert reasons.reason == "refused: sharing a passage with an item (--decontaminate)"
    run(base, decontaminate="none")
    assert not (output / "refused.parquet").exists()


def test_held_out_items_count_too(base: dict[str, Any], tmp_path: Path) -> None:
    held = [row(str(ROWS[5]["messages"][0]["content"]), "no answer")]
    heldout = write_rows(tmp_path / "held.jsonl", held)
    output = run(base, heldout=(heldout,), budget=60)
    found = {one["id"]: one["item"] for one in pq.read_table(output / "overlap.parquet").to_pylist()}
    assert found["row 05"].startswith("apples, held-out item")
    output = run(base, heldout=(heldout,), budget=30, decontaminate=(str(heldout), *base["target"]))
    assert json.loads((output / "manifest.json").read_text())["selections"]["bm25"]["overlap"]["n_rows"] == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source_max": ["apple=3"]}, "no row of the pool that can be selected is of source 'apple'"),
        ({"source_min": ["a=11"]}, "Source 'a': --source-min asks for 11 rows, 1 more than the 10 it has"),
        ({"source_max": ["*=1"]}, "--source-max leaves room for 6 rows, 6 fewer than the budget of 12"),
        ({"source_max": "a"}, "is not SOURCE=AMOUNT"),
        ({"dedup": "exact", "budget": 60}, "The budget is missed by 8 of 60 rows: of 60 rows with a score 52 were"),
        (
            {"dedup": "exact", "budget": 40, "source_min": ["none=10"]},
            "Source 'none': --source-min is missed by 1 of 10 rows",
        ),
        ({"budget": "2k-tokens"}, "give --model"),
        ({"decontaminate": ["nothing.jsonl"]}, "nothing.jsonl"),
        ({"dedup": "close"}, "dedup"),
    ],
)
def test_what_cannot_be_met_is_said_with_by_how_much(base: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(gistselect.GistSelectError) as caught:
        run(base, **changes)
    assert said in str(caught.value)


def test_impossible_limits_stop_before_any_score(base: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="1 more than"):
        run(base, source_min=["a=11"])
    assert not list(base["output"].glob("artifacts/features-*"))


def test_a_budget_in_tokens_without_a_model_stops_before_the_pool_is_read(base: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--budget 2k-tokens counts the tokens of a language model; give --model"):
        make_plan(RunConfig.from_values({**base, "budget": "2k-tokens"}), "select", None)


def test_a_planted_pool_is_scored_without_constraints(base: dict[str, Any], tmp_path: Path) -> None:
    """Its sources are others than the pool's."""
    constrained = {"source_min": ["a=2"], "dedup": "near", "decontaminate": base["target"], "selector": "round_robin"}
    planted = ValidateConfig.from_values({**base, **constrained}).planted(tmp_path, ["t.jsonl"], ())
    assert planted.selection == SelectionOptions(budget=1)


def test_options_that_are_not_used_add_nothing_to_a_key(base: dict[str, Any]) -> None:
    plan = make_plan(RunConfig.from_values(base), "select", None)
    (method,) = plan.methods
    assert json.loads(method.select.artifact.inputs) == {
        "stage": "selection",
        "version": 1,
        "scores": method.score.artifact.key,
        "output_format": "pool",
        "budget": "12",
        "selector": "top_k",
    }
    assert not plan.texts.outputs
    for changes in ({"dedup": "near"}, {"source_max": ["a=1"]}, {"decontaminate": base["target"]}):
        other = make_plan(RunConfig.from_values({**base, **changes}), "select", None).methods[0]
        assert other.score.artifact.key == method.score.artifact.key
        assert other.select.artifact.key != method.select.artifact.key


def test_the_text_of_a_pool_is_read_once(base: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another budget, method or selector finds signatures and passages there, and two kinds share a pass."""
    run(base, dedup="near", decontaminate=base["target"])
    monkeypatch.setattr(texts.TextPass, "do", lambda *_: pytest.fail("the text was read again"))
    run(base, dedup="near", decontaminate=base["target"], budget=20, representation=("bm25", "random"))


def test_a_worker_in_another_process_makes_the_same_files(base: dict[str, Any]) -> None:
    config = RunConfig.from_values({**base, "dedup": "near", "decontaminate": base["target"]})
    run(base, dedup="near", decontaminate=base["target"])
    job = make_plan(config, "select", None).texts
    before = {artifact.folder: artifact.shard(0) for artifact in job.outputs}
    contents = {path: path.read_bytes() for path in before.values()}
    for path in contents:
        path.unlink()
    told = pickle.loads(pickle.dumps(job))
    assert told.pending(0)
    told.do(0, Sources())
    assert {path: path.read_bytes() for path in contents} == contents


def tokens_of(output: Path, column: str = "n_tokens") -> dict[str, int]:
    table = pq.read_table(output / "scores.parquet")
    return dict(zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True))


@pytest.mark.parametrize(("budget", "column"), [("1k-tokens", "n_tokens"), ("80-supervised-tokens", "n_supervised")])
def test_a_budget_in_tokens_is_filled_by_rank(base: dict[str, Any], tiny_model: Path, budget: str, column: str) -> None:
    """A text method counts the tokens of a model that is given for that alone."""
    reporter = RecordingReporter()
    output = run(base, reporter, budget=budget, model=str(tiny_model), device="cpu")
    counts = tokens_of(output, column)
    total = 1000 if column == "n_tokens" else 80
    order = by_score(output)
    used = np.cumsum([counts[name] for name in order])
    n = int((used <= total).sum())
    assert ids(output / "selected.jsonl") == order[:n]
    assert any(f"of {total:,} {'tokens' if column == 'n_tokens' else 'supervised tokens'}" in t for t in reporter.said)
    account = json.loads((output / "manifest.json").read_text())["selections"]["bm25"]
    assert (account["used"], account[column]) == (used[n - 1], used[n - 1])


def test_limits_of_sources_in_tokens(base: dict[str, Any], tiny_model: Path) -> None:
    changes = {"source_max": ["*=30%"], "source_min": ["a=500"], "dedup": "exact"}
    output = run(base, budget="2000-tokens", model=str(tiny_model), device="cpu", **changes)
    counts = tokens_of(output)
    used: Counter[str] = Counter()
    for line in (output / "selected.jsonl").open():
        one = json.loads(line)
        used[one["dataset"]] += counts[one["id"]]
    assert used.total() <= 2000
    assert max(used.values()) <= 600
    assert used["a"] > 500 - max(counts.values())


def test_a_budget_that_no_row_fits_into(base: dict[str, Any], tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="No row fits into the budget of 3 tokens"):
        run(base, budget="3-tokens", model=str(tiny_model), device="cpu")


def test_the_api_takes_every_constraint(tiny_model: Path, tmp_path: Path) -> None:
    selection = gistselect.select(
        model=tiny_model,
        pool=ROWS,
        targets={"apples": [row(f"{QUERY}?", "Four.")]},
        budget="0.002M-tokens",
        representation="bm25",
        source_max={"a": "20%"},
        dedup="near",
        decontaminate=[],
        output=tmp_path / "api",
        progress=False,
        device="cpu",
    )
    counts = tokens_of(tmp_path / "api")
    used = [counts[name] for name in selection.ids]
    assert 0 < sum(used) <= 2000
    assert sum(counts[one["id"]] for one in selection if one["dataset"] == "a") <= 400


def test_random_rows_have_as_many_tokens(base: dict[str, Any], tiny_model: Path) -> None:
    """So that a selection of long rows is not compared with more of them."""
    config = RunConfig.from_values({**base, "budget": "900-tokens", "model": str(tiny_model), "device": "cpu"})
    output = run(base, budget="900-tokens", model=str(tiny_model), device="cpu")
    plan = make_plan(config, "select", None)
    (method,) = plan.methods
    assert plan.tokens is not None
    recipe = Recipe(
        model=config.source,
        model_inputs={},
        training=config.finetune,
        tokens=plan.tokens.rows,
        store=plan.overlaps.store,
    )
    selected = sum(tokens_of(output)[name] for name in ids(output / "selected.jsonl"))
    by_row = dict(
        zip(*pq.read_table(output / "scores.parquet", columns=["row", "n_tokens"]).to_pydict().values(), strict=True)
    )
    drawn: Sequence[Any] = [Arm.planned(recipe, "random", seed, "random", method.select, 0) for seed in range(3)]
    for arm in drawn:
        used = sum(by_row[one] for one in arm.rows(plan.tokens.rows).tolist())
        assert selected - max(by_row.values()) < used <= selected
