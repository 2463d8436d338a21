"""`gistselect validate`: each measure against its definition done by hand, work shared, continued, mistakes refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from gistselect.errors import DataError
from gistselect.run.planting import (
    FACTS,
    MIXED,
    SAME,
    SPOILERS,
    _mean_reciprocal_rank_by_chance,
    found_in,
    plant,
)
from gistselect.run.validate_config import ValidateConfig
from gistselect.run.validating import Trust, validate
from gistselect.types import Message, Record
from tiny_runs import RecordingReporter, row, write_rows

TRAINING = {"epochs": 1, "learning_rate": 1e-2, "global_batch_size": 4, "adapter": {"rank": 2, "alpha": 4}}


@pytest.fixture
def options(config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The tiny run, with few and small trainings."""
    rows = [row(f"What is {i} and 9?", f"The answer is {i + 9}.", group="a") for i in range(4)]
    heldout = write_rows(tmp_path / "heldout.jsonl", rows)
    return {
        **config,
        "representation": ("gist", "bm25"),
        "heldout": (str(heldout),),
        "finetune": TRAINING,
        "train_seeds": (0, 1),
        "subsets": 5,
        "subset_share": 0.25,
        "planted_among": 20,
        "planted_rows": 4,
    }


def measured(options: dict[str, Any], reporter: RecordingReporter | None = None) -> dict[tuple[str, str], Trust]:
    found = validate(ValidateConfig.from_values(options), reporter or RecordingReporter())
    return {(one.measure, one.method): one for one in found}


def test_summed_scores_are_compared_with_real_losses(options: dict[str, Any]) -> None:
    reporter = RecordingReporter()
    found = measured({**options, "measures": "lds", "validation_rows": 40}, reporter)
    output = options["output"]
    assert [name for name in reporter.last if name.startswith("train")] == [
        f"train on subset {n}" for n in range(1, 6)
    ], "both methods share the five trainings"
    for method in ("gist", "bm25"):
        one = found["LDS", method]
        details = one.details
        assert details["rows"] == 10
        assert one.interval.mean == pytest.approx(spearmanr(details["predicted"], -np.array(details["loss"])).statistic)
    # The first subset's prediction, from the scores on disk.
    inputs = [json.loads(path.read_text()) for path in output.glob("artifacts/train-*/inputs.json")]
    assert len({one["rows"] for one in inputs}) == 5
    tables = [pq.read_table(path) for path in output.glob("artifacts/scores-*/scores.parquet")]
    sums = next(one for one in tables if "gradient_norm" in one.column_names)
    scores = np.mean([sums[f"score/sums/{group}"].to_numpy() for group in "abc"], axis=0)
    smallest, largest = (10 * np.sort(scores)[index] for index in (0, -1))
    assert all(smallest <= value <= largest for value in found["LDS", "gist"].details["predicted"])
    again = RecordingReporter()
    measured({**options, "measures": "lds", "validation_rows": 40}, again)
    assert again.last == {}


def test_the_loss_without_the_best_rows_is_compared_with_random_removals(options: dict[str, Any]) -> None:
    values = {**options, "measures": ("qld",), "representation": ("bm25",), "removed_share": 0.1}
    one = measured(values)["QLD", "bm25"]
    output = options["output"]
    assert (one.details["removed"], one.details["of"]) == (5, 50)
    # Two trainings without the best rows, two without random ones.
    losses = {}
    for path in output.glob("artifacts/losses-*"):
        training = json.loads((path / "inputs.json").read_text())["training"]
        losses[training] = float(np.mean(pq.read_table(path / "losses.parquet")["loss"].to_numpy()))
    assert len(losses) == 4
    seeds: dict[str, list[float]] = {}
    for training, loss in losses.items():
        rows = json.loads((output / "artifacts" / training / "inputs.json").read_text())["rows"]
        seeds.setdefault(rows, []).append(loss)
    (best,) = (own for own in seeds.values() if len(own) == 2)
    random = [own[0] for own in seeds.values() if len(own) == 1]
    assert one.interval.mean == pytest.approx(np.mean(best) - np.mean(random))


def test_planted_rows_are_scored_and_everything_is_written(options: dict[str, Any]) -> None:
    values = {**options, "measures": ("planted",)}
    with pytest.raises(DataError, match=r"takes 60|takes 36|planting"):
        measured({**values, "planted_rows": 30})
    found = measured(values)
    assert set(found) == {(measure, method) for measure in ("AUPRC", "Recall@10", "MRR") for method in ("gist", "bm25")}
    assert all(0 <= one.interval.low <= one.interval.mean <= one.interval.high <= 1 for one in found.values())
    # Only the rows that state a fact know its words.
    assert found["MRR", "bm25"].interval.mean > 0.9
    assert found["Recall@10", "bm25"].interval.mean == 1.0
    output = options["output"]
    text = (output / "validation.md").read_text(encoding="utf-8")
    for chart in ("validation-auprc.svg", "validation-mrr.svg", "validation-recall-10.svg"):
        ElementTree.fromstring((output / chart).read_text(encoding="utf-8"))
        assert chart in text
    assert len(json.loads((output / "validation.json").read_text())) == 8
    assert not list(output.glob("planted/artifacts/warmup-*")), "the checkpoints are those of the run"
    assert not list(output.glob("artifacts/train-*"))


