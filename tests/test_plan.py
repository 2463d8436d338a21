"""`gistselect plan`: the facts of a job before it, what is there already, and how long the rest takes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gistselect.cli import main
from gistselect.model.config import ModelConfig
from gistselect.registry import names
from gistselect.run import ingest
from gistselect.run.calibration import Calibration
from gistselect.run.config import RunConfig, Stage
from gistselect.run.outlook import START, forecast_of, speed_up
from gistselect.run.overview import segments
from gistselect.run.pipeline import _foretell
from gistselect.run.plan import make_plan
from gistselect.run.planning import plan_run
from gistselect.run.progress import SilentReporter
from gistselect.run.rates import RATES, Rate, Spent, load_rates, save_rates, stratified
from gistselect.run.workload import Work, training_rate, workload
from gistselect.training.recipe import TrainingConfig, epoch_order, padded_tokens
from tiny_runs import RecordingReporter, row, run, write_rows


def planned(options: dict[str, Any], seconds: float = 0.5, **changes: Any) -> dict[str, Any]:
    """The document of a plan, as it would be read from its JSON text."""
    document = plan_run(RunConfig.from_values({**options, **changes}), SilentReporter(), seconds=seconds)
    return json.loads(json.dumps(document, allow_nan=False))


def states(document: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["state"] for one in document["forecast"]["work"]}


def text_options(tmp_path: Path, rows: list[dict[str, Any]], target: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "pool": (str(write_rows(tmp_path / "pool.jsonl", rows)),),
        "target": (str(write_rows(tmp_path / "mine.jsonl", target)),),
        "representation": ("bm25",),
        "budget": 2,
        "output": tmp_path / "out",
    }


# --- facts ----------------------------------------------------------------------------------------------------


def test_the_document_counts_the_pool_and_shows_what_is_learned(config: dict[str, Any]) -> None:
    document = planned(config)
    pool = document["pool"]
    assert (pool["rows"], pool["usable"], pool["quarantined"]) == (52, 50, 2)
    assert sum(pool["reasons"].values()) == 2
    assert sum(pool["sources"].values()) == 50
    assert set(pool["sources"]) == {"set0", "set1", "set2"}
    for kind in ("tokens", "supervised_tokens"):
        assert sum(one["rows"] for one in pool[kind]["histogram"]) == 50
        levels = list(pool[kind]["quantiles"].values())
        assert levels == sorted(levels)
    (target,) = document["targets"]
    assert (target["queries"], target["duplicates"]) == (7, 0)
    assert target["groups"] == {"a": 3, "b": 3, "c": 1}
    example = document["example"]
    learned = [one["text"] for one in example["segments"] if one["supervised"]]
    assert example["ends_turn"] is True
    assert example["rows_that_end_the_turn"] == example["rows_looked_at"] == 50
    assert learned[-1].rstrip().endswith("</s>")
    assert not any("What is" in text for text in learned)
    assert document["disk"]["free_bytes"] > 0
    assert document["disk"]["checkpoints_bytes"] > 0
    assert document["memory"]["model_bytes"] > 0


def test_segments_are_the_whole_text_in_order(config: dict[str, Any]) -> None:
    values = RunConfig.from_values(config)
    plan_run(values, SilentReporter(), seconds=0)
    plan = make_plan(values, "select", None)
    assert plan.tokens is not None
    _, (example, *_) = plan.tokens.rows.examples(0)
    found = segments(example.input_ids, example.supervised, plan.tokens.tokenizer)
    assert "".join(one["text"] for one in found) == plan.tokens.tokenizer.decode(example.input_ids.tolist())
    assert [one["supervised"] for one in found] == [False, True]


def test_repeats_cuts_and_overlaps_are_counted(tmp_path: Path) -> None:
    passage = " ".join(f"word{n}" for n in range(20))
    rows = [row(f"What is {n}?", f"It is {n}.") for n in range(5)] + [row("Say it.", passage)]
    query = row("What then?", f"He said: {passage}")
    document = planned(text_options(tmp_path, rows, [query, query, row("What else?", "Nothing.")]))
    (target,) = document["targets"]
    assert (target["queries"], target["duplicates"]) == (3, 1)
    found = document["contamination"]
    assert (found["rows_looked_at"], found["rows_that_share_a_passage"]) == (6, 1)
    assert found["items"] == 3
    assert "query" in found["examples"][0]["item"]
    assert document["example"] is None, "without a model there are no tokens"
    assert document["pool"]["tokens"] is None


def test_rows_cut_at_the_maximal_length_are_counted(config: dict[str, Any]) -> None:
    pool = planned(config, seconds=0, max_length=40)["pool"]
    assert 0 < pool["cut"] < pool["usable"]
    assert pool["tokens"]["quantiles"]["1"] == 40
    assert pool["tokens_cut"] > 0


# --- what is there ---------------------------------------------------------------------------------------------


def test_a_plan_reads_the_pool_and_the_run_continues_from_it(config: dict[str, Any]) -> None:
    document = planned(config)
    found = states(document)
    assert {found.pop("read the pool"), found.pop("tokenise")} == {"done"}
    assert set(found.values()) == {"to do"}
    output = config["output"]
    assert {path.name for path in output.iterdir()} == {"artifacts", ".lock"}
    kinds = {path.name.split("-")[0] for path in (output / "artifacts").iterdir()}
    assert kinds == {"records", "tokens", RATES}
    reporter = RecordingReporter()
    run(config, reporter)
    assert "read the pool" not in reporter.steps_done
    assert "tokenise" not in reporter.steps_done
    assert any(text.startswith("Time, as 'gistselect plan' measured it: ") for text in reporter.said)
    again = planned(config)
    found = states(again)
    assert found.pop("report.html") == "to do", "it is made by every run"
    assert set(found.values()) == {"done"}
    seconds = {name: one["seconds"] for name, one in again["forecast"]["stages"].items()}
    assert sum(seconds.values()) - seconds[START] < 1


def test_of_an_interrupted_pass_the_missing_shards_are_left(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gistselect.run.ingest.SHARD_ROWS", 10)
    output = run(config, until="features")
    name = "pool gradients at epoch 1 (GIST)"
    whole = next(one for one in planned(config, seconds=0)["forecast"]["work"] if one["name"] == name)
    assert (whole["state"], whole["left"], whole["parts"]) == ("done", 0, 6)
    for folder in output.glob("artifacts/features-*"):
        (folder / "complete.json").unlink()
        for index in (1, 4):
            (folder / f"shard-{index:05d}.parquet").unlink()
    part = next(one for one in planned(config, seconds=0)["forecast"]["work"] if one["name"] == name)
    assert part["state"] == "4 of 6 shards"
    plan = make_plan(RunConfig.from_values(config), "select", None)
    assert plan.tokens is not None
    assert part["left"] == sum(plan.tokens.rows.amounts[index] for index in (1, 4))
    assert part["total"] == sum(plan.tokens.rows.amounts)


def test_lengths_are_read_for_what_is_left_alone_and_once(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run begins with its forecast: of a pool of many shards that must not cost a reading of them all."""
    monkeypatch.setattr(ingest, "SHARD_ROWS", 10)
    read: list[str] = []
    table = ingest.read_table

    def counted(path: Path, *columns: Any) -> Any:
        read.extend([path.name] * path.parent.name.startswith("tokens-"))
        return table(path, *columns)

    heldout = write_rows(tmp_path / "heldout.jsonl", [row("What is 52?", "It is 52.")])
    finetune = {"adapter": {"rank": 2}, "global_batch_size": 4}
    values = RunConfig.from_values({**config, "heldout": (str(heldout),), "finetune": finetune})
    everything = [f"shard-{index:05d}.parquet" for index in range(6)]

    def foretold(last: Stage) -> list[str]:
        read.clear()
        _foretell(make_plan(values, last, None), values, SilentReporter())
        return sorted(read)

    run(config, until="ingest")
    monkeypatch.setattr(ingest, "read_table", counted)
    assert foretold("evaluate") == everything, "operations of the warm-up are counted"
    run(config, until="warmup")
    assert foretold("evaluate") == [], "nobody knows how long a fine-tuning takes"
    works = workload(make_plan(values, "evaluate", None), values)
    save_rates(config["output"] / "artifacts", {one.rate: RATE for one in works})
    assert foretold("evaluate") == everything
    assert foretold("select") == []


