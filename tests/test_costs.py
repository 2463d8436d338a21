"""What a comparison costs and whom it names: seconds and bytes of each method, rivals as baselines, another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gistselect.errors import ConfigError
from gistselect.run import passes as passes_module
from gistselect.run.config import RunConfig
from gistselect.run.plan import make_plan
from gistselect.run.store import Artifact
from tiny_runs import RecordingReporter, row, run, write_rows

TRAINING = {"epochs": 1, "learning_rate": 1e-2, "global_batch_size": 4, "adapter": {"rank": 2, "alpha": 4}}


@pytest.fixture
def judged(config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run that compares, with one training of each arm."""
    rows = [row(f"What is {i} and 9?", f"The answer is {i + 9}.", group="a") for i in range(6)]
    heldout = write_rows(tmp_path / "heldout.jsonl", rows)
    return {**config, "evaluate": True, "heldout": (str(heldout),), "train_seeds": (0,), "finetune": TRAINING}


def compared(output: Path) -> dict[str, Any]:
    (found,) = json.loads((output / "comparison.json").read_text())
    return found


def test_rivals_are_methods_and_every_selection_says_what_it_took(judged: dict[str, Any]) -> None:
    reporter = RecordingReporter()
    output = run(judged, reporter, baselines=("random", "bm25:k1=2", "bm25"))
    found = compared(output)
    rows = {one["arm"]: one for one in found["rows"]}
    assert list(rows) == ["before", "GIST", "bm25-k1-2", "BM25", "random rows"]
    assert (output / "methods" / "bm25" / "selected.jsonl").is_file()
    for name, one in rows.items():
        assert list(one["against"]) == [
            other for other in ("before", "random rows", "bm25-k1-2", "BM25") if other != name
        ]
        assert (one["cost"] is None) == (name in ("before", "random rows"))
    gist, bm25 = rows["GIST"]["cost"], rows["BM25"]["cost"]
    assert list(gist["seconds"]) == ["read", "tokenise", "warm-up", "queries", "pool", "score", "select"]
    assert list(bm25["seconds"]) == ["read", "queries", "pool", "score", "select"]
    assert min(gist["seconds"].values()) > 0
    assert gist["seconds"]["read"] == bm25["seconds"]["read"]
    assert gist["selection_seconds"] == pytest.approx(sum(gist["seconds"].values()), abs=0.01)
    assert gist["full_training_is"] == "forecast"
    assert gist["selection_to_tuning"] == pytest.approx(
        gist["selection_seconds"] / gist["full_training_seconds"], rel=0.05
    )
    # Three groups, four bytes each, and what a Parquet file of 50 rows adds; GIST keeps its rank.
    assert 12 < bm25["bytes_per_row"] < gist["bytes_per_row"] + 12
    assert any("STR" in line for line in reporter.said)
    assert any(verdict.startswith("GIST is not judged against BM25") for verdict in found["verdicts"])


def test_a_training_on_the_full_pool_is_measured_and_not_forecast(judged: dict[str, Any]) -> None:
    cost = compared(run(judged, representation=("bm25",), baselines=("full",)))["rows"][1]["cost"]
    assert cost["full_training_is"] == "measured"
    assert cost["full_training_seconds"] > 0


def test_costs_survive_a_run_that_finds_everything_done(judged: dict[str, Any]) -> None:
    first = compared(run(judged))
    (Path(judged["output"]) / "comparison.json").unlink()
    assert compared(run(judged)) == first


