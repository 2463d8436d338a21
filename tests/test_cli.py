"""Commands as a person types them: options, files, errors and exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from gistselect.cli import app, main


def row(question: str, answer: str, **more: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns, **more}) + "\n"


@pytest.fixture
def arguments(tiny_model: Path, tmp_path: Path) -> list[str]:
    """`run` with its required options and a warm-up that takes a moment."""
    (tmp_path / "pool.jsonl").write_text(
        "".join(row(f"What is {n}?", f"It is {n}.", id=f"r{n}") for n in range(24)) + row("[/x] {{ 7*7 }}", "[bold]no")
    )
    (tmp_path / "mine.jsonl").write_text(row("What is 40?", "It is 40.") + row("What is 41?", "It is 41."))
    (tmp_path / "heldout.jsonl").write_text(row("What is 52?", "It is 52.") + row("What is 57?", "It is 57."))
    return [
        *("run", "--model", str(tiny_model), "--pool", str(tmp_path / "pool.jsonl")),
        *("--target", str(tmp_path / "mine.jsonl"), "--output", str(tmp_path / "out"), "--budget", "4"),
        *("--warmup-share", "0.5", "--warmup.global-batch-size", "4", "--warmup.learning-rate", "1e-2"),
        *("--warmup.adapter.rank", "2", "--finetune.adapter.rank", "2", "--device", "cpu"),
    ]


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that fails says; it must exit with 2 and without a traceback."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return " ".join(said.split())


def test_stages_one_by_one_give_what_run_gives(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments)
    whole = (tmp_path / "out" / "selected.jsonl").read_bytes()
    stages = [*arguments[1:]]
    stages[stages.index("--output") + 1] = str(tmp_path / "steps")
    main(["warmup", *stages])
    assert not (tmp_path / "steps" / "scores.parquet").exists()
    for stage in ("features", "score", "select"):
        main([stage, "--output", str(tmp_path / "steps")])
    assert (tmp_path / "steps" / "selected.jsonl").read_bytes() == whole
    main(["select", "--output", str(tmp_path / "steps"), "--budget", "40%"])
    assert pq.read_table(tmp_path / "steps" / "selection.parquet").num_rows == 10
    main(["spectrum", str(tmp_path / "steps")])
    said = capsys.readouterr().out
    assert "95%" in said
    assert "mine, epoch 1:" in said
    assert (tmp_path / "steps" / "spectrum.svg").read_text().startswith("<svg")


def test_a_configuration_file_is_the_same_as_flags(arguments: list[str], tmp_path: Path) -> None:
    main(arguments)
    stored = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())
    stored["output"] = str(tmp_path / "again")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(stored))
    main(["run", "--config", str(tmp_path / "run.yaml")])
    for name in ("selected.jsonl", "scores.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    main(["run", "--config", str(tmp_path / "run.yaml"), "--budget", "3"])
    assert len((tmp_path / "again" / "selected.jsonl").read_bytes().splitlines()) == 3


def test_the_loop_closes_with_a_verdict(arguments: list[str], tmp_path: Path) -> None:
    main([*arguments, "--evaluate", "--heldout", str(tmp_path / "heldout.jsonl"), "--train-seeds", "0", "1"])
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert "GIST" in json.dumps(result)
    assert "random" in json.dumps(result)


def test_own_target_without_heldout_items_cannot_be_evaluated(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--heldout FILE" in failure([*arguments, "--evaluate"], capsys)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--ranc", "3"], "--rank"),
        (["--rank", "lots"], "rank"),
        (["--until", "lunch"], "until"),
        (["--target", "gsm9k"], "Did you mean 'gsm8k'"),
        (["--target", "gsm8k"], "--data-dir"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--template", "tulip"], "tulu"),
        (["--budget", "0"], "budget"),
        (["--adapter", "nowhere"], "nowhere"),
        (["--dedup", "fuzzy"], "--dedup: Input should be 'exact' or 'near'."),
        (["--dedup-threshold", "0.2"], "--dedup-threshold: Input should be greater than or equal to 0.5."),
        (["--source-max", "a=b"], "--source-max 'a=b': amount 'b' is not understood"),
        (["--warmup.epochs", "0"], "--warmup.epochs: Input"),
        (["--representation", "bm25", "--prefilter", "gist:20%"], "spares nothing: none of bm25 reads more"),
    ],
)
def test_mistakes_are_one_message(
    arguments: list[str], extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = failure([*arguments, *extra], capsys)
    assert message in said
    for of_the_library in ("validation error", "pydantic", "input_value", "Value error"):
        assert of_the_library not in said


def test_unknown_key_in_a_configuration_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("ranc: 3\n")
    assert "ranc" in failure(["run", "--config", str(tmp_path / "run.yaml")], capsys)


@pytest.mark.parametrize("command", ["run", "train", "evaluate", "export", "spectrum", "demo"])
def test_help_has_no_traceback(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([command, "--help"])
    assert "Usage: gistselect" in capsys.readouterr().out


def test_options_stand_in_groups_and_examples_can_be_pasted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["run", "--help"])
    said = capsys.readouterr().out
    headings = [line.split("─ ")[1].split(" ─")[0] for line in said.split("\n") if line.startswith("╭")]
    assert headings[-7:] == ["Model", "Pool and target", "Method", "Warm-up", "Engine", "Evaluation", "Run"]
    method = said.split("─ Method ")[1].split("╰")[0]
    assert all(option in method for option in ("--rank", "--sketch", "--representation", "--budget"))
    examples = said.split("Typical use:")[1].split("╭")[0].replace("\\", "")
    assert examples.split()[:6] == ["gistselect", "run", "--model", "./model", "--pool", "pool.jsonl"]
    assert all(len(line.rstrip()) < 80 for line in examples.split("\n"))


@pytest.mark.parametrize("back", [["--sketch", "none"], ["--no-energy-weighting"]])
def test_an_option_can_be_taken_back(arguments: list[str], tmp_path: Path, back: list[str]) -> None:
    main([*arguments, "--until", "ingest", "--sketch", "8", "--energy-weighting"])
    main(["run", "--output", str(tmp_path / "out"), "--until", "ingest", *back])
    stored = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())
    assert stored.get("sketch") is None if "--sketch" in back else stored["energy_weighting"] is False
    assert "until" not in stored


def test_what_the_pool_refuses_is_not_remembered(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = failure([*arguments, "--source-max", "nowhere=3"], capsys)
    assert "nowhere" in said
    assert "run.yaml" not in said
    assert not {"run.yaml", "queries.jsonl"} & {path.name for path in (tmp_path / "out").iterdir()}
    main([*arguments, "--until", "ingest"])
    assert yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())["source_max"] == []


def test_an_error_says_where_options_come_from_that_were_not_given(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*arguments, "--until", "ingest"])
    stored = tmp_path / "out" / "run.yaml"
    stored.write_text(stored.read_text().replace("selector: top_k", "selector: nearest"))
    said = failure(["select", "--output", str(tmp_path / "out")], capsys)
    assert "no selector 'nearest'" in said
    assert said.endswith(f"Options that were not given are those of {stored}.")
    assert "those of" not in failure(["select", "--config", str(stored)], capsys)
    elsewhere = tmp_path / "mistyped"
    said = failure(["select", "--output", str(elsewhere)], capsys)
    assert said.endswith(f"There is no {elsewhere / 'run.yaml'} from which it could be taken.")


def test_an_export_trains_the_model_that_is_to_be_trained(
    arguments: list[str], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the one that scored, where the run names another; and a run that read text alone is told of one."""
    at = arguments.index("--model")
    text = ["--representation", "bm25"]
    larger = shutil.copytree(tiny_model, tmp_path / "larger")

    def exported(name: str, *more: str) -> str:
        main(["export", str(tmp_path / "out"), "--to", "trl", "--output", str(tmp_path / name), *more])
        return yaml.safe_load((tmp_path / name / "sft_config.yaml").read_text())["model_name_or_path"]

    main([*arguments[:at], *arguments[at + 2 :], *text])
    said = failure(["export", str(tmp_path / "out"), "--to", "trl", "--output", str(tmp_path / "none")], capsys)
    assert "give --model" in said
    assert exported("a", "--model", str(tiny_model)) == str(tiny_model)
    main([*arguments, *text])
    assert exported("b") == str(tiny_model)
    main([*arguments, *text, "--finetune-model", str(larger)])
    assert exported("c") == str(larger)
    assert exported("d", "--model", str(tiny_model)) == str(tiny_model)