def test_the_proof_is_in_the_forecast(config: dict[str, Any], tmp_path: Path) -> None:
    heldout = write_rows(tmp_path / "heldout.jsonl", [row("What is 52?", "It is 52."), row("What is 57?", "57.")])
    finetune = {"adapter": {"rank": 2}, "global_batch_size": 4}
    options = {**config, "heldout": (str(heldout),), "finetune": finetune, "evaluate": True, "train_seeds": (0, 1)}
    work = planned(options)["forecast"]["work"]
    trainings = [one for one in work if one["stage"] == "train"]
    losses = [one for one in work if one["stage"] == "evaluate"]
    assert len(trainings) == 4
    assert len(losses) == 5
    assert all(one["seconds"] > 0 and one["cpu_seconds"] > 0 for one in (*trainings, *losses))


# --- time ------------------------------------------------------------------------------------------------------


def work(**changes: Any) -> Work:
    values = {"stage": "features", "name": "pass", "rate": "pass", "unit": "tokens", "amount": 1000}
    return Work(**{**values, **changes})


RATE = Rate(per_unit=Spent(wall=0.01, cpu=0.02), fixed=Spent(wall=3.0, cpu=1.0), measured_on="10 rows")


def test_a_forecast_is_what_is_left_at_its_rate() -> None:
    def seconds(*works: Work, workers: float = 1.0) -> float:
        return forecast_of(works, {"pass": RATE}, workers)["total"]["seconds"]

    assert seconds(work()) == pytest.approx(3 + 10)
    assert seconds(work(missing=500)) == pytest.approx(3 + 5)
    assert seconds(work(missing=0)) == 0
    assert seconds(work(), work(name="other")) == pytest.approx(26)
    assert seconds(work(parallel=True), workers=4) == pytest.approx(3 + 2.5)
    assert seconds(work(), workers=4) == pytest.approx(13), "not everything is shared"
    assert forecast_of([work()], {"pass": RATE})["total"]["cpu_seconds"] == pytest.approx(1 + 20)


