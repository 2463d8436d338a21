"""`gistselect compare`: every combination equals a run of its own, work is shared, and the study can be continued."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from gistselect.cli import main
from gistselect.errors import ConfigError
from gistselect.report.figures import Dot, cost_chart, interval_chart
from gistselect.run.study import Study, run_study
from gistselect.run.study_config import StudyConfig
from gistselect.run.study_report import markdown
from tiny_runs import RecordingReporter, row, run, write_rows

TRAINING = {"epochs": 1, "learning_rate": 1e-2, "global_batch_size": 4, "adapter": {"rank": 2, "alpha": 4}}


@pytest.fixture
def options(config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Two targets, two methods and two budgets."""
    rows = [row(f"Is {i} more than 7?", "yes" if i > 7 else "no") for i in range(5)]
    other = write_rows(tmp_path / "more.jsonl", rows)
    heldout = [
        write_rows(tmp_path / f"{name}-heldout.jsonl", [row(f"{ask} {i}?", f"It is {i}.") for i in range(20, 24)])
        for name, ask in (("sums", "What is 3 and"), ("more", "Which is"))
    ]
    return {
        **config,
        "output": tmp_path / "study",
        "target": (*config["target"], str(other)),
        "heldout": tuple(map(str, heldout)),
        "representation": ("gist", "bm25"),
        "budgets": (4, "20%"),
        "train_seeds": (0, 1),
        "finetune": TRAINING,
    }


def study(options: dict[str, Any], reporter: RecordingReporter | None = None) -> Study:
    return run_study(StudyConfig.from_values(options), reporter or RecordingReporter())


def test_every_combination_equals_a_run_of_its_own_and_work_is_shared(options: dict[str, Any], tmp_path: Path) -> None:
    reporter = RecordingReporter()
    found = study(options, reporter)
    output = options["output"]
    passes = [name for name in reporter.last if name.startswith("pool ")]
    assert len(passes) == 2, "one gradient pass and one pass over text, for both targets"
    # Random rows of one number are the same for both targets; so is a training on the same rows.
    assert len(list(output.glob("artifacts/train-*"))) <= 2 * (2 * 4 + 2)
    values = {name: value for name, value in options.items() if name != "budgets"}
    values |= {"output": tmp_path / "alone", "target": options["target"][1:], "heldout": options["heldout"][1:]}
    run(values, budget="20%", evaluate=True)
    (compared,) = json.loads((tmp_path / "alone" / "comparison.json").read_text())
    means = {one["arm"]: one["interval"]["mean"] for one in compared["rows"]}
    ours = {one.arm: one.mean for one in found.findings if one.target == "more" and one.budget in ("20%", "")}
    assert ours == pytest.approx(means, abs=1e-6)


def test_a_study_is_continued_and_says_what_it_found(options: dict[str, Any]) -> None:
    first = study(options)
    output = options["output"]
    stored = json.loads((output / "study.json").read_text())
    # Before and random rows once, two methods; two budgets and two targets.
    assert [one.arm for one in first.findings if one.target == "sums"] == [
        *("before", "GIST", "BM25", "random rows"),
        *("GIST", "BM25", "random rows"),
    ]
    again = RecordingReporter()
    assert json.loads(json.dumps(study(options, again).described())) == stored
    assert again.last == {}
    lines = list(csv.DictReader((output / "study.csv").open(encoding="utf-8")))
    assert len(lines) == len(first.findings) == 14
    assert float(lines[1]["mean"]) == first.findings[1].mean
    text = (output / "study.md").read_text(encoding="utf-8")
    assert "## sums, 4 (4 rows)" in text
    assert "GIST" in text
    for chart in ("sums-loss.svg", "sums-loss-cost.svg", "more-loss.svg"):
        ElementTree.fromstring((output / chart).read_text(encoding="utf-8"))
        assert f"]({chart})" in text
    for pair in stored["overlap"]:
        assert 0 <= pair["jaccard"] <= 1
    chosen = {(one.target, one.budget, one.arm): one.rows for one in first.chosen}
    gist, bm25 = (chosen["sums", "20%", name] for name in ("GIST", "BM25"))
    (pair,) = (one for one in stored["overlap"] if (one["target"], one["budget"]) == ("sums", "20%"))
    assert pair["jaccard"] == pytest.approx(len(gist & bm25) / len(gist | bm25))
    for one in stored["sources"]:
        assert sum(one["sources"].values()) == pytest.approx(1)
        assert 0 <= one["stability"]["mean"] <= 1
    of = {(one["target"], one["budget"], one["arm"]): one["stability"]["mean"] for one in stored["sources"]}
    for line in lines:
        key = (line["target"], line["budget"], line["arm"])
        assert (float(line["stability"]) if line["stability"] else None) == of.get(key)
    assert f"| {of['sums', '20%', 'BM25']:.0%} |" in text
    (pair,) = (one for one in stored["overlap"] if (one["target"], one["budget"]) == ("sums", "20%"))
    assert f"| (2) BM25, top_k | {pair['jaccard']:.2f} |" in text
    # Another budget finds the passes done.
    more = RecordingReporter()
    study({**options, "budgets": (4, "20%", 7)}, more)
    assert not [name for name in more.last if name.startswith("pool ")]


