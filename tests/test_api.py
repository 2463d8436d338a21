"""The Python API gives what the command line gives, from files, rows in memory, and a live model."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from numpy.testing import assert_allclose
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import gistselect
from gistselect.cli import main
from gistselect.errors import ConfigError

WARMUP = {"epochs": 1, "learning_rate": 1e-2, "global_batch_size": 4, "adapter": {"rank": 2, "alpha": 4}}


@pytest.fixture(autouse=True)
def temporary_runs_go_with_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


POOL = [row(f"What is {n} and {n + 2}?", f"The answer is {2 * n + 2}" + "!" * (n % 4)) for n in range(24)]
TARGET = [row("What is 4 and 4?", "The answer is 8."), row("What is 1 and 7?", "The answer is 8.")]


def select(tiny_model: Path, **changes: Any) -> gistselect.Selection:
    arguments = {
        "model": tiny_model,
        "pool": POOL,
        "targets": {"sums": TARGET},
        "budget": 5,
        "warmup": WARMUP,
        "warmup_share": 0.5,
        "progress": False,
        "device": "cpu",
    }
    return gistselect.select(**{**arguments, **changes})


def test_rows_data_set_and_file_select_the_same(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in POOL))
    selections = [select(tiny_model, pool=pool) for pool in (POOL, Dataset.from_list(POOL), path, [path])]
    assert len({selection.ids for selection in selections}) == 1
    first = selections[0]
    assert len(first) == 5
    assert all(one in POOL for one in first)
    assert list(first.scores) == sorted(first.scores, reverse=True)
    assert set(first.best_targets) == {"sums"}
    assert first.dataset.to_list() == list(first.rows)
    again = gistselect.load_selection(first.output)
    assert (again.ids, again.rows) == (first.ids, first.rows)


def test_targets_are_rows_too_and_the_budget_has_the_default_of_the_command() -> None:
    options: dict[str, Any] = {"pool": POOL, "representation": "bm25", "progress": False}
    named = gistselect.select(targets={"target": TARGET}, budget="5%", **options)
    for targets in (TARGET, Dataset.from_list(TARGET)):
        plain = gistselect.select(targets=targets, **options)
        assert (plain.ids, plain.best_targets) == (named.ids, named.best_targets)
        assert len(plain) == 2


def test_a_data_frame_is_rows_and_a_mapping_of_splits_is_refused_by_its_names() -> None:
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(9)]
    options: dict[str, Any] = {"targets": rows[:2], "representation": "bm25", "budget": 3, "progress": False}
    plain = gistselect.select(pool=rows, **options)
    assert gistselect.select(pool=pd.DataFrame(rows), **options).rows == plain.rows
    with pytest.raises(ConfigError, match="train, test"):
        gistselect.select(pool=DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows)), **options)


def test_rows_that_json_cannot_hold_are_kept_or_quarantined_with_the_reason(tiny_model: Path, tmp_path: Path) -> None:
    odd = [MappingProxyType({**POOL[0], "id": "odd", "picture": b"\xff", "half": "\ud83d"}), 3]
    chosen = select(tiny_model, pool=[*POOL[1:], *odd], budget=len(POOL), output=tmp_path)
    assert "odd" in chosen.ids
    (rejected,) = map(json.loads, (tmp_path / "quarantine.jsonl").read_text().splitlines())
    assert "not an object" in rejected["reason"]


def test_a_live_model_scores_as_its_saved_adapter(tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    live = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    live.save_pretrained(tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    live.train()
    live.base_model.model.lm_head.eval()
    before = {name: value.clone() for name, value in live.state_dict().items()}

    def state() -> list[Any]:
        modes = [(name, module.training) for name, module in live.named_modules()]
        flags = [(name, value.requires_grad) for name, value in live.named_parameters()]
        return [modes, flags, live.active_adapters, live.config._attn_implementation]

    came = state()
    from_live = select(tiny_model, model=live, tokenizer=tokenizer)
    from_disk = select(tiny_model, adapter=tmp_path / "adapter")
    assert from_live.ids == from_disk.ids
    assert_allclose(from_live.scores, from_disk.scores, atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in live.state_dict().items())
    assert state() == came


@pytest.mark.parametrize("budget", [5, 10_000])
def test_a_live_model_comes_back_as_it_was(tiny_model: Path, budget: int) -> None:
    """Also when the selection fails: trainable parameters, training mode, attention."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    live = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).train()
    trainable = {name: value.requires_grad for name, value in live.named_parameters()}
    modes = {name: module.training for name, module in live.named_modules()}
    attention = base.config._attn_implementation
    with contextlib.suppress(gistselect.GistSelectError):
        select(tiny_model, model=live, tokenizer=AutoTokenizer.from_pretrained(tiny_model), budget=budget)
    assert {name: value.requires_grad for name, value in live.named_parameters()} == trainable
    assert {name: module.training for name, module in live.named_modules()} == modes
    assert base.config._attn_implementation == attention