def test_what_nobody_measured_is_named_and_not_summed() -> None:
    found = forecast_of([work(), work(name="answers", rate="protocol")], {"pass": RATE})
    assert found["unknown"] == ["answers"]
    assert found["work"][1]["seconds"] is None
    assert found["total"]["seconds"] == pytest.approx(13)


class TokenClock:
    """A clock that only the model moves: a second for each token that it is given."""

    def __init__(self) -> None:
        self.tokens = 0.0

    def __call__(self) -> Spent:
        return Spent(wall=self.tokens, cpu=2 * self.tokens)


def test_a_calibrated_forecast_is_the_real_amount_on_a_clock_that_counts_tokens(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gistselect.model import forward

    clock = TokenClock()
    built = forward.build_batch

    def counting(examples: Any, rows: Any, lengths: Any, *more: Any) -> Any:
        clock.tokens += float(lengths[rows].sum())
        return built(examples, rows, lengths, *more)

    values = RunConfig.from_values(config)
    run(config, until="warmup")
    monkeypatch.setattr(forward, "build_batch", counting)
    plan = make_plan(values, "features", None)
    works = [one for one in workload(plan, values) if one.left]
    rates = Calibration(plan, SilentReporter(), seconds=1e9, clock=clock).measure(works)
    forecast = forecast_of(works, rates)
    loading = rates[works[-1].rate].fixed.wall
    clock.tokens = 0.0
    run(config, until="features")
    assert forecast["total"]["seconds"] == pytest.approx(clock.tokens, rel=0.1)
    assert forecast["total"]["cpu_seconds"] == pytest.approx(2 * clock.tokens, rel=0.1)
    assert loading < 0.1 * clock.tokens


def test_a_prefilter_has_passes_of_its_own_and_spares_the_rest(config: dict[str, Any]) -> None:
    def amounts(document: dict[str, Any]) -> dict[str, float]:
        return {one["name"]: one["total"] for one in document["forecast"]["work"]}

    more = {"budget": 4, "prefilter": "bm25:20%", "prefilter_sample": 5}
    whole, narrowed = planned(config, seconds=0, budget=4), planned(config, seconds=0, **more)
    (dear,) = (name for name in amounts(whole) if name.startswith("pool gradients"))
    plan = make_plan(RunConfig.from_values({**config, **more}), "select", None)
    share = plan.share_read("gradient")
    assert 0.2 < share < 0.5
    assert amounts(narrowed)[dear] == pytest.approx(share * amounts(whole)[dear])
    assert [name for name in amounts(narrowed) if name.startswith("pool text (BM25)")]
    assert amounts(narrowed)["score of the prefilter (BM25)"] == whole["pool"]["usable"]
    assert amounts(narrowed)["score (GIST)"] == pytest.approx(share * whole["pool"]["usable"])
    # BM25 keeps as many numbers of a row here as GIST does: one for each query, of every row.
    expected = (1 + share) * whole["disk"]["features_bytes"]
    assert narrowed["disk"]["features_bytes"] == pytest.approx(expected, abs=1)


def test_every_method_is_planned_for_several_targets(config: dict[str, Any], tmp_path: Path) -> None:
    other = write_rows(tmp_path / "others.jsonl", [row("What is 3 and 4?", "7."), row("And 8 and 9?", "17.")])
    methods = ("gist", "bm25", "dsir", "rds", "loss_drop")
    document = planned(
        config, target=(*config["target"], str(other)), representation=methods, prefilter="bm25:50%", prefilter_sample=5
    )
    assert [one["name"] for one in document["forecast"]["work"] if one["seconds"] is None] == []
    fits = [name for name in states(document) if name.startswith("queries of others (")]
    assert len([name for name in fits if "for the stability" not in name]) == len(methods)


def test_what_bases_and_curvature_take_is_what_a_run_writes(config: dict[str, Any]) -> None:
    """LESS has no basis: its projection is drawn from a seed, however wide it is."""
    methods = ("gist:rank=2", "less:dimension=64", "ekfac:rows=8")
    told = planned(config, seconds=0, representation=methods)["disk"]
    folder = run({**config, "representation": methods})
    bases = sum(path.stat().st_size for path in folder.glob("artifacts/*/fit/basis/*"))
    curvature = sum(path.stat().st_size for path in folder.glob("artifacts/prepared-*/**/part-*.safetensors"))
    assert bases <= told["bases_bytes_at_most"] * 1.2, "headers of the files are not counted"
    assert told["bases_bytes_at_most"] <= bases
    assert told["curvature_bytes"] == pytest.approx(curvature, rel=0.2)
    assert planned(config, seconds=0, representation=methods)["disk"]["bases_bytes_at_most"] == 0, "all is written"


def test_what_stability_needs_of_the_queries_is_named(config: dict[str, Any]) -> None:
    names = [one["name"] for one in planned(config, seconds=0, representation=("bm25",))["forecast"]["work"]]
    assert len(set(names)) == len(names)
    assert any(name.endswith("(BM25, for the stability)") for name in names)


def test_a_chat_template_of_the_model_is_planned_and_run(config: dict[str, Any], tmp_path: Path) -> None:
    """Its marks are a table, which a plan must not take for a key."""
    model = Path(shutil.copytree(config["model"], tmp_path / "chat"))
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    (model / "chat_template.jinja").write_text(template)
    options = {**config, "model": str(model), "template": "model"}
    assert planned(options)["pool"]["usable"] == 50
    assert (run(options) / "selected.jsonl").is_file()


def test_a_sample_by_length_has_the_mean_of_all() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1, size=5000).astype(int)
    places = stratified(lengths, 64)
    assert len(places) == 64
    assert (np.diff(places) > 0).all()
    assert lengths[places].mean() == pytest.approx(lengths.mean(), rel=0.05)
    assert stratified(lengths[:5], 64).tolist() == [0, 1, 2, 3, 4]