def test_rows_too_long_for_the_model_are_not_planted(options: dict[str, Any], tmp_path: Path) -> None:
    """Half of the pool has prompts that leave no room for an answer: queries made of them could not be asked."""
    rows = [row("What is " + "1 and " * (200 * (i % 2)) + f"{i}?", f"It is {i}.", id=f"r{i}") for i in range(90)]
    values = {**options, "pool": (str(write_rows(tmp_path / "long.jsonl", rows)),), "measures": ("planted",)}
    measured({**values, "max_length": 100})
    assert not (options["output"] / "planted" / "rejected_queries.jsonl").read_bytes()
    assert not (options["output"] / "planted" / "quarantine.jsonl").read_bytes()


def records(n: int) -> list[Record]:
    return [
        Record(
            id=f"r{i}",
            source="s",
            row=i,
            messages=(
                Message(role="user", content=f"Question {i}?"),
                Message(role="assistant", content=f"one two three {i}"),
            ),
        )
        for i in range(n)
    ]


def test_what_is_planted_is_disjoint_seeded_and_spoilt(tmp_path: Path) -> None:
    def planted(name: str, seed: int) -> dict[str, list[dict[str, Any]]]:
        files = plant(records(60), tmp_path / name, among=30, planted=8, seed=seed)
        return {
            file: [json.loads(line) for line in (tmp_path / name / file).read_text().splitlines()]
            for file in ("pool.jsonl", *files)
        }

    first = planted("a", 0)
    assert first == planted("b", 0)
    assert first != planted("c", 1)
    pool = {one["id"]: one for one in first["pool.jsonl"]}
    assert len(pool) == 60 - 32 + 16 + 24
    asked = {one["messages"][0]["content"] for name in (SAME, MIXED) for one in first[f"{name}.jsonl"]}
    assert not asked & {one["messages"][0]["content"] for one in pool.values()}
    assert {one["group"] for one in first[f"{SAME}.jsonl"]} == {"backwards"}
    assert {one["group"] for one in first[f"{MIXED}.jsonl"]} == {one.__name__ for one in SPOILERS}
    for one in pool.values():
        if one["id"].startswith(f"{SAME}-row"):
            assert one["messages"][1]["content"].endswith("three two one")
    for fact, query in enumerate(first[f"{FACTS}.jsonl"]):
        name = query["messages"][0]["content"].removeprefix("In which town was ").removesuffix(" born?")
        stating = [one["id"] for one in pool.values() if name in json.dumps(one, ensure_ascii=False)]
        assert sorted(stating) == [f"facts-row-{fact}-{index}" for index in range(3)]


def test_perfect_and_empty_scores_give_one_and_chance(tmp_path: Path) -> None:
    ids = [f"ordinary-{i}" for i in range(40)]
    ids += [f"{kind}-row-{i}" for kind in (SAME, MIXED) for i in range(5)] + [f"facts-row-0-{i}" for i in range(3)]
    truth = {
        f"score/{SAME}/backwards": [one.startswith(SAME) for one in ids],
        f"score/{MIXED}/refused": [one.startswith(MIXED) for one in ids],
        f"score/{FACTS}/fact-0": [one.startswith("facts") for one in ids],
    }

    def found(scale: float) -> dict[str, Any]:
        columns = {name: np.asarray(values, dtype=float) * scale for name, values in truth.items()}
        pq.write_table(pa.table({"id": ids, **columns}), tmp_path / "scores.parquet")
        results = found_in(tmp_path / "scores.parquet", "m", recall_rows=3, draws=100, level=0.95, seed=0)
        return {f"{one.measure} {one.kind}": one for one in results}

    perfect, empty = found(1.0), found(0.0)
    assert len(perfect) == 4
    for name, one in perfect.items():
        assert one.interval.mean == pytest.approx(1.0)
        assert 0 < one.chance < 0.4
        if "AUPRC" in name:
            assert empty[name].interval.mean == pytest.approx(one.chance)
    order = np.random.default_rng(0)
    drawn = [1 / (1 + min(order.permutation(53)[:3])) for _ in range(20000)]
    assert perfect["MRR made-up facts"].chance == pytest.approx(np.mean(drawn), rel=0.03)
    assert _mean_reciprocal_rank_by_chance(5, 5) == pytest.approx(1.0)


def test_a_method_with_one_score_for_a_target_is_judged_on_every_fact(tmp_path: Path) -> None:
    ids = [f"ordinary-{i}" for i in range(10)] + [f"{kind}-row-0" for kind in (SAME, MIXED)]
    ids += [f"facts-row-{fact}-{i}" for fact in (0, 1) for i in range(2)]
    first = [float(one.startswith("facts-row-0")) for one in ids]
    columns = {f"score/{kind}": first for kind in (SAME, MIXED, FACTS)}
    pq.write_table(pa.table({"id": ids, **columns}), tmp_path / "scores.parquet")
    found = found_in(tmp_path / "scores.parquet", "m", recall_rows=2, draws=100, level=0.95, seed=0)
    by_measure = {one.measure: one.interval.mean for one in found if one.kind == "made-up facts"}
    assert by_measure["Recall@2"] == pytest.approx(0.5), "both rows of one fact lead, those of the other do not"
    assert by_measure["MRR"] == pytest.approx((1 + 1 / 15) / 2), (
        "with ties broken by order, the last but one of 16 rows"
    )