def test_a_forward_pass_reads_a_live_model_without_its_adapter(tiny_model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    live = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    from_live = select(tiny_model, model=live, tokenizer=tokenizer, representation="rds")
    from_disk = select(tiny_model, representation="rds")
    assert from_live.ids == from_disk.ids
    assert_allclose(from_live.scores, from_disk.scores, atol=1e-6)


def test_another_scaling_of_a_live_adapter_is_another_model(tiny_model: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    live = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    select(tiny_model, model=live, tokenizer=tokenizer, output=tmp_path / "run")
    for module in live.modules():
        if hasattr(module, "lora_A"):
            module.scaling["default"] *= 3
    select(tiny_model, model=live, tokenizer=tokenizer, output=tmp_path / "run")
    assert len(list((tmp_path / "run" / "artifacts").glob("fit-*"))) == 2


def test_a_temporary_run_folder_goes_with_its_selection(tiny_model: Path, tmp_path: Path) -> None:
    selection = select(tiny_model)
    folder = Path(selection.output)
    assert folder.is_dir()
    del selection
    gc.collect()
    assert not folder.exists()
    with pytest.raises(gistselect.GistSelectError):
        select(tiny_model, budget=10_000)
    assert list(tmp_path.glob("gistselect-*")) == []


def held(rows: tuple[dict[str, Any], ...], **changes: Any) -> gistselect.Selection:
    n = len(rows)
    values = {
        "ids": tuple(map(str, range(n))),
        "scores": np.linspace(0.5, 0.25, n),
        "best_targets": ("t",) * n,
        "sources": ("s",) * n,
        "rows": rows,
        "output": "runs/a",
    }
    return gistselect.Selection(**{**values, **changes})


def test_a_selection_of_mixed_schemas_is_one_data_set() -> None:
    rows = ({"id": 1, "meta": {"x": 1}}, {"id": "b", "meta": "none", "extra": 2.5}, {"id": None, "meta": [1, 2]})
    selection = held(rows, ids=("1", "b", "3"))
    assert selection.dataset.to_list() == [
        {"id": "1", "meta": '{"x": 1}', "extra": None},
        {"id": '"b"', "meta": '"none"', "extra": 2.5},
        {"id": None, "meta": "[1, 2]", "extra": None},
    ]


def test_a_selection_shows_itself_and_nothing_of_the_data_is_markup() -> None:
    names = ("<script>alert(1)</script>", "[bold]\u202ex", "plain")
    selection = held(
        ({"text": "a"}, {"text": "b"}, {"text": "c"}, {"text": "d"}),
        sources=(*names, "plain"),
        best_targets=(*names, "t"),
    )
    page = selection._repr_html_()
    assert page.startswith("<table><tr><th>rows</th><td>4</td></tr>")
    assert "plain 2" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "\u202e" not in page
    assert "0.5 to 0.25" in page
    assert repr(selection) == ("Selection(rows: 4, scores: 0.5 to 0.25, sources: 3, best targets: 4, output: runs/a)")
    assert "rows" in held(())._repr_html_()


def test_a_selection_as_a_data_frame() -> None:
    frame = held(({"id": 7, "text": "a"}, {"text": "b", "extra": [1]})).to_pandas()
    assert list(frame.columns) == ["rank", "id", "source", "score", "best_target", "row.id", "text", "extra"]
    assert frame["rank"].tolist() == [1, 2]
    assert frame["score"].tolist() == [0.5, 0.25]
    assert frame["text"].tolist() == ["a", "b"]
    assert frame["row.id"].tolist()[0] == 7


def test_why_is_what_explain_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**one, "id": f"r{n}"} for n, one in enumerate(POOL)]
    options = {"pool": rows, "targets": {"sums": TARGET}, "representation": "bm25", "progress": False}
    selection = gistselect.select(**options, budget=5, output=tmp_path / "run")
    rejected = next(one["id"] for one in rows if one["id"] not in selection.ids)
    for id, status in ((selection.ids[0], "selected"), (rejected, "borderline")):
        why = selection.why(id)
        main(["explain", str(tmp_path / "run"), "--id", id])
        assert capsys.readouterr().out.rstrip("\n") == repr(why)
        assert why.reasons.status == status
    assert selection.why(selection.ids[0]).reasons.rank == 1
    with pytest.raises(gistselect.GistSelectError, match="no row"):
        selection.why("nobody")
    gistselect.select(**options, budget=3, output=tmp_path / "run")
    assert selection.why(rejected).reasons.status == "borderline", "what was read once is not read again"
    with pytest.raises(gistselect.GistSelectError, match="another selection"):
        dataclasses.replace(selection).why(rejected)


def test_a_live_model_needs_tokenizer_and_adapter(tiny_model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    with pytest.raises(gistselect.GistSelectError, match="tokenizer"):
        select(tiny_model, model=base)
    with pytest.raises(gistselect.GistSelectError, match="PeftModel"):
        select(tiny_model, model=base, tokenizer=AutoTokenizer.from_pretrained(tiny_model))


def test_a_target_name_never_becomes_a_path(tiny_model: Path) -> None:
    with pytest.raises(gistselect.GistSelectError, match="names a file"):
        select(tiny_model, targets={"../escape": TARGET})


@pytest.mark.parametrize("code", ["import gistselect", "from gistselect.cli import main; main(['run', '--help'])"])
def test_starting_is_light(code: str) -> None:
    heavy = "{'torch', 'transformers', 'peft', 'datasets', 'lm_eval'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import sys\n{code}\nassert not {heavy}, {heavy}"], check=True)