def test_padded_tokens_are_those_of_every_forward_pass() -> None:
    lengths = np.random.default_rng(1).integers(5, 60, size=43)
    training = TrainingConfig(global_batch_size=12, device_batch_size=5, epochs=3)
    expected = 0
    for epoch in range(2):
        order = epoch_order(lengths.tolist(), global_batch_size=12, seed=7, epoch=epoch)
        for start in range(0, 43, 4):  # the largest divisor of 12 up to 5
            part = [int(lengths[index]) for index in order[start : start + 4]]
            expected += max(part) * len(part)
    assert padded_tokens(lengths, training, seed=7, epochs=2) == expected


def test_rates_are_kept_for_this_machine_alone(tmp_path: Path) -> None:
    save_rates(tmp_path, {"pass": RATE})
    save_rates(tmp_path, {"fit": replace(RATE, measured_on="3 queries")})
    assert load_rates(tmp_path) == {"pass": RATE, "fit": replace(RATE, measured_on="3 queries")}
    stored = json.loads((tmp_path / RATES).read_text())
    (tmp_path / RATES).write_text(json.dumps({**stored, "machine": "another"}))
    assert load_rates(tmp_path) == {}
    (tmp_path / RATES).write_text('{"machine": ')
    assert load_rates(tmp_path) == {}


