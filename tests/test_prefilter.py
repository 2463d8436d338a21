"""A prefilter against the obvious way: score all by the cheap, filter, score by the dear, select; and what it loses."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gistselect.cli import main
from gistselect.errors import ConfigError, DataError
from gistselect.registry import names, resolve
from gistselect.report.alerts import alerts
from gistselect.run import ingest as ingest_stage
from gistselect.run import passes
from gistselect.run.config import RunConfig
from gistselect.run.finished import FinishedRun
from gistselect.run.prefilter import FATES
from gistselect.run.reporting import gather
from gistselect.run.study import run_study
from gistselect.run.study_config import StudyConfig
from gistselect.run.validate_config import ValidateConfig
from gistselect.run.validating import validate
from test_run_safety import child
from tiny_runs import RecordingReporter, adapter_of, contents, ids, row, run, write_rows

SMALL = {"less": "less:dimension=64,nonzeros=8", "less_adam": "less_adam:dimension=64,nonzeros=8"}
SMALL["loss_drop"] = "loss_drop:learning_rate=0.01"
READS = {name: resolve("representation", name).reads for name in names("representation")}
FILES = ("selected.jsonl", "selection.parquet", "scores.parquet", "quarantine.jsonl", "sampled.parquet")
GROUPS = "abc"


def table(output: Path, name: str = "scores.parquet") -> dict[str, list[Any]]:
    return pq.read_table(output / name).to_pydict()


def column(output: Path, name: str = "score") -> dict[str, float]:
    found = table(output)
    return dict(zip(found["id"], found[name], strict=True))


def turns(columns: list[dict[str, float]]) -> list[str]:
    """Ids in the order in which targets choose them, one after another."""
    left = {name: sorted(columns[0], key=lambda row: (-one[row], row)) for name, one in enumerate(columns)}
    order: list[str] = []
    while len(order) < len(columns[0]):
        for ranked in left.values():
            if chosen := next((row for row in ranked if row not in order), None):
                order.append(chosen)
    return order


@pytest.fixture
def given(config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The tiny run at an adapter that is made already."""
    made = run(config, output=tmp_path / "warm-up", until="warmup")
    return {**config, "adapter": adapter_of(made)}


def test_it_selects_what_filtering_by_hand_selects(given: dict[str, Any], tmp_path: Path) -> None:
    whole = run(given, output=tmp_path / "whole")
    cheap = run(given, output=tmp_path / "cheap", representation=("bm25",))
    reporter = RecordingReporter()
    output = run(given, reporter, prefilter="bm25:40%", prefilter_sample=6)

    order = turns([column(cheap, f"score/sums/{group}") for group in GROUPS])
    kept = order[:21]  # 40 % of 52 rows, rounded up
    exact = column(whole)
    assert set(table(output)["id"]) == set(kept)
    for name, score in column(output).items():
        assert score == pytest.approx(exact[name], abs=2e-4)
    assert ids(output / "selected.jsonl") == sorted(kept, key=lambda row: -exact[row])[:10]

    places = table(output, "prefilter.parquet")
    assert sorted(places["id"], key=lambda row: places["place"][places["id"].index(row)]) == order
    fates = dict(zip(places["id"], places["fate"], strict=True))
    assert {row for row, fate in fates.items() if fate == "kept"} == set(kept)
    sampled = {row for row, fate in fates.items() if fate == "sampled"}
    assert sampled == set(table(output, "sampled.parquet")["id"])
    assert len(sampled) == 6
    assert not sampled & set(ids(output / "selected.jsonl"))
    assert set(fates.values()) == set(FATES)

    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["scored"], manifest["quarantined"], manifest["left_out"]) == (21, 2, 29)
    assert manifest["pool"]["n_rows"] == 52
    assert any("21 of 50 rows are left to GIST; 6 of the 29 others are scored" in line for line in reporter.said)


