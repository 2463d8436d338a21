"""What the doctor finds: sound things, each broken thing with its remedy, and the exit status."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from packaging.requirements import Requirement
from transformers import AutoTokenizer

from gistselect.cli import main
from gistselect.data.endings import last_learned
from gistselect.model.forward import Forward
from gistselect.model.gradients import GradientEngine
from gistselect.model.selftest import compare_gradients
from gistselect.run.checkup import examine
from gistselect.run.machine import Check, device_checks, machine_checks, package_checks, room_check, versions_tested
from gistselect.run.standalone_config import DoctorConfig
from gistselect.types import Example
from tiny_models import FAMILIES, examples, language_model, looped, relative_error

BLOCKS = (
    "{% for turn in messages %}{% if turn.role == 'assistant' %}A: {% generation %}{{ turn.content }}INSIDE"
    "{% endgeneration %}OUTSIDE{% else %}U: {{ turn.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)
Usage = namedtuple("Usage", "total used free")


def named(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def of_model(path: Path, **options: Any) -> dict[str, Check]:
    checks = examine(DoctorConfig(model=str(path), device="cpu", **options))
    return named([check for check in checks if check.group == "model"])


def test_a_sound_model_is_healthy(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(tiny_model), "--device", "cpu", "--output", str(tmp_path / "not" / "there")]
    main(["doctor", *options, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    names = {check["name"] for check in told["checks"]}
    assert {
        "python",
        "device",
        "number format",
        "tokenizer",
        "weights",
        "template tulu",
        "layout",
        "gradients",
    } <= names
    assert all(check["status"] == "ok" for check in told["checks"] if check["group"] in ("model", "device", "disk"))
    assert not (tmp_path / "not").exists(), "looking makes no folder"
    main(["doctor", *options])
    said = capsys.readouterr().out
    assert "gradients: 3 rows at once differ" in said
    assert "Loading" not in said


def test_without_a_model_the_machine_is_looked_at() -> None:
    assert {check.group for check in machine_checks(DoctorConfig(), Path())} == {"packages", "device", "disk", "hub"}
    assert {check.group for check in examine(DoctorConfig())} == {"packages", "device", "disk", "hub"}


@pytest.mark.parametrize("family", ["llama", "gpt-neox"])
def test_the_plain_gradients_are_those_of_a_loop(family: str) -> None:
    """The doctor's reference against the reference of the tests: both must not share a mistake with the engine."""
    adapted = language_model(FAMILIES[family])
    rows = examples()[:3]
    result = compare_gradients(adapted, rows, DoctorConfig().engine)
    assert result.passed
    assert not result.fell_back
    _, expected = looped(adapted, rows)
    with GradientEngine(adapted) as engine:
        found = engine.gradients(rows)
    assert float(result.errors.max()) == pytest.approx(relative_error(found, expected), rel=1e-2, abs=1e-6)