def test_a_study_with_scores_makes_no_pass_for_its_stability_alone(options: dict[str, Any]) -> None:
    options = {**options, "representation": ("bm25", "ekfac"), "target": options["target"][:1]}
    options |= {"heldout": options["heldout"][:1], "budgets": (4,), "train_seeds": (0,)}
    first = study({**options, "stability_draws": 0})
    assert [one.stability for one in first.chosen] == [None, None]
    reporter = RecordingReporter()
    again = study(options, reporter)
    assert [one.stability for one in again.chosen] == [None, None]
    assert not [name for name in reporter.last if name.startswith("pool ")]
    assert [one.mean for one in again.findings] == [one.mean for one in first.findings]


def test_the_command_line_compares(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "--device", "cpu", "--model", options["model"], "--pool", *options["pool"]]
    arguments += ["--target", options["target"][0], "--heldout", options["heldout"][0], "--train-seeds", "0"]
    arguments += ["--representation", "bm25", "--budget", "4", "--output", str(options["output"])]
    arguments += ["--finetune.global-batch-size", "4", "--finetune.epochs", "1", "--finetune.adapter.rank", "2"]
    main(arguments)
    assert "BM25" in capsys.readouterr().out
    main(["compare", "--output", str(options["output"])])
    assert (options["output"] / "study.yaml").is_file()


def test_sentences_name_the_selector_where_there_are_several(options: dict[str, Any]) -> None:
    options = {**options, "representation": ("bm25",), "budgets": (4,), "train_seeds": (0,)}
    found = study({**options, "selectors": ("top_k", "vote")})
    told = [sentence for one in found.findings for sentence in one.verdicts if one.target == "sums"]
    assert sorted({sentence.partition(" is ")[0] for sentence in told}) == ["BM25 by top_k", "BM25 by vote"]


def test_mistakes_stop_a_study_before_any_work(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="top_j"):
        study({**options, "selectors": ("top_k", "top_j")})
    with pytest.raises(ConfigError, match="budget"):
        study({**options, "budgets": ("much",)})
    assert not list(options["output"].glob("artifacts/*"))


def test_names_of_anybody_are_no_markup() -> None:
    finding = {"target": "a|b<i>", "budget": "5%", "n_rows": 2, "selector": "top_k", "arm": "GIST", "metric": "loss"}
    finding |= {"n_runs": 1, "mean": 1.0, "low": 0.9, "high": 1.1, "against": {}, "cost": None, "verdicts": ["[x](y)"]}
    mix = {"target": "a|b<i>", "budget": "5%", "arm": "GIST", "selector": "top_k", "sources": {"*bad*": 1.0}}
    facts = {"scored_by": None, "trained": "m", "findings": [finding], "overlap": [], "sources": [mix]}
    text = markdown({**facts, "pool_sources": {}}, {})
    assert "a\\|b\\<i\\>" in text
    assert "\\[x\\](y)" in text
    assert "\\*bad\\*" in text


def test_charts_hold_every_arm_and_escape_text() -> None:
    dots = [Dot(name=f"<{i}>", mean=1 + i, low=0.5 + i, high=1.5 + i, kind="5%", at=10.0**i) for i in range(3)]
    for chart in (
        interval_chart(dots, title="a & b", x_label="x", reference=1.2),
        cost_chart(dots, title="a & b", x_label="x", y_label="y"),
    ):
        tree = ElementTree.fromstring(chart)
        texts = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
        assert {"<0>", "<1>", "<2>", "a & b"} <= set(texts)
        assert len(list(tree.iter("{http://www.w3.org/2000/svg}circle"))) == 3
