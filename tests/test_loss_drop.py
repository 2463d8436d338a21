"""The target-aligned loss drop against two plain evaluations with an ordinary PEFT model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.testing import assert_allclose
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gistselect.data.pool import open_pool
from gistselect.data.templates import load_template
from gistselect.data.tokens import encode
from gistselect.model.adapters import AdapterConfig
from gistselect.model.config import ModelConfig
from gistselect.model.forward import Forward
from gistselect.model.hidden import AdaptedLoss, ExampleLoss, collect_hidden
from gistselect.model.updates import LoraUpdate
from gistselect.training.recipe import TrainingConfig
from gistselect.training.train import train
from gistselect.types import Example, Record
from reference_errors import assert_like_reference
from tiny_models import FAMILIES, adapted_model, bare_model, examples
from tiny_runs import RecordingReporter, run, write_rows

FAST = "loss_drop:learning_rate=0.01,epochs=3"


def encoded(model: str, path: Path) -> list[Example]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    records = [record for record in open_pool([path]).rows() if isinstance(record, Record)]
    outcomes = encode(records, load_template("tulu", tokenizer), tokenizer, 2048)
    return [one for one in outcomes if isinstance(one, Example)]


def plain_losses(model: Any, rows: list[Example]) -> np.ndarray:
    """The model's own loss of single rows."""
    found = []
    for row in rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(row.supervised)[None], ids, -100)
        with torch.no_grad():
            found.append(float(model(input_ids=ids, labels=labels).loss))
    return np.array(found)


@pytest.mark.parametrize("per", ["target", "group"])
def test_it_equals_two_plain_evaluations(
    config: dict[str, Any], pool_file: Path, target_file: Path, tmp_path: Path, per: str
) -> None:
    output = run(config, representation=(f"{FAST},per={per}", "rds"))
    pool, queries = (encoded(config["model"], path) for path in (pool_file, target_file))
    groups = [json.loads(line)["group"] for line in target_file.read_bytes().split(b"\n") if line]
    scores = pq.read_table(output / "scores.parquet").to_pydict()
    before = plain_losses(AutoModelForCausalLM.from_pretrained(config["model"]).eval(), pool)
    assert_allclose(scores["loss"], before, rtol=1e-5)
    for group in "abc" if per == "group" else [""]:
        rows = [query for query, of in zip(queries, groups, strict=True) if of == group or not group]
        recipe = TrainingConfig(
            epochs=3,
            learning_rate=0.01,
            warmup_ratio=0,
            global_batch_size=min(8, len(rows)),
            adapter=AdapterConfig(rank=8, alpha=16, dropout=0),
        )
        result = train(
            ModelConfig(path=config["model"], device="cpu"), rows, recipe, output=tmp_path / f"by-hand-{group}", seed=0
        )
        trained = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(config["model"]), str(result.adapter)
        ).eval()
        expected = (before - plain_losses(trained, pool)) / before
        found = scores[f"score/sums/{group}" if group else "score/sums"]
        assert_like_reference("Loss drop", "two evaluations of single rows with PEFT", found, expected, atol=2e-6)
        assert np.abs(expected).max() > 0.01
    (fit,) = [path for path in output.glob("artifacts/fit-*/complete.json") if "trained_query_loss" in path.read_text()]
    facts = json.loads(fit.read_text())["facts"]
    assert facts["trained_query_loss"] < facts["query_loss"]
    assert not list(fit.parent.glob("fit/tmp*"))


def test_the_plain_loss_is_measured_once_for_all_targets(
    config: dict[str, Any], target_file: Path, tmp_path: Path
) -> None:
    other = write_rows(tmp_path / "other.jsonl", [json.loads(target_file.read_text().splitlines()[-1])])
    output = run({**config, "target": (str(target_file), str(other))}, representation=(FAST,))
    assert len(list(output.glob("artifacts/measured-*"))) == 1
    assert len(list(output.glob("artifacts/features-*"))) == 2
    assert not list(output.glob("artifacts/warmup-*"))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-neox"])
def test_an_update_for_a_moment_equals_the_adapter_and_leaves_no_trace(family: str, tmp_path: Path) -> None:
    rows = examples()
    bare = bare_model(FAMILIES[family])
    forward = Forward(bare, batch_tokens=60)
    plain = forward.losses(rows)
    adapted = adapted_model(bare_model(FAMILIES[family]))
    adapted.model.save_pretrained(tmp_path)
    before, after = ExampleLoss(), AdaptedLoss([LoraUpdate.read(tmp_path)])
    collect_hidden(forward, rows, [before, after])
    assert_allclose(after.result()[:, 0], Forward(adapted).losses(rows), rtol=1e-5)
    assert_allclose(before.result()[:, 0], plain, rtol=1e-5)
    assert np.abs(after.result() - before.result()).min() > 1e-4
    assert_allclose(forward.losses(rows), plain, rtol=0)
    assert not any(module._forward_hooks for module in bare.model.modules())


def test_a_row_that_breaks_the_model_has_no_score_and_moves_no_other(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pq.read_table(run(config, representation=(FAST,)) / "scores.parquet").to_pydict()
    result = AdaptedLoss.result

    def broken(self: AdaptedLoss) -> np.ndarray:
        values = result(self).copy()
        if len(values) > 20:
            values[4], values[9] = np.nan, np.inf
        return values

    monkeypatch.setattr(AdaptedLoss, "result", broken)
    output = run(config, representation=(FAST,), output=config["output"].with_name("broken"))
    found = pq.read_table(output / "scores.parquet").to_pydict()
    lost = [json.loads(line) for line in (output / "quarantine.jsonl").read_bytes().split(b"\n") if line]
    assert sum("loss is zero or not finite" in one["reason"] for one in lost) == 2
    kept = dict(zip(found["id"], found["score"], strict=True))
    assert len(kept) == len(whole["id"]) - 2
    assert all(kept[one] == score for one, score in zip(whole["id"], whole["score"], strict=True) if one in kept)


def test_every_batch_and_every_step_of_the_training_within_is_told(config: dict[str, Any]) -> None:
    reporter = RecordingReporter()
    run(config, reporter, representation=(FAST,), engine={"batch_tokens": 64})
    queries, pool = reporter.last["queries"], reporter.last["pool forward pass (Loss drop)"]
    assert queries.total is not None
    assert 0.9 * queries.total < queries.done <= queries.total
    assert len(reporter.steps_done["queries"]) > 2 + 3, "losses before and after, and a step an epoch"
    assert pool.done == pool.total
    assert len(reporter.steps_done["pool forward pass (Loss drop)"]) > 10
