"""The whole run against a dense NumPy version of the method, its output contract, resuming, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose
from scipy.stats import spearmanr

from dense_reference import dense_gist, dense_gradients
from gistselect.errors import ConfigError, DataError, GistSelectError
from gistselect.model.gradients import GradientEngine
from gistselect.run import ingest as ingest_stage
from gistselect.run import passes as passes_module
from gistselect.run.config import RunConfig
from gistselect.run.pipeline import execute
from gistselect.run.progress import SilentReporter
from gistselect.run.remember import recall
from reference_errors import assert_like_reference
from tiny_runs import CONTRACT, WARMUP, RecordingReporter, adapter_of, contents, ids, row, run, write_rows


def usable(path: Path) -> list[dict[str, Any]]:
    """The usable rows of a file."""
    rows = []
    for line in path.read_bytes().split(b"\n"):
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if one["messages"][1]["content"]:
            rows.append(one)
    return rows


def pairs(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(one["messages"][0]["content"], one["messages"][1]["content"]) for one in rows]


def test_scores_and_selection_equal_the_dense_method(
    config: dict[str, Any], pool_file: Path, target_file: Path
) -> None:
    output = run(config)
    pool, queries = usable(pool_file), usable(target_file)

    def gradients(rows: list[dict[str, Any]]) -> np.ndarray:
        return dense_gradients(config["model"], adapter_of(output), pairs(rows))

    pool_gradients = gradients(pool)
    expected = dense_gist(gradients(queries), [one["group"] for one in queries], pool_gradients)
    table = pq.read_table(output / "scores.parquet").to_pydict()
    assert table["id"] == [one["id"] for one in pool]
    for index, group in enumerate("abc"):
        what = "GIST", "dense SVD of looped gradients, float64"
        assert_like_reference(*what, table[f"score/sums/{group}"], expected[:, index], atol=2e-4)
    assert_allclose(table["gradient_norm"], np.linalg.norm(pool_gradients, axis=1), rtol=1e-4)
    order = np.argsort(-expected.max(axis=1), kind="stable")[:10]
    assert pq.read_table(output / "selection.parquet")["id"].to_pylist() == [pool[i]["id"] for i in order]
    assert table["best_target"] == [f"sums/{'abc'[i]}" for i in expected.argmax(axis=1)]


def test_output_contract(config: dict[str, Any], pool_file: Path) -> None:
    output = run(config)
    assert {path.name for path in output.iterdir()} == CONTRACT | {"artifacts", ".lock"}
    selection = pq.read_table(output / "selection.parquet")
    assert selection.column_names == [
        "rank",
        "id",
        "source",
        "row",
        "score",
        "best_target",
        "captured_energy",
        "stability",
    ]
    assert selection["rank"].to_pylist() == list(range(1, 11))
    lines = pool_file.read_bytes().split(b"\n")
    by_id = {json.loads(line)["id"]: line for line in lines if b"row-" in line}
    assert (output / "selected.jsonl").read_bytes().splitlines() == [by_id[one] for one in selection["id"].to_pylist()]
    quarantine = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
    assert [one["row"] for one in quarantine] == [29, 30]
    assert all(set(one) == {"id", "source", "row", "reason"} and one["reason"] for one in quarantine)
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["scored"], manifest["quarantined"], manifest["pool"]["n_rows"]) == (50, 2, 52)
    energy = pq.read_table(output / "scores.parquet")["captured_energy"].to_numpy()
    assert ((energy > 0) & (energy <= 1 + 1e-5)).all()


def test_run_yaml_replays_the_run_from_anywhere_and_after_a_move(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inside" / "inputs").mkdir(parents=True)
    Path(config["pool"][0]).rename(tmp_path / "inside" / "inputs" / "pool.jsonl")
    first = run(config, pool=("inside/inputs/pool.jsonl",), output=Path("inside"))
    expected = contents(first.absolute())
    (tmp_path / "inside").rename(tmp_path / "elsewhere")
    monkeypatch.chdir("/")
    replayed = recall(tmp_path / "elsewhere")
    for name in expected:
        (tmp_path / "elsewhere" / name).unlink()
    execute(replayed, SilentReporter())
    assert contents(tmp_path / "elsewhere") == expected


@pytest.mark.parametrize("stop_at", [0, 3, 4])
def test_interrupted_pool_pass_continues_to_identical_files(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    monkeypatch.setattr(ingest_stage, "SHARD_ROWS", 12)
    whole = run(config, output=tmp_path / "whole")
    original, written = passes_module.write_table, 0

    def interrupt(path: Path, table: Any) -> None:
        nonlocal written
        if written == stop_at:
            raise KeyboardInterrupt
        written += 1
        original(path, table)

    with monkeypatch.context() as patch:
        patch.setattr(passes_module, "write_table", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    calls = []
    monkeypatch.setattr(passes_module, "write_table", lambda path, table: (calls.append(path), original(path, table)))
    assert contents(run(config)) == contents(whole)
    # Five shards, each with its features and what was measured.
    assert len(calls) == 10 - stop_at


def test_gradient_passes_report_every_batch_and_count_what_was_found_done_apart(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_stage, "SHARD_ROWS", 12)
    name = "pool gradients at epoch 1 (GIST)"
    reporter = RecordingReporter()
    first = run(config, reporter, engine={"batch_tokens": 64})
    pool = reporter.last[name]
    assert pool.done == pool.total
    assert pool.found_done == 0
    assert len(reporter.steps_done[name]) > 5
    assert len(reporter.steps_done["queries"]) > 1

    shards = sorted(first.glob("artifacts/features-*/*.parquet"))
    shards[-1].unlink()
    for stage in ("features", "scores"):  # Features that no score waits for are not made again.
        next(first.glob(f"artifacts/{stage}-*/complete.json")).unlink()
    again = RecordingReporter()
    run(config, again, engine={"batch_tokens": 64})
    pool = again.last[name]
    assert pool.done == pool.total
    assert 0.5 * pool.total < pool.found_done < pool.total
    assert "queries" not in again.last


def test_number_of_shards_does_not_matter(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pq.read_table(run(config, output=tmp_path / "one") / "scores.parquet")
    monkeypatch.setattr(ingest_stage, "SHARD_ROWS", 7)
    many = pq.read_table(run(config, output=tmp_path / "many") / "scores.parquet")
    assert one["id"] == many["id"]
    assert_allclose(one["score"], many["score"], atol=1e-5)


def test_what_changes_is_all_that_is_computed(config: dict[str, Any], target_file: Path) -> None:
    def pass_names(**changes: Any) -> list[str]:
        reporter = RecordingReporter()
        run(config, reporter, **changes)
        return [name for name in reporter.last if not name.startswith(("score", "stability"))]

    pool = "pool gradients at epoch 1 (GIST)"
    first = config["output"]
    assert pass_names() == ["read the pool", "tokenise", "warm-up", "queries", pool]
    before = pq.read_table(first / "scores.parquet")
    assert pass_names(budget="40%") == []
    assert pass_names(energy_weighting=True) == []
    second = write_rows(target_file.with_name("words.jsonl"), [row("Which is more?", "größer")])
    assert pass_names(target=(str(target_file), str(second))) == ["queries", pool]
    after = pq.read_table(first / "scores.parquet")
    assert after["score/sums/a"] == before["score/sums/a"]
    assert "score/words" in after.column_names
    widths = [
        pq.read_schema(path).field("features").type.list_size for path in first.glob("artifacts/features-*/*.parquet")
    ]
    assert len(widths) == 2
    assert pass_names(max_length=64) == ["tokenise", "warm-up", "queries", pool]


def test_several_checkpoints_add_their_weighted_scores(config: dict[str, Any], tmp_path: Path) -> None:
    base = run(config, warmup_checkpoints=(1, 2))
    adapters = sorted(base.glob("artifacts/warmup-*/training/checkpoint-*"), key=lambda path: int(path.name[11:]))
    singles = [
        pq.read_table(run(config, adapter=one, output=tmp_path / one.name) / "scores.parquet")["score/sums/a"]
        for one in adapters
    ]
    both = run(config, checkpoints=tuple(adapters), checkpoint_weights=(3.0, 1.0), output=tmp_path / "both")
    total = pq.read_table(both / "scores.parquet")["score/sums/a"].to_numpy()
    assert_allclose(total, 0.75 * singles[0].to_numpy() + 0.25 * singles[1].to_numpy(), atol=1e-6)


def test_energy_weighting_is_the_cosine_with_the_full_gradient(config: dict[str, Any], tmp_path: Path) -> None:
    plain = pq.read_table(run(config) / "scores.parquet")
    weighted = pq.read_table(run(config, energy_weighting=True) / "scores.parquet")
    scale = np.sqrt(plain["captured_energy"].to_numpy())
    assert_allclose(weighted["score/sums/b"], plain["score/sums/b"].to_numpy() * scale, atol=1e-6)


def test_a_wide_sketch_is_exact_and_a_narrow_one_reports_its_agreement(config: dict[str, Any], tmp_path: Path) -> None:
    exact = pq.read_table(run(config) / "scores.parquet")["score"].to_numpy()
    wide = run(config, sketch=64, output=tmp_path / "wide")
    assert_allclose(pq.read_table(wide / "scores.parquet")["score"], exact, atol=1e-4)
    agreement = {}
    for width in (4, 24):
        output = run(config, sketch=width, output=tmp_path / f"{width}")
        scores = pq.read_table(output / "scores.parquet")["score"].to_numpy()
        agreement[width] = json.loads((output / "subspace.json").read_text())["sums"]["checkpoints"][0][
            "sketch_agreement"
        ]
        assert agreement[width]["rows"] == 50
        assert agreement[width]["spearman"] == pytest.approx(spearmanr(scores, exact).statistic, abs=1e-3)
    assert agreement[4]["spearman"] < agreement[24]["spearman"] > 0.8


def test_a_kept_sketch_serves_a_new_target_without_a_pass_over_the_pool(
    config: dict[str, Any], target_file: Path, tmp_path: Path
) -> None:
    second = write_rows(target_file.with_name("words.jsonl"), [row("Which is more?", "größer")])
    fresh = run(config, sketch=8, target=(str(second),), output=tmp_path / "fresh")
    run(config, sketch=8, keep_sketch=True)
    reporter = RecordingReporter()
    later = run(config, reporter, sketch=8, keep_sketch=True, target=(str(second),))
    assert not [name for name in reporter.last if name.startswith("pool")]
    first, again = (pq.read_table(folder / "scores.parquet")["score"] for folder in (fresh, later))
    assert_allclose(first, again, atol=1e-5)


def test_another_budget_of_a_sketched_run_loads_no_model(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = run(config, sketch=8)
    before = json.loads((output / "subspace.json").read_text())["sums"]["checkpoints"][0]["sketch_agreement"]
    monkeypatch.setattr("gistselect.model.loading.load_model", None)
    run(config, sketch=8, budget="60%")
    after = json.loads((output / "subspace.json").read_text())["sums"]["checkpoints"][0]["sketch_agreement"]
    assert after["spearman"] == before["spearman"]
    assert after["overlap_at_budget"] > before["overlap_at_budget"]


def test_normalised_output(config: dict[str, Any]) -> None:
    output = run(config, output_format="messages")
    rows = [json.loads(line) for line in (output / "selected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [one["id"] for one in rows] == pq.read_table(output / "selection.parquet")["id"].to_pylist()
    assert all(set(one) == {"id", "dataset", "messages"} for one in rows)


@pytest.mark.parametrize("sketch", [None, 8])
def test_a_nan_gradient_is_quarantined_and_never_ranked(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, sketch: int | None
) -> None:
    """Also in a sketched run, which compares the rest of its sample with exact scores."""
    original = GradientEngine.collect

    def poisoned(engine: Any, examples: Any, sinks: Any) -> Any:
        measured = original(engine, examples, sinks)
        for sink in sinks:
            values = sink.result()
            values[4], values[9] = np.nan, np.inf
            sink.result = lambda values=values: values
        return measured

    monkeypatch.setattr(GradientEngine, "collect", poisoned)
    output = run(config, budget=48, sketch=sketch)
    scored = pq.read_table(output / "scores.parquet")["id"].to_pylist()
    assert not {"row-4", "row-9"} & set(scored)
    assert {"row-4", "row-9"} <= set(ids(output / "quarantine.jsonl"))
    with pytest.raises(DataError, match="--strict"):
        run(config, budget=48, sketch=sketch, strict=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 51}, "at most 50"),
        ({"target": ("gsm9k",)}, "gsm8k"),
        ({"pool": ("nowhere.jsonl",)}, "nowhere.jsonl"),
        ({"strict": True}, "row 29"),
        ({"max_length": 3}, "max"),
        ({"model": "no/such/folder/here"}, "no/such/folder/here"),
        ({"warmup": {**WARMUP, "global_batch_size": 64}}, "taught the adapter nothing"),
    ],
)
def test_bad_input_names_what_and_the_remedy(config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GistSelectError, match=message):
        run(config, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranc": 3}, "did you mean 'rank'"),
        ({"adapter": "a", "checkpoints": ("b",)}, "not both"),
        ({"checkpoint_weights": (1.0, 2.0)}, "2 checkpoint_weights for 1 checkpoints"),
        ({"warmup_checkpoints": (9,)}, "epochs 1 to 2"),
        ({"template": 3}, "template"),
        ({"keep_sketch": True}, "--sketch 32"),
        ({"budget": "lots"}, "not understood"),
        ({"rank": 0}, "rank=0"),
        ({"seed": -1}, "seed"),
        ({"train_seeds": (0, -1)}, "negative"),
        ({"warmup_checkpoints": (1, 1)}, "once"),
        ({"representation": ("gits",)}, "Did you mean 'gist'"),
        ({"representation": ("bm25:k2=3",)}, "k1"),
    ],
)
def test_bad_options_fail_at_once(config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_values({**config, **changes})


def test_empty_pool(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        run(config, pool=(str(tmp_path / "empty.jsonl"),))


def test_a_token_shard_is_read_once_a_checkpoint(
    config: dict[str, Any], target_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two checkpoints: twice for the warm-up, once a pass, once to score, and the lengths for a forecast."""
    second = write_rows(target_file.with_name("words.jsonl"), [row("Which is more?", "größer")])
    read: list[list[str]] = []
    original = ingest_stage.read_table

    def counted(path: Path, columns: Any = None) -> Any:
        if path.parent.name.startswith("tokens-"):
            read.append(list(columns))
        return original(path, columns)

    monkeypatch.setattr(ingest_stage, "read_table", counted)
    run(config, target=(str(target_file), str(second)), warmup_checkpoints=(1, 2))
    assert len(read) == 6
    assert read[0][0] == "n_tokens"
    assert sum("input_ids" in columns for columns in read) == 3
