"""Exports: data and configuration as the tools read them, with hostile text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers.utils.chat_template_utils import render_jinja_template

from gistselect.data.templates import Tulu
from gistselect.errors import DataError
from gistselect.export import TULU, ExportJob, to_axolotl, to_llamafactory, to_trl
from gistselect.registry import names, resolve
from gistselect.training.recipe import TrainingConfig
from gistselect.types import Message, Record

HOSTILE = "yes: {x}\n- \"\u2028\u0085\x00 '!!python/object:os.system'\n---\n# {{ 7 * 7 }} </s> 🙂"
CONFIG = TrainingConfig(device_batch_size=6)


def conversation(*turns: tuple[str, str], id: str = "row", plain: bool = False) -> Record:
    messages = tuple(Message(role=role, content=text) for role, text in turns)
    return Record(id=id, source="s", row=0, messages=messages, plain=plain)


RECORDS = [
    conversation(("user", HOSTILE), ("assistant", HOSTILE), ("user", "more"), ("assistant", "end"), ("user", "tail")),
    conversation(("system", "be kind"), ("user", "q"), ("assistant", "a")),
]


def export(exporter: Any, output: Path, records: list[Record] = RECORDS, **options: Any) -> tuple[list[Any], Any]:
    settings = {"model": "a: folder # with\nspecials", "config": CONFIG, "max_length": 512, "seed": 3} | options
    paths = exporter(ExportJob(records=records, output=output, **settings))
    assert all(path.is_file() for path in paths)
    lines = (output / "selected.jsonl").read_text(encoding="utf-8").splitlines()
    configuration = next(path for path in paths if path.suffix in (".yaml", ".yml"))
    return [json.loads(line) for line in lines], yaml.safe_load(configuration.read_text(encoding="utf-8"))


def test_trl_has_a_row_for_each_answer(tmp_path: Path) -> None:
    rows, settings = export(to_trl, tmp_path)
    assert [row["completion"][0]["content"] for row in rows] == [HOSTILE, "end", "a"]
    assert [len(row["prompt"]) for row in rows] == [1, 3, 2]
    assert settings["datasets"] == [{"path": "json", "data_files": "selected.jsonl"}]
    assert settings["model_name_or_path"] == "a: folder # with\nspecials"
    assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] == 32
    assert settings["per_device_train_batch_size"] == 4  # the largest part of 32 that is at most 6
    assert (settings["lora_r"], settings["num_train_epochs"], settings["learning_rate"]) == (128, 4, 2e-5)
    assert (tmp_path / settings["chat_template_path"]).is_file()


def test_trl_keeps_plain_text_plain(tmp_path: Path) -> None:
    plain = [conversation(("user", "2 + 2 ="), ("assistant", "4"), plain=True)]
    rows, settings = export(to_trl, tmp_path / "plain", plain)
    assert rows == [{"prompt": "2 + 2 =", "completion": " 4"}]
    assert "chat_template_path" not in settings
    mixed, _ = export(to_trl, tmp_path / "mixed", [*plain, *RECORDS])
    assert all(isinstance(row["prompt"], list) for row in mixed)


def test_trl_rows_load_as_one_data_set(tmp_path: Path) -> None:
    from datasets import load_dataset

    export(to_trl, tmp_path)
    loaded = load_dataset("json", data_files=str(tmp_path / "selected.jsonl"), cache_dir=str(tmp_path / "cache"))
    assert loaded["train"][0]["completion"] == [{"role": "assistant", "content": HOSTILE}]


def test_axolotl(tmp_path: Path) -> None:
    rows, settings = export(to_axolotl, tmp_path)
    assert rows[0]["messages"][1] == {"role": "assistant", "content": HOSTILE}
    assert len(rows[0]["messages"]) == 4
    (data_set,) = settings["datasets"]
    assert (data_set["type"], data_set["path"], data_set["chat_template"]) == (
        "chat_template",
        "selected.jsonl",
        "jinja",
    )
    assert settings["micro_batch_size"] * settings["gradient_accumulation_steps"] == 32
    _, own_template = export(to_axolotl, tmp_path / "model", template="model")
    assert "chat_template" not in own_template
    assert "chat_template" not in own_template["datasets"][0]


def test_llamafactory(tmp_path: Path) -> None:
    rows, settings = export(to_llamafactory, tmp_path)
    info = json.loads((tmp_path / "dataset_info.json").read_text(encoding="utf-8"))[settings["dataset"]]
    assert info["file_name"] == "selected.jsonl"
    assert [turn["role"] for turn in rows[1][info["columns"]["messages"]]] == ["system", "user", "assistant"]
    assert settings["lora_target"] == "q_proj,k_proj,v_proj,o_proj"
    broken = conversation(("user", "a"), ("user", "b"), ("assistant", "c"), id="twice")
    with pytest.raises(DataError, match="'twice'"):
        export(to_llamafactory, tmp_path / "broken", [broken])


def test_full_fine_tuning_has_no_adapter(tmp_path: Path) -> None:
    full = TrainingConfig(full=True)
    for name in ("trl", "axolotl", "llamafactory"):
        _, settings = export(resolve("export", name), tmp_path / name, config=full)
        assert not [key for key in settings if key.startswith("lora_") or key in ("use_peft", "adapter")]


def test_rows_without_an_answer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'mute'"):
        export(to_axolotl, tmp_path, [conversation(("user", "hello"), id="mute")])


def test_the_written_template_is_the_published_one() -> None:
    for record in RECORDS:
        messages = [{"role": one.role, "content": one.content} for one in record.messages]
        texts, spans = render_jinja_template(
            [messages], chat_template=TULU, return_assistant_tokens_mask=True, eos_token="</s>"
        )
        ours = Tulu(eos="</s>").render(record)
        assert texts[0] == ours.text
        assert tuple((start, end) for start, end in spans[0]) == ours.supervised


def test_every_export_is_registered() -> None:
    assert set(names("export")) >= {"trl", "axolotl", "llamafactory"}
