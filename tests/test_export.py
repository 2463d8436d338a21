"""Exports: data and configuration as the tools read them, exactly the rows that were scored, with hostile text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import GPTNeoXConfig
from transformers.utils.chat_template_utils import render_jinja_template

from gistselect.data.templates import Tulu
from gistselect.errors import ConfigError, DataError
from gistselect.export.job import TULU, ExportJob, chat_turn, export
from gistselect.model.adapters import AdapterConfig
from gistselect.model.config import ModelConfig
from gistselect.registry import names
from gistselect.training.recipe import TrainingConfig
from gistselect.types import Message, Record

HOSTILE = "yes: {x}\n- \"\u2028\u0085\x00 '!!python/object:os.system'\n---\n# {{ 7 * 7 }} </s> 🙂"
CONFIG = TrainingConfig(device_batch_size=6)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def conversation(*turns: tuple[str, str] | Message, id: str = "row", **more: Any) -> Record:
    messages = tuple(one if isinstance(one, Message) else Message(role=one[0], content=one[1]) for one in turns)
    return Record(id=id, source="s", row=0, messages=messages, **more)


RECORDS = [
    conversation(("user", HOSTILE), ("assistant", HOSTILE), ("user", "more"), ("assistant", "end"), ("user", "tail")),
    conversation(("system", "be kind"), ("user", "q"), ("assistant", "a")),
]
PLAIN = conversation(("user", "2 + 2 ="), ("assistant", "4"), plain=True, id="plain")
WITH_CALL = conversation(
    ("user", "2 + 2?"),
    Message(role="assistant", content="", tool_calls=(CALL,)),
    Message(role="tool", content="4", name="add"),
    ("assistant", "4"),
    tools=(TOOL,),
    id="call",
)
HALF_LEARNED = conversation(
    ("user", "a"), Message(role="assistant", content="wrong", supervised=False), ("user", "b"), ("assistant", "right")
)


def run(
    tool: str, output: Path, tiny_model: Path, records: list[Record] = RECORDS, **options: Any
) -> tuple[list[Any], Any]:
    model = ModelConfig(path=str(options.pop("model", tiny_model)))
    settings = {"model": model, "config": CONFIG, "max_length": 512, "seed": 3} | options
    paths = export(tool, ExportJob(records=records, output=output, **settings))
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in paths)
    lines = (output / "selected.jsonl").read_bytes().splitlines()
    configuration = next(path for path in paths if path.suffix in (".yaml", ".yml"))
    return [json.loads(line) for line in lines], yaml.safe_load(configuration.read_text(encoding="utf-8"))


def test_trl_has_a_row_for_each_answer(tiny_model: Path, tmp_path: Path) -> None:
    rows, settings = run("trl", tmp_path / "out", tiny_model)
    assert [row["completion"][0]["content"] for row in rows] == [HOSTILE, "end", "a"]
    assert [len(row["prompt"]) for row in rows] == [1, 3, 2]
    assert settings["datasets"] == [{"path": "json", "data_files": "selected.jsonl"}]
    assert settings["model_name_or_path"] == str(tiny_model)
    assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] == 32
    assert settings["per_device_train_batch_size"] == 4  # the largest part of 32 that is at most 6
    assert (settings["lora_r"], settings["num_train_epochs"], settings["learning_rate"]) == (128, 4, 2e-5)
    assert settings["lora_target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert (tmp_path / "out" / settings["chat_template_path"]).read_text() == TULU


def test_a_name_with_special_characters_stays_one_value(tmp_path: Path) -> None:
    full = TrainingConfig(full=True)
    _, settings = run("trl", tmp_path / "out", tmp_path, model="a: folder # with\nspecials", config=full)
    assert settings["model_name_or_path"] == "a: folder # with\nspecials"


def test_trl_keeps_plain_text_plain_and_refuses_a_mixture(tiny_model: Path, tmp_path: Path) -> None:
    rows, settings = run("trl", tmp_path / "plain", tiny_model, [PLAIN])
    assert rows == [{"prompt": "2 + 2 =", "completion": " 4"}]
    assert "chat_template_path" not in settings
    with pytest.raises(DataError, match="'row' and 'plain'"):
        run("trl", tmp_path / "mixed", tiny_model, [*RECORDS, PLAIN])
    assert not (tmp_path / "mixed").exists()


def test_trl_rows_load_as_one_data_set(tiny_model: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    run("trl", tmp_path / "out", tiny_model)
    file = str(tmp_path / "out" / "selected.jsonl")
    loaded = load_dataset("json", data_files=file, cache_dir=str(tmp_path / "cache"))
    assert loaded["train"][0]["completion"] == [{"role": "assistant", "content": HOSTILE}]


def test_only_what_was_supervised_is_learned(tiny_model: Path, tmp_path: Path) -> None:
    rows, _ = run("trl", tmp_path / "trl", tiny_model, [HALF_LEARNED])
    assert [row["completion"][0]["content"] for row in rows] == ["right"]
    assert [turn["content"] for turn in rows[0]["prompt"]] == ["a", "wrong", "b"]
    rows, settings = run("axolotl", tmp_path / "axolotl", tiny_model, [HALF_LEARNED])
    (data_set,) = settings["datasets"]
    assert [turn[data_set["message_field_training"]] for turn in rows[0]["messages"]] == [False, False, False, True]
    _, settings = run("llamafactory", tmp_path / "llamafactory", tiny_model, [HALF_LEARNED])
    assert settings["mask_history"] is True
    with pytest.raises(DataError, match="only the last"):
        run("llamafactory", tmp_path / "both", tiny_model, [HALF_LEARNED, *RECORDS])


def test_calls_and_tools_go_with_the_row(tiny_model: Path, tmp_path: Path) -> None:
    rows, _ = run("trl", tmp_path / "trl", tiny_model, [WITH_CALL], template="model")
    assert rows[0]["completion"] == [{"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert rows[1]["prompt"][2] == {"role": "tool", "content": "4", "name": "add"}
    assert rows[1]["tools"] == [TOOL]
    rows, settings = run("axolotl", tmp_path / "axolotl", tiny_model, [WITH_CALL], template="model")
    assert rows[0]["messages"][1]["tool_calls"] == [CALL]
    assert rows[0][settings["datasets"][0]["field_tools"]] == [TOOL]
    rows, _ = run("llamafactory", tmp_path / "llamafactory", tiny_model, [WITH_CALL], template="model")
    assert [turn["role"] for turn in rows[0]["messages"]] == ["user", "function_call", "observation", "assistant"]
    assert json.loads(rows[0]["messages"][1]["content"]) == CALL["function"]
    assert json.loads(rows[0]["tools"]) == [TOOL]


def test_the_template_that_rows_were_scored_in_is_handed_on(tiny_model: Path, tmp_path: Path) -> None:
    jinja = tmp_path / "mine.jinja"
    jinja.write_text("{{ messages }}")
    for tool in names("export"):
        run(tool, tmp_path / tool, tiny_model, template=str(jinja))
        assert (tmp_path / tool / "chat_template.jinja").read_text() == "{{ messages }}"
        run(tool, tmp_path / tool, tiny_model, template="model")
        assert not (tmp_path / tool / "chat_template.jinja").exists()
    jinja.unlink()
    with pytest.raises(ConfigError, match="put it back"):
        run("trl", tmp_path / "gone", tiny_model, template=str(jinja))


def test_a_row_that_the_template_cannot_give_again_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    opened = conversation(("user", "q"), ("assistant", " a "), closed=False, id="opened")
    with pytest.raises(DataError, match="'opened'"):
        run("trl", tmp_path / "out", tiny_model, [opened])
    assert not (tmp_path / "out").exists()


def test_axolotl(tiny_model: Path, tmp_path: Path) -> None:
    rows, settings = run("axolotl", tmp_path / "out", tiny_model)
    assert rows[0]["messages"][1] == {"role": "assistant", "content": HOSTILE, "train": True}
    assert len(rows[0]["messages"]) == 4
    (data_set,) = settings["datasets"]
    assert (data_set["type"], data_set["path"], data_set["chat_template"]) == (
        "chat_template",
        "selected.jsonl",
        "jinja",
    )
    assert settings["micro_batch_size"] * settings["gradient_accumulation_steps"] == 32
    _, own_template = run("axolotl", tmp_path / "model", tiny_model, template="model")
    assert "chat_template" not in own_template
    assert "chat_template" not in own_template["datasets"][0]


def test_axolotl_takes_plain_text_as_it_was_scored(tiny_model: Path, tmp_path: Path) -> None:
    _, settings = run("axolotl", tmp_path / "out", tiny_model, [*RECORDS, PLAIN])
    chats, texts = settings["datasets"]
    assert (chats["path"], texts["type"]) == ("selected.jsonl", "input_output")
    (row,) = map(json.loads, (tmp_path / "out" / texts["path"]).read_bytes().splitlines())
    assert row["segments"] == [{"label": False, "text": "2 + 2 ="}, {"label": True, "text": " 4</s>"}]


def test_llamafactory(tiny_model: Path, tmp_path: Path) -> None:
    rows, settings = run("llamafactory", tmp_path / "out", tiny_model)
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text(encoding="utf-8"))[settings["dataset"]]
    assert info["file_name"] == "selected.jsonl"
    assert [turn["role"] for turn in rows[1][info["columns"]["messages"]]] == ["system", "user", "assistant"]
    assert settings["lora_target"] == "q_proj,k_proj,v_proj,o_proj"
    broken = conversation(("user", "a"), ("user", "b"), ("assistant", "c"), id="twice")
    with pytest.raises(DataError, match="'twice'"):
        run("llamafactory", tmp_path / "broken", tiny_model, [broken])
    with pytest.raises(DataError, match="'plain' is plain text"):
        run("llamafactory", tmp_path / "broken", tiny_model, [PLAIN])


def test_target_modules_are_the_models_own_without_its_weights(tmp_path: Path) -> None:
    model = tmp_path / "neox"
    GPTNeoXConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    ).save_pretrained(model)
    (model / "model.safetensors").write_bytes(b"")
    (model / "tokenizer.json").write_bytes(b"")
    expected = ["attention.query_key_value", "attention.dense"]
    _, settings = run("trl", tmp_path / "trl", model)
    assert settings["lora_target_modules"] == expected
    _, settings = run("llamafactory", tmp_path / "llamafactory", model)
    assert settings["lora_target"] == ",".join(expected)


@pytest.mark.parametrize(
    ("targets", "trl", "axolotl"),
    [
        (("all-linear",), ["all-linear"], None),
        ((r".*mlp.*",), ["(?:.*mlp.*)"], "(?:.*mlp.*)"),
        (("q_proj",), [r".*\.q_proj"], ["q_proj"]),
    ],
)
def test_target_modules_of_the_recipe(
    tiny_model: Path, tmp_path: Path, targets: tuple[str, ...], trl: list[str], axolotl: Any
) -> None:
    config = TrainingConfig(adapter=AdapterConfig(target_modules=targets))
    _, settings = run("trl", tmp_path / "trl", tiny_model, config=config)
    assert settings["lora_target_modules"] == trl
    _, settings = run("axolotl", tmp_path / "axolotl", tiny_model, config=config)
    assert settings.get("lora_target_modules") == axolotl
    assert settings.get("lora_target_linear") is (True if axolotl is None else None)


def test_full_fine_tuning_has_no_adapter(tiny_model: Path, tmp_path: Path) -> None:
    full = TrainingConfig(full=True)
    for name in names("export"):
        _, settings = run(name, tmp_path / name, tiny_model, config=full)
        assert not [key for key in settings if key.startswith("lora_") or key in ("use_peft", "adapter")]


def test_rows_without_an_answer_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'mute'"):
        run("axolotl", tmp_path / "out", tiny_model, [conversation(("user", "hello"), id="mute")])


def test_an_export_is_whole_and_removes_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    run("trl", tmp_path / "out", tiny_model)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(DataError):
        run("trl", tmp_path / "out", tiny_model, [*RECORDS, conversation(("user", "hello"), id="mute")])
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    rows, _ = run("trl", tmp_path / "out", tiny_model, RECORDS[1:])
    assert len(rows) == 1
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        run("trl", tmp_path / "out", tiny_model)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_the_written_template_gives_tools_calls_and_reasoning_as_they_were_scored(
    tiny_model: Path, tmp_path: Path
) -> None:
    thought = Message(role="assistant", content=" 4\n", reasoning=" two </think> \n", tool_calls=(CALL, CALL))
    records = [
        WITH_CALL,
        conversation(("system", " Sys. "), *WITH_CALL.messages, tools=(TOOL, TOOL), id="system"),
        conversation(("user", HOSTILE), thought, ("tool", HOSTILE), ("assistant", HOSTILE), id="thought"),
        conversation(("user", "q"), Message(role="assistant", content="a", reasoning=" "), tools=(TOOL,), id="blank"),
    ]
    for record in records:
        turns = [chat_turn(one) for one in record.messages]
        tools = [dict(tool) for tool in record.tools]
        (text,), (spans,) = render_jinja_template(
            [turns], chat_template=TULU, tools=tools, return_assistant_tokens_mask=True, eos_token="</s>"
        )
        ours = Tulu(eos="</s>").render(record)
        assert text == ours.text
        assert tuple((start, end) for start, end in spans) == ours.supervised
    run("trl", tmp_path / "trl", tiny_model, records)
    run("axolotl", tmp_path / "axolotl", tiny_model, records)
    with pytest.raises(DataError, match="'call' has tools or calls"):
        run("llamafactory", tmp_path / "llamafactory", tiny_model, records)


def test_how_the_model_is_held_goes_with_the_job(tiny_model: Path, tmp_path: Path) -> None:
    model = ModelConfig(path=str(tiny_model), quantization="4bit", trust_remote_code=True)
    records = RECORDS[1:]
    expected = {"trl": "load_in_4bit", "axolotl": "load_in_4bit", "llamafactory": "quantization_bit"}
    for tool, option in expected.items():
        job = ExportJob(records=records, output=tmp_path / tool, model=model, config=CONFIG, max_length=9)
        paths = export(tool, job)
        configuration = next(path for path in paths if path.suffix in (".yaml", ".yml"))
        settings = yaml.safe_load(configuration.read_text(encoding="utf-8"))
        assert settings[option] in (True, 4)
        assert settings["trust_remote_code"] is True


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


@pytest.mark.parametrize("tool", names("export"))
def test_an_alpha_that_no_tool_takes_is_refused_instead_of_rounded(tool: str, tiny_model: Path, tmp_path: Path) -> None:
    odd = TrainingConfig(adapter=AdapterConfig(rank=8, alpha=22.6))
    with pytest.raises(ConfigError, match=r"alpha of 22\.6"):
        run(tool, tmp_path / "out", tiny_model, config=odd)
    assert not (tmp_path / "out").exists()
    _, settings = run(tool, tmp_path / "out", tiny_model, config=TrainingConfig(adapter=AdapterConfig(alpha=16)))
    assert settings["lora_alpha"] == 16