def test_a_sample_of_all_the_rest_measures_the_true_loss(given: dict[str, Any], tmp_path: Path) -> None:
    whole = run(given, output=tmp_path / "whole")
    reporter = RecordingReporter()
    output = run(given, reporter, prefilter="random:50%")
    lost = json.loads((output / "manifest.json").read_text())["prefilter"]["lost"]["gist"]
    best = set(ids(whole / "selected.jsonl"))
    kept = set(table(output)["id"])
    assert 0 < len(best - kept) < 10
    assert lost["share"] == lost["low"] == lost["high"] == pytest.approx(len(best - kept) / 10)
    (said,) = (line for line in reporter.said if "it left out about" in line)
    assert f"{10 * len(best - kept)}" in said


@pytest.mark.parametrize("prefilter", ["bm25:30%", "rds:30%"])
def test_order_shards_and_workers_do_not_matter(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefilter: str
) -> None:
    given |= {"prefilter": prefilter, "prefilter_sample": 5}
    output = run(given)
    pool = Path(given["pool"][0])
    lines = pool.read_bytes().split(b"\n")
    other = tmp_path / "other.jsonl"
    other.write_bytes(b"\n".join(lines[at] for at in np.random.default_rng(1).permutation(len(lines))))
    shuffled = run(given, pool=(str(other),), output=tmp_path / "shuffled")
    monkeypatch.setattr(ingest_stage, "SHARD_ROWS", 7)
    sharded = run(given, output=tmp_path / "sharded")
    workers = run(given, output=tmp_path / "workers", engine="local", devices="cpu:2")
    for found in (shuffled, sharded):
        assert ids(found / "selected.jsonl") == ids(output / "selected.jsonl")
        for name in ("scores.parquet", "sampled.parquet"):
            assert set(table(found, name)["id"]) == set(table(output, name)["id"])
        places = dict(
            zip(table(found, "prefilter.parquet")["id"], table(found, "prefilter.parquet")["place"], strict=True)
        )
        assert places == dict(
            zip(table(output, "prefilter.parquet")["id"], table(output, "prefilter.parquet")["place"], strict=True)
        )
    for name in (*FILES, "prefilter.parquet"):
        assert (workers / name).read_bytes() == (sharded / name).read_bytes()