def test_wrong_gradients_are_bad(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = GradientEngine.gradients

    def of_neighbours(self: GradientEngine, rows: list[Example]) -> np.ndarray:
        return right(self, rows)[::-1]

    monkeypatch.setattr(GradientEngine, "gradients", of_neighbours)
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--model", str(tiny_model), "--device", "cpu"])
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert "BAD  gradients" in said
    assert "--engine.capture autograd" in said


def test_a_leaking_layout_is_noted_and_none_at_all_is_bad(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Forward, "_leaks", lambda self, *_: self.layout == "packed")
    checks = of_model(tiny_model)
    assert checks["layout"].status == "note"
    assert "packed rows do not give" in checks["layout"].found
    assert checks["gradients"].status == "ok"
    monkeypatch.setattr(Forward, "_leaks", lambda self, *_: True)
    checks = of_model(tiny_model)
    assert checks["layout"].status == "bad"
    assert "gradients" not in checks


@pytest.mark.parametrize(("inside", "outside", "status"), [("</s>", "", "ok"), ("", "</s>", "note")])
def test_a_template_that_does_not_teach_the_end_is_noted(
    tiny_model: Path, tmp_path: Path, inside: str, outside: str, status: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = BLOCKS.replace("INSIDE", inside).replace("OUTSIDE", outside)
    tokenizer.save_pretrained(folder)
    check = of_model(folder)["template model"]
    assert check.status == status
    assert "generation blocks" in check.found
    assert ("generation stops at '</s>'" in check.remedy) == (status == "note")
    assert of_model(folder)["template tulu"].status == "ok"


def test_a_template_that_refuses_is_bad_only_if_it_is_used(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    tokenizer.save_pretrained(folder)
    assert of_model(folder)["template model"].status == "note"
    used = of_model(folder, template="model")
    assert used["template model"].status == "bad"
    assert "gradients" not in used


def test_a_model_that_is_not_there_is_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--model", str(tmp_path / "no model"), "--device", "cpu"])
    assert stop.value.code == 1
    assert "there is no model folder" in capsys.readouterr().out


def test_last_learned_looks_past_white_space(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = np.array([*tokenizer("answer").input_ids, tokenizer.eos_token_id, *tokenizer("\n").input_ids], dtype=np.int32)
    everything = np.ones(len(ids), dtype=np.bool_)
    stops = {tokenizer.eos_token_id}
    assert last_learned(Example(id="a", input_ids=ids, supervised=everything), tokenizer, stops) == ("</s>", True)
    without = everything.copy()
    without[-2] = False
    text, ends = last_learned(Example(id="a", input_ids=ids, supervised=without), tokenizer, stops)
    assert "answer".endswith(text)
    assert not ends
    assert last_learned(Example(id="a", input_ids=ids, supervised=~everything), tokenizer, stops) == ("", False)


def test_packages_against_what_is_asked_for() -> None:
    asked = [Requirement("numpy>=999"), Requirement("no-such-package>=1"), Requirement("pytest>=1")]
    checks = named(list(package_checks(asked, {})))
    assert checks["numpy"].status == checks["no-such-package"].status == "bad"
    assert checks["no-such-package"].found == "missing"
    assert checks["numpy"].remedy == "pip install 'numpy>=999'."
    assert "pytest" not in checks
    checks = named(list(package_checks([Requirement("pytest>=1")], {"pytest": "0.1"})))
    assert checks["tested versions"].status == "note"
    assert "(0.1)" in checks["tested versions"].found
    known = versions_tested()
    assert known["torch"]
    assert known["pyyaml"]


def test_little_room_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, status in ((50e9, "ok"), (1e9, "note"), (1e6, "bad")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(100e9, 0, free))
        check = room_check(tmp_path / "not" / "there")
        assert check.status == status
        assert bool(check.remedy) == (status != "ok")


def test_a_device_that_is_not_there_is_bad() -> None:
    (check,) = device_checks(DoctorConfig(device="cuda:77"))
    assert check.status == "bad"
    assert "'auto' or 'cpu'" in check.remedy


@pytest.mark.parametrize(
    ("dtype", "capability", "expected"),
    [
        ("auto", (9, 0), {"device": "ok", "number format": "ok", "attention": "ok"}),
        ("bfloat16", (7, 5), {"device": "ok", "number format": "note", "attention": "note"}),
        ("float32", (9, 0), {"device": "ok", "number format": "ok", "attention": "note"}),
    ],
)
def test_what_is_said_of_a_gpu(
    dtype: str, capability: tuple[int, int], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pretended one: what torch says of it is given, and its arithmetic is done here."""
    made = torch.linspace
    given = {
        "is_available": lambda: True,
        "mem_get_info": lambda _: (60e9, 80e9),
        "get_device_name": lambda _: "Some GPU",
        "device_count": lambda: 2,
        "is_bf16_supported": lambda *_: capability >= (8, 0),
        "get_device_capability": lambda _: capability,
    }
    for name, said in given.items():
        monkeypatch.setattr(torch.cuda, name, said)
    monkeypatch.setattr(torch, "linspace", lambda *arguments, device: made(*arguments))
    checks = {one.name: one for one in device_checks(DoctorConfig(dtype=dtype))}
    assert {name: one.status for name, one in checks.items()} == expected
    assert checks["device"].found.startswith("Some GPU, 60.0 of 80.0 GB free, 2 in all, CUDA ")
    assert all(bool(one.remedy) == (one.status != "ok") for one in checks.values())
    if capability < (8, 0):
        assert "--dtype float32" in checks["number format"].remedy
        assert "--engine.packing padded" in checks["attention"].remedy


def test_offline_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for offline, status in ((True, "note"), (False, "ok")):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        (check,) = [check for check in machine_checks(DoctorConfig(), Path()) if check.group == "hub"]
        assert check.status == status