@pytest.mark.parametrize(
    ("change", "dearer"),
    [
        ({"fsdp": True}, True),
        ({"gradient_checkpointing": True}, True),
        ({"epochs": 9}, False),
        ({"fsdp": False}, False),
    ],
)
def test_a_rate_is_of_trainings_that_take_as_long(change: dict[str, Any], dearer: bool) -> None:
    """Weights in pieces are gathered for every layer: what was measured with whole ones does not tell of it."""
    model, plain = ModelConfig(path="somewhere"), TrainingConfig()
    assert (training_rate(model, plain.model_copy(update=change)) != training_rate(model, plain)) is dearer


def test_workers_on_cores_gain_where_this_process_may_use_few(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    local = RunConfig.from_values({**config, "engine_kind": "local", "devices": "cpu:2"})
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(4)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert speed_up(local) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "1,2")
    assert speed_up(local) == 2, "a number for each level of threads"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert speed_up(local) == 1
    assert speed_up(RunConfig.from_values(config)) == 1


# --- the command -----------------------------------------------------------------------------------------------


def test_the_command_says_it_as_text_and_as_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = row("\x1b[2J[red]What?", "\u202eIt [/red] is.", id="\x1b]0;x\x07")
    options = text_options(
        tmp_path, [hostile, *(row(f"Is {n}?", f"It is {n}.") for n in range(6))], [row("Is 9?", "9.")]
    )
    arguments = ["--pool", options["pool"][0], "--target", options["target"][0], "--representation", "bm25"]
    arguments += ["--budget", "2", "--output", str(tmp_path / "out")]
    main(["plan", *arguments, "--json", "--quiet"])
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert said.err == ""
    assert set(document) == {
        *("format", "output", "until", "pool", "targets", "contamination", "example", "disk", "memory", "methods"),
        "forecast",
    }
    assert set(document["forecast"]) == {"work", "stages", "unknown", "total"}
    main(["plan", *arguments])
    said = capsys.readouterr()
    for heading in ("POOL", "TARGETS", "WORK", "TIME", "ROOM"):
        assert f"{heading}\n" in said.out
    assert "7 rows, 7 usable, 0 to be quarantined" in said.out
    assert "\x1b" not in said.out + said.err
    assert "\u202e" not in said.out + said.err
    main(["run", *arguments])
    main(["plan", "--output", str(tmp_path / "out"), "--json"])
    assert json.loads(capsys.readouterr().out)["forecast"]["work"][0]["state"] == "done", "options come from run.yaml"


def test_the_example_is_rendered_with_its_learned_part_marked(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from gistselect.run.plan_lines import plan_lines

    lines = [str(line) for line in plan_lines(planned(config, seconds=0))]
    (example,) = [line for line in lines if "⟦" in line and "<|user|>" in line]
    question, answer = example.split("⟦")
    assert question.endswith("<|assistant|>\n")
    assert answer.rstrip().endswith("⟧")
    assert any("50 of 50 uncut rows end their last answer" in line for line in lines)


def test_every_representation_has_a_forecast(config: dict[str, Any], tiny_encoder: Path) -> None:
    cheaper = {"less": "less:dimension=64", "less_adam": "less_adam:dimension=64", "ekfac": "ekfac:rows=16"}
    representations = tuple(cheaper.get(name, name) for name in names("representation"))
    options = {"representation": representations, "encoder": str(tiny_encoder), "warmup_checkpoints": (1, 2)}
    forecast = planned(config, **options)["forecast"]
    assert forecast["unknown"] == []
    assert all(one["seconds"] is not None for one in forecast["work"])
    passes = {one["name"].split(" (")[0] for one in forecast["work"] if one["name"].startswith("pool ")}
    assert passes == {"pool text", "pool gradients at epoch 1", "pool gradients at epoch 2", "pool forward pass"}
