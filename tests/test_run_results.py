"""What a run counts, says and depends on: weights, truncation, forecasts, keys, comparisons."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gistselect.run.config import RunConfig
from gistselect.run.plan import Plan, make_plan
from tiny_runs import RecordingReporter, ids, row, run, write_rows


def plan_of(config: dict[str, Any], **changes: Any) -> Plan:
    """The plan of a run, which writes nothing."""
    values = RunConfig.from_values({**config, **changes})
    plan = make_plan(values, values.last_stage, None)
    assert not list(values.output.glob("artifacts/*"))
    return plan


def keys(plan: Plan) -> dict[str, str]:
    """The key of every result up to the selection."""
    assert plan.tokens is not None
    ((fit, cell),) = plan.methods[0].columns[0].entries
    assert cell.measured is not None
    found = {"records": plan.records.artifact, "tokens": plan.tokens.artifact, "fit": fit.artifact}
    found |= {"features": cell.features, "measured": cell.measured, "score": plan.methods[0].score.artifact}
    return {name: artifact.key for name, artifact in found.items()}


def test_a_weight_belongs_to_the_epoch_it_was_given_with(config: dict[str, Any]) -> None:
    output = run(config, warmup_checkpoints=(2, 1), checkpoint_weights=(0.1, 0.9))
    described = json.loads((output / "subspace.json").read_text())["sums"]["checkpoints"]
    assert {one["name"]: one["weight"] for one in described} == {"epoch 1": 0.9, "epoch 2": 0.1}


def test_truncation_is_counted_and_queries_have_a_file_of_their_own(config: dict[str, Any], target_file: Path) -> None:
    long = row("Is it long?", "yes " * 60, id="long-query", group="a")
    unanswerable = row("word " * 400, "never read", id="cut-off", group="a")
    with target_file.open("a", encoding="utf-8") as file:
        file.write(json.dumps(long) + "\n" + json.dumps(unanswerable) + "\n")
    reporter = RecordingReporter()
    output = run(config, reporter, max_length=64)
    manifest = json.loads((output / "manifest.json").read_text())
    cut = pq.read_table(output / "scores.parquet")["n_cut"].to_pylist()
    assert manifest["pool"]["n_truncated"] == sum(count > 0 for count in cut) > 0
    assert manifest["truncated_queries"] == {"sums": 1}
    assert ids(output / "rejected_queries.jsonl") == ["cut-off"]
    assert "cut-off" not in ids(output / "quarantine.jsonl")
    said = "\n".join(reporter.said)
    assert f"{manifest['pool']['n_truncated']} rows cut at 64" in said
    assert "1 cut, 1 unusable" in said


def test_what_was_found_and_what_was_not_used_is_said_with_counts(config: dict[str, Any], pool_file: Path) -> None:
    strange = [row("Look.", "A cat.", id=f"picture-{n}", picture_of="a cat") for n in range(3)]
    with pool_file.open("a", encoding="utf-8") as file:
        file.write("".join("\n" + json.dumps(one) for one in strange))
        file.write("".join("\n" + json.dumps(row("Empty?", "", id=f"empty-{n}")) for n in range(2)))
    reporter = RecordingReporter()
    output = run(config, reporter, until="ingest")
    said = "\n".join(reporter.said)
    assert "53 as messages" in said
    assert "3 rows have it" in said
    assert "  3 rows: an assistant turn is empty" in said
    manifest = json.loads((output / "manifest.json").read_text())
    assert sum(manifest["pool"]["reasons"].values()) == manifest["pool"]["n_rejected"] == 4
    assert any("picture_of" in line for line in manifest["found"])


def test_many_files_are_told_together(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for n in range(8):
        write_rows(tmp_path / "many" / f"{n}.jsonl", [row(f"What is {n}?", "It is.", id=n, mood="good")] * (n + 1))
    reporter = RecordingReporter()
    run(config, reporter, pool=(str(tmp_path / "many"),), budget=2, until="ingest")
    said = "\n".join(reporter.said)
    assert "8 files: 36 rows, 36 as messages" in said
    assert "8 files: 28 rows repeat the id" in said
    assert "8 files: 'mood' is not read; 36 rows have it" in said
    assert "7.jsonl" not in said


def test_the_forecast_counts_every_pass_and_what_is_there(config: dict[str, Any]) -> None:
    def forecast(**changes: Any) -> str:
        reporter = RecordingReporter()
        run(config, reporter, **{"until": "warmup", **changes})
        return next(text for text in reporter.said if "Forecast" in text)

    one = forecast()
    assert "2 of 3 pieces of work are done" in one
    assert "pass of the model" not in one
    assert "3 of 3 pieces of work are done" in forecast()
    two = forecast(until="features", warmup_checkpoints=(1, 2))
    assert "2 passes of the model" in two
    assert "2 of 7 pieces of work are done" in two
    assert "1 pass of the model" in forecast(until="features", representation=("less",))
    assert "and the sketches of the pool" in forecast(until="features", sketch=8, keep_sketch=True)
    run(config)
    reporter = RecordingReporter()
    run(config, reporter, budget=11)
    said = next(text for text in reporter.said if "Forecast" in text)
    assert "pass of the model" not in said
    assert "MB of features" not in said


def test_keys_are_complete_before_any_work(config: dict[str, Any], pool_file: Path, target_file: Path) -> None:
    first = keys(plan_of(config))
    assert keys(plan_of(config)) == first

    def changed(**changes: Any) -> set[str]:
        now = keys(plan_of(config, **changes))
        return {name for name in now if now[name] != first[name]}

    of_model = {"fit", "features", "measured", "score"}
    assert changed(dtype="bfloat16") == of_model
    assert changed(dtype="float32") == set(), "auto is float32 on a CPU"
    assert changed(engine={"basis_dtype": "bfloat16"}) == of_model
    assert changed(engine={"batch_tokens": 64}) == set()
    assert changed(max_length=64) == {"tokens", *of_model}
    assert changed(rank=2) == {"fit", "features", "score"}
    assert changed(energy_weighting=True) == {"score"}
    assert changed(warmup_share=0.4) == of_model
    assert changed(budget="40%") == set()
    target_file.write_text(target_file.read_text() + json.dumps(row("More?", "Yes.", group="a")) + "\n")
    assert changed() == {"fit", "features", "score"}
    pool_file.write_bytes(pool_file.read_bytes() + b"\n" + json.dumps(row("New?", "Yes.")).encode())
    assert changed() == set(first)


def test_a_device_of_another_kind_shares_nothing(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same options on a machine with a GPU mean bfloat16 there."""
    import torch

    before = keys(plan_of(config, device="auto"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    after = keys(plan_of(config, device="auto"))
    assert {name for name in after if after[name] != before[name]} == {"fit", "features", "measured", "score"}


def test_content_of_held_out_files_is_part_of_what_was_measured(config: dict[str, Any], tmp_path: Path) -> None:
    heldout = write_rows(tmp_path / "heldout.jsonl", [row("What is 8 and 3?", "The answer is 11.", group="a")])
    options = {"evaluate": True, "heldout": (str(heldout),), "evaluate_tasks": (str(heldout),), "train_seeds": (0,)}

    def content() -> tuple[str, str | None]:
        compare = plan_of(config, **options).compare
        assert compare is not None
        return compare.heldout[0].digest, compare.tasks_key

    first = content()
    write_rows(heldout, [row("What is 8 and 3?", "The answer is 12.", group="a")])
    second = content()
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_protocols_are_asked_in_the_template_and_with_the_seed_of_the_run(
    config: dict[str, Any], tmp_path: Path
) -> None:
    heldout = write_rows(tmp_path / "heldout.jsonl", [row("What is 8 and 3?", "The answer is 11.", group="a")])
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for message in messages %}[{{ message.role }}]{% if message.role == 'assistant' %}{% generation %}"
        "{{ message.content + eos_token }}{% endgeneration %}{% else %}{{ message.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    options = {"evaluate": True, "heldout": (str(heldout),), "template": str(template), "seed": 3}
    compare = plan_of(config, **options).compare
    assert compare is not None
    assert (compare.evaluation.template, compare.evaluation.seed) == (str(template), 3)
    own = plan_of(config, **options, evaluation={"template": "tulu", "seed": 5}).compare
    assert own is not None
    assert (own.evaluation.template, own.evaluation.seed) == ("tulu", 5)


def test_every_arm_and_baseline_in_a_run(config: dict[str, Any], target_file: Path, tmp_path: Path) -> None:
    """Two methods and three baselines, target loss and protocol; the mean is one of groups in both."""
    heldout = write_rows(
        tmp_path / "heldout.jsonl",
        [row(f"What is {i} and 9?", f"The answer is {i + 9}.", group="aab"[i % 3]) for i in range(6)],
    )
    training = {"epochs": 1, "learning_rate": 1e-2, "global_batch_size": 4, "adapter": {"rank": 2, "alpha": 4}}
    output = run(
        config,
        representation=("gist", "bm25"),
        evaluate=True,
        heldout=(str(heldout),),
        evaluate_tasks=(str(heldout),),
        baselines=("random", "length", "full"),
        train_seeds=(0, 1),
        finetune=training,
    )
    loss, protocol = json.loads((output / "comparison.json").read_text())
    arms = [one["arm"] for one in loss["rows"]]
    assert arms == ["before", "GIST", "BM25", "random rows", "random rows of the same lengths", "the full pool"]
    assert [one["n_runs"] for one in loss["rows"]] == [1, 2, 2, 2, 2, 2]
    assert len(loss["verdicts"]) == 5
    for ours, theirs in zip(loss["rows"], protocol["rows"], strict=True):
        assert ours["interval"]["mean"] == pytest.approx(theirs["interval"]["mean"], rel=1e-3)
    assert (output / "methods" / "bm25" / "selected.jsonl").is_file()
    # The full pool is trained once for each seed; no training is done twice.
    assert len(list(output.glob("artifacts/train-*"))) == 10
    reporter = RecordingReporter()
    run(config, reporter, **{**_stored(output), "baselines": ("random",)})
    assert list(reporter.last) == []


def test_full_fine_tunings_are_measured_as_models(config: dict[str, Any], tmp_path: Path) -> None:
    heldout = write_rows(tmp_path / "heldout.jsonl", [row("What is 8 and 9?", "The answer is 17.", group="a")])
    output = run(
        config,
        evaluate=True,
        heldout=(str(heldout),),
        evaluate_tasks=(str(heldout),),
        train_seeds=(0,),
        finetune={"epochs": 1, "learning_rate": 1e-2, "global_batch_size": 4, "full": True},
    )
    loss, protocol = json.loads((output / "comparison.json").read_text())
    means = {one["arm"]: one["interval"]["mean"] for one in loss["rows"]}
    assert means["GIST"] < means["before"]
    assert protocol["rows"][1]["interval"]["mean"] == pytest.approx(means["GIST"], rel=1e-3)


def _stored(output: Path) -> dict[str, Any]:
    from gistselect.run.remember import recall

    return recall(output).model_dump(exclude={"model", "pool", "target", "output"})


def test_no_file_of_the_folder_is_about_another_selection(config: dict[str, Any]) -> None:
    output = run(config, representation=("gist", "bm25"))
    (output / "comparison.json").write_text("[]")
    run(config, representation=("gist", "bm25"), until="score")
    assert (output / "comparison.json").exists()
    assert (output / "selected.jsonl").exists()
    run(config, representation=("bm25",), budget=9, until="score")
    left = {path.name for path in output.iterdir() if path.name not in ("artifacts", ".lock", "methods")}
    assert left == {"scores.parquet", "quarantine.jsonl", "rejected_queries.jsonl", "run.yaml", "manifest.json"} | {
        "queries.jsonl",
        "events.jsonl",
    }
    assert list((output / "methods").glob("*")) == []


def test_the_package_needs_no_posix_module() -> None:
    code = "import sys; sys.modules['resource'] = None; sys.modules['fcntl'] = None; import gistselect.run.pipeline"
    subprocess.run([sys.executable, "-c", code], check=True)