def test_train_on_any_rows(tiny_model: Path, arguments: list[str], tmp_path: Path) -> None:
    output = tmp_path / "adapter"
    main(
        [
            *("train", "--model", str(tiny_model), "--data", str(tmp_path / "pool.jsonl"), "--output", str(output)),
            *("--epochs", "1", "--adapter.rank", "2", "--device", "cpu", "--merge"),
        ]
    )
    assert (output / "seed-0" / "curve.svg").is_file()
    assert (output / "seed-0" / "merged" / "model.safetensors").is_file()
    assert (output / "quarantine.jsonl").read_bytes() == b""
    events = [json.loads(line) for line in (output / "events.jsonl").read_bytes().splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["run begins", "run ends"]
    steps = [one for one in events if one["event"] == "step ends"]
    assert [(one["step"], one["done"]) for one in steps] == [("train, seed 0", one["total"]) for one in steps]


def test_train_needs_a_run_or_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert "either --run" in failure(["train"], capsys)


def test_every_option_says_what_it_is_for() -> None:
    for name in ("run", "train", "evaluate", "bench"):
        said = [
            (argument.name, (argument.parameter.help or "").strip())
            for argument in app[name].assemble_argument_collection()
            if argument.name != "*"
        ]
        assert [option for option, text in said if not text] == []
        # An option of a configuration within another must not be described by what holds it.
        of = dict(said)
        assert [option for option, text in said if "." in option and text == of.get(option.rpartition(".")[0])] == []


@pytest.mark.parametrize("engine", [["--engine", "local"], ["--engine=local"], ["--engine-kind", "local"]])
def test_an_engine_and_its_options_stand_side_by_side(engine: list[str], arguments: list[str], tmp_path: Path) -> None:
    main([*arguments, *engine, "--devices", "auto", "--engine.batch-tokens", "4096", "--until", "ingest"])
    written = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())
    assert (written["engine_kind"], written["devices"], written["engine"]["batch_tokens"]) == ("local", "auto", 4096)