@pytest.mark.parametrize("name", [name for name, reads in READS.items() if reads != "text"])
def test_every_dear_representation_reads_what_is_left_alone(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With shards of which nothing is left; what the pool determines (a curvature, a median) is of the whole pool."""
    monkeypatch.setattr(ingest_stage, "SHARD_ROWS", 4)
    given |= {"representation": (SMALL.get(name, name),), "budget": 4}
    whole = run(given, output=tmp_path / "whole")
    output = run(given, prefilter="random:10%", prefilter_sample=2)
    exact, found = column(whole), column(output)
    assert len(found) == 6
    spread = np.ptp(list(exact.values()))
    for one, score in found.items():
        assert score == pytest.approx(exact[one], abs=2e-3 * spread + 1e-5)
    shards = [len(pq.read_table(path)) for path in (output / "artifacts").glob("features-*/shard-*.parquet")]
    assert 0 in shards


@pytest.mark.parametrize("name", [name for name, reads in READS.items() if reads != "gradient"])
def test_every_cheap_representation_can_be_the_prefilter(
    given: dict[str, Any], tmp_path: Path, name: str, tiny_encoder: Path
) -> None:
    given |= {"encoder": str(tiny_encoder)}
    one = SMALL.get(name, name)
    cheap = run(given, output=tmp_path / "cheap", representation=(one,), selector="round_robin", budget="20%")
    output = run(given, prefilter=f"{one}:20%")
    assert set(table(output)["id"]) == set(ids(cheap / "selected.jsonl"))


def test_cheap_methods_beside_the_dear_ones_score_the_whole_pool_and_share_its_work(given: dict[str, Any]) -> None:
    reporter = RecordingReporter()
    output = run(given, reporter, representation=("gist", "bm25", "rds"), prefilter="bm25:40%", prefilter_sample=3)
    assert len(table(output)["id"]) == 21
    assert len(table(output / "methods" / "bm25")["id"]) == 50
    assert set(table(output / "methods" / "rds")["id"]) == set(table(output)["id"])
    assert not (output / "methods" / "bm25" / "sampled.parquet").exists()
    assert len([name for name in reporter.last if "text" in name]) == 1
    manifest = json.loads((output / "manifest.json").read_text())
    assert set(manifest["prefilter"]["lost"]) == {"gist", "rds"}


def test_a_run_without_it_afterwards_has_no_trace_of_it(given: dict[str, Any], tmp_path: Path) -> None:
    whole = run(given, output=tmp_path / "whole")
    run(given, prefilter="bm25:40%")
    output = run(given, prefilter="none")
    assert contents(output) == contents(whole)
    assert not (output / "prefilter.parquet").exists()
    assert not (output / "sampled.parquet").exists()
    assert "prefilter" not in json.loads((output / "manifest.json").read_text())


def test_another_share_or_sample_reads_its_own_rows(given: dict[str, Any]) -> None:
    """A cell of other rows is another cell, whatever else is the same; a repetition reads nothing."""
    sizes = []
    for changes in ({"prefilter": "bm25:40%"}, {"prefilter": "bm25:60%"}, {"prefilter_sample": 2}, {}, {"seed": 5}):
        given |= changes
        reporter = RecordingReporter()
        output = run(given, reporter)
        sizes.append((len(table(output)["id"]), len(table(output, "sampled.parquet")["id"])))
        assert bool([name for name in reporter.last if "gradients" in name]) == bool(changes)
    assert sizes == [(21, 29), (32, 18), (32, 2), (32, 2), (32, 2)]


@pytest.mark.parametrize("when", ["prefilter-*", pytest.param("scores-*", marks=pytest.mark.slow)])
def test_a_killed_run_continues_to_identical_files(given: dict[str, Any], tmp_path: Path, when: str) -> None:
    given |= {"prefilter": "rds:40%", "prefilter_sample": 5}
    alone = run(given, output=tmp_path / "alone")
    process = child(given)
    while process.poll() is None and not list(given["output"].glob(f"artifacts/{when}")):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run(given)
    for name in (*FILES, "prefilter.parquet"):
        assert (given["output"] / name).read_bytes() == (alone / name).read_bytes()


def test_equal_scores_are_kept_by_id(given: dict[str, Any], tmp_path: Path) -> None:
    """Queries that share no word with the pool tell none of its rows apart."""
    target = tmp_path / "foreign.jsonl"
    said = [{"role": "user", "content": "zzz"}, {"role": "assistant", "content": "qqq"}]
    target.write_text(json.dumps({"messages": said}), encoding="utf-8")
    output = run(given, target=(str(target),), prefilter="bm25:25%", budget=3)
    every = table(output, "prefilter.parquet")["id"]
    assert set(table(output)["id"]) == set(sorted(every)[:13])


def test_a_budget_beyond_what_is_left_stops_before_the_dear_pass(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        run(given, prefilter="bm25:10%")
    for part in ("budget 10", "10 rows", "--prefilter bm25:10%", "6 of the pool's 52", "19.3%", "at most 6"):
        assert part in str(error.value)
    assert not list(given["output"].glob("artifacts/f*"))
    with pytest.raises(ConfigError, match=r"2,000 tokens, but --prefilter bm25:20% leaves \d+ of the pool's"):
        run(given, prefilter="bm25:20%", budget="2k-tokens")
    assert not list(given["output"].glob("artifacts/measured-*")), "no pass of the model was made"


def test_what_the_prefilter_cannot_score_is_quarantined_with_its_name(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = passes._features_table

    def spoilt(rows: np.ndarray, values: np.ndarray) -> pa.Table:
        values = np.array(values, dtype=np.float32)
        if values.shape[1] == len(GROUPS):  # of BM25, not of GIST
            values[np.isin(rows, [4, 9])] = np.nan
        return made(rows, values)

    monkeypatch.setattr(passes, "_features_table", spoilt)
    output = run(given, prefilter="bm25:100%", budget=10)
    reasons = {row["row"]: row["reason"] for row in map(json.loads, (output / "quarantine.jsonl").open("rb"))}
    assert len(reasons) == 4
    assert reasons[4] == "the prefilter BM25: its score is not finite; check the row's text"
    assert list(reasons) == sorted(reasons)
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["scored"], manifest["quarantined"], manifest["left_out"]) == (48, 4, 0)
    with pytest.raises(DataError, match="--strict"):
        run(given, prefilter="bm25:100%", strict=True)


def test_a_sampled_row_that_the_dear_one_cannot_score_stays_left_out(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = passes._features_table
    monkeypatch.setattr(
        passes, "_features_table", lambda rows, values: made(rows, values * np.where(len(rows) < 50, np.nan, 1.0))
    )
    with pytest.raises(ConfigError, match="0 of the pool's 52 rows can be selected"):
        run(given, prefilter="bm25:40%", prefilter_sample=5)
    (scores,) = (
        path for path in given["output"].glob("artifacts/scores-*/complete.json") if "n_left_out" in path.read_text()
    )
    facts = json.loads(scores.read_text())["facts"]
    assert (facts["n_scored"], facts["n_rejected"], facts["n_left_out"]) == (0, 23, 29)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefilter": "bm25"}, "'bm25' is not understood.*bm25:20%"),
        ({"prefilter": "bm25:0%"}, "above 0% and up to 100%"),
        ({"prefilter": "bm25:120%"}, "above 0% and up to 100%"),
        ({"prefilter": "bm52:20%"}, "no representation 'bm52'.*bm25"),
        ({"prefilter": "bm25:k9=1:20%"}, "no option 'k9'"),
        ({"prefilter": "gist:20%", "representation": ("less",)}, "spares nothing: none of less reads more"),
        ({"prefilter": "bm25:20%", "representation": ("dsir",)}, "spares nothing"),
        ({"prefilter": "bm25:20%", "prefilter_sample": -1}, "prefilter_sample"),
    ],
)
def test_mistakes_are_named(config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_values({**config, **changes})


def test_it_is_remembered_with_its_options(given: dict[str, Any]) -> None:
    output = run(given, prefilter="bm25:k1=0.5:40%")
    assert "prefilter: bm25:k1=0.5:40%" in (output / "run.yaml").read_text()


def test_explain_and_the_page_account_for_every_row(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    output = run(given, prefilter="bm25:40%", prefilter_sample=6)
    places = pq.read_table(output / "prefilter.parquet").to_pylist()
    last = max(places, key=lambda one: one["place"])
    left = next(one for one in places if one["fate"] == "left out")
    sampled = next(one for one in places if one["fate"] == "sampled")
    said = {}
    for one in (last, left, sampled):
        main(["explain", str(output), "--row", str(one["row"])])
        said[one["row"]] = " ".join(capsys.readouterr().out.split())
    for one in (last, left):
        assert "not scored: the prefilter left it out" in said[one["row"]]
        assert (
            f"the prefilter BM25 placed it {one['place']} of 50, and the first 21 were left to GIST" in said[one["row"]]
        )
    score = dict(zip(*(table(output, "sampled.parquet")[name] for name in ("row", "score")), strict=True))[
        sampled["row"]
    ]
    lowest = min(table(output, "selection.parquet")["score"])
    enough = "enough" if score > lowest else "not enough"
    assert f"only to measure what is lost: {score:.4f}, {enough} to be selected" in said[sampled["row"]]
    facts = gather(FinishedRun.open(output))
    assert len(facts.main.scores) + facts.n_quarantined + facts.n_left_out == 52
    shown = [one for one in facts.rows if one.status == "prefiltered"]
    assert {one.row for one in shown} == {one["row"] for one in places if one["fate"] != "kept"}
    (alert,) = (one for one in alerts(facts) if "prefilter" in one.title)
    lost = facts.prefilter["lost"]["gist"]
    assert f"{100 * lost['share']:.1f} %" in alert.number.text
    unknown = {**lost, "share": 0.0, "low": 0.0, "high": 0.7}
    (alert,) = (
        one
        for one in alerts(replace(facts, prefilter={**facts.prefilter, "lost": {"gist": unknown}}))
        if "prefilter" in one.title
    )
    assert (alert.level, "a larger --prefilter-sample" in alert.said) == ("look", True)
    assert "29 of 29 prefiltered" in (output / "report.html").read_text()


def test_its_cost_is_part_of_what_it_serves(given: dict[str, Any], tmp_path: Path) -> None:
    heldout = write_rows(
        tmp_path / "heldout.jsonl", [row(f"What is {i} and 9?", f"{i + 9}", group="a") for i in (1, 2)]
    )
    training = {"epochs": 1, "learning_rate": 1e-2, "global_batch_size": 4, "adapter": {"rank": 2, "alpha": 4}}
    reporter = RecordingReporter()
    given |= {"finetune": training, "train_seeds": (0, 1), "heldout": (str(heldout),)}
    output = run(given, reporter, representation=("gist", "bm25"), prefilter="bm25:40%", evaluate=True)
    (compared,) = json.loads((output / "comparison.json").read_text())
    costs = {one["arm"]: one["cost"] for one in compared["rows"] if one["cost"]}
    assert costs["GIST"]["seconds"]["prefilter"] > 0
    assert "prefilter" not in costs["BM25"]["seconds"]
    own = sum(costs["BM25"]["seconds"][name] for name in ("queries", "pool", "score"))
    assert costs["GIST"]["seconds"]["prefilter"] >= own
    assert any("Prefilter: BM25 reads all rows, GIST the best 40 % of the pool by it" in line for line in reporter.said)


def test_a_study_has_one_prefilter_for_all_its_targets(given: dict[str, Any], tmp_path: Path) -> None:
    other = write_rows(
        tmp_path / "more.jsonl", [row(f"Is {i} more than 7?", "yes" if i > 7 else "no") for i in range(5)]
    )
    heldout = write_rows(tmp_path / "heldout.jsonl", [row(f"Which is {i}?", f"It is {i}.") for i in (1, 2)])
    training = {"epochs": 1, "learning_rate": 1e-2, "global_batch_size": 4, "adapter": {"rank": 2, "alpha": 4}}
    given |= {
        "target": (*given["target"], str(other)),
        "heldout": (str(heldout), str(heldout)),
        "finetune": training,
        "train_seeds": (0,),
        "prefilter": "bm25:40%",
        "representation": ("gist", "bm25"),
    }
    with pytest.raises(ConfigError, match="budget '60%' asks for 32 rows, but --prefilter bm25:40% leaves 21"):
        run_study(StudyConfig.from_values({**given, "budgets": ("10%", "60%")}), RecordingReporter())
    assert not list(given["output"].glob("artifacts/f*"))
    reporter = RecordingReporter()
    found = run_study(StudyConfig.from_values({**given, "budgets": ("10%", "20%")}), reporter)
    assert len([name for name in reporter.last if "gradients" in name]) == 1
    assert len(list(given["output"].glob("artifacts/prefilter-*"))) == 1
    assert {(one.arm, one.target, one.budget): one.lost is not None for one in found.chosen} == {
        (arm, target, budget): arm == "GIST"
        for arm in ("GIST", "BM25")
        for target in ("sums", "more")
        for budget in ("10%", "20%")
    }
    assert "The prefilter left out about" in (given["output"] / "study.md").read_text()


def test_validation_asks_about_what_is_left_and_plants_without_it(given: dict[str, Any], tmp_path: Path) -> None:
    heldout = write_rows(
        tmp_path / "heldout.jsonl", [row(f"What is {i} and 9?", f"{i + 9}", group="a") for i in (1, 2)]
    )
    training = {"epochs": 1, "learning_rate": 1e-2, "global_batch_size": 4, "adapter": {"rank": 2, "alpha": 4}}
    options = {
        **given,
        "heldout": (str(heldout),),
        "finetune": training,
        "train_seeds": (0,),
        "subsets": 5,
        "subset_share": 0.25,
        "planted_among": 20,
        "planted_rows": 4,
        "prefilter": "bm25:80%",
    }
    found = validate(ValidateConfig.from_values(options), RecordingReporter())
    assert {one.measure for one in found} == {"LDS", "QLD", "AUPRC", "Recall@10", "MRR"}
    (qld,) = (one for one in found if one.measure == "QLD")
    assert qld.details["of"] == 42
    scored = pq.read_table(given["output"] / "planted" / "scores.parquet")
    assert sum(one.startswith("facts-row") for one in scored["id"].to_pylist()) == 12