def test_an_unknown_baseline_is_refused_with_the_known_ones(judged: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no representation 'bm52'"):
        RunConfig.from_values({**judged, "baselines": ("bm52",)})


def test_a_rival_that_is_a_method_already_is_one_arm(judged: dict[str, Any]) -> None:
    config = RunConfig.from_values({**judged, "representation": ("gist", "bm25"), "baselines": ("bm25",)})
    plan = make_plan(config, "evaluate", None)
    assert plan.compare is not None
    assert [arm.name for arm in plan.compare.arms] == ["GIST", "BM25"]
    assert plan.compare.references == ("before", "BM25")
    assert len(make_plan(config, "select", None).methods) == 2
    assert len(make_plan(RunConfig.from_values({**judged, "baselines": ("bm25",)}), "select", None).methods) == 1


def test_each_collector_is_charged_its_own_time_and_all_what_they_share() -> None:
    class Slow:
        def take(self, n: int) -> int:
            return sum(range(n))

        def result(self) -> int:
            return self.take(300_000)

    class Quick(Slow):
        def result(self) -> int:
            return 0

    slow, quick = Slow(), Quick()
    with passes_module._own_seconds([slow, quick]) as own:
        slow.take(300_000)
        slow.result()
        quick.result()
    assert own[0] > 10 * own[1] > 0
    assert vars(slow) == {}, "the collector is as it came"


def test_notes_of_time_add_up_and_a_cut_off_one_spoils_no_other(tmp_path: Path) -> None:
    artifact = Artifact(folder=tmp_path, key="", inputs="{}")
    assert artifact.spent == {}
    artifact.spend(shared=1.0, own=0.5)
    with (tmp_path / "seconds.jsonl").open("ab") as file:
        file.write(b'\n{"shared": 7')
    artifact.spend(shared=2.0)
    with pytest.raises(KeyboardInterrupt), artifact.timed():
        raise KeyboardInterrupt
    assert {name: value for name, value in artifact.spent.items() if name != "seconds"} == {"shared": 3.0, "own": 0.5}
    assert artifact.spent["seconds"] >= 0


def larger_model(folder: Path) -> Path:
    """A wider model whose tokenizer cuts text otherwise."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = {letter: index for index, letter in enumerate(["<s>", "</s>", *pre_tokenizers.ByteLevel.alphabet()])}
    plain = Tokenizer(models.BPE(vocab=letters, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(1)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(letters),
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=1024,
        )
    ).save_pretrained(folder)
    return folder


def test_another_model_is_trained_on_what_this_one_selected(judged: dict[str, Any], tmp_path: Path) -> None:
    larger = larger_model(tmp_path / "larger")
    reporter = RecordingReporter()
    output = run(judged, reporter, finetune_model=str(larger), max_length=256)
    found = compared(output)
    assert (found["scored_by"], found["trained"]) == (Path(judged["model"]).name, "larger")
    assert len(list(output.glob("artifacts/tokens-*"))) == 2
    assert any(f"larger trained on what {found['scored_by']} selected" in line for line in reporter.said)
    # The adapters fit the other model, and nothing was scored with it.
    config = json.loads(next(output.glob("artifacts/train-*/training/checkpoint-*/adapter_config.json")).read_text())
    assert Path(config["base_model_name_or_path"]).name == "larger"
    same = {**judged, "output": tmp_path / "own", "max_length": 256, "until": "select", "evaluate": False}
    assert (run(same) / "scores.parquet").read_bytes() == (output / "scores.parquet").read_bytes()
    again = RecordingReporter()
    run(judged, again, finetune_model=str(larger), max_length=256)
    assert again.last == {}


def test_text_methods_need_no_model_but_the_one_that_is_trained(judged: dict[str, Any], tmp_path: Path) -> None:
    larger = larger_model(tmp_path / "larger")
    output = run(judged, model=None, representation=("bm25",), finetune_model=str(larger), max_length=256)
    found = compared(output)
    assert (found["scored_by"], found["trained"]) == (None, "larger")
    assert np.isfinite([one["interval"]["mean"] for one in found["rows"]]).all()
    assert len(list(output.glob("artifacts/tokens-*"))) == 1
    with pytest.raises(ConfigError, match="finetune_settings"):
        RunConfig.from_values({**judged, "finetune_settings": {"dtype": "float32"}})
