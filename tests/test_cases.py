"""Situations from public data sets: read whole, supervised right, nothing dropped without a word."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gistselect.data.config import ReadOptions
from gistselect.data.pool import Reader, open_pool
from gistselect.data.stored import normalised
from gistselect.data.templates import load_template
from gistselect.errors import DataError
from gistselect.types import Record, Rejected
from rows import chat, contents, fetched, in_memory, line, reason
from texts import pieces, tiny_tokenizer

CALL = {"name": "area", "arguments": {"sides": [2, 4]}}
TOOL = {"name": "area", "description": "Area", "parameters": {"type": "object", "properties": {}}}
QUESTION = {"role": "user", "content": "Q?"}
ANSWER = {"role": "assistant", "content": "A."}


def one(row: object, **options: Any) -> Record:
    (record,) = in_memory([row], **options).rows()
    assert isinstance(record, Record), record
    return record


def refused(row: object, **options: Any) -> str:
    (record,) = in_memory([row], **options).rows()
    return reason(record)


def supervised(record: Record) -> list[str]:
    """What the tulu template supervises of it."""
    return pieces(load_template("tulu", tiny_tokenizer()).render(record))[1]


# Calls and tools.


@pytest.mark.parametrize("as_text", [True, False])
def test_sharegpt_calls_are_supervised_and_observations_are_not(as_text: bool) -> None:
    turns = [("human", "Area?"), ("function_call", json.dumps(CALL)), ("observation", "8"), ("gpt", "It is 8.")]
    tools = json.dumps([TOOL]) if as_text else [TOOL]
    record = one({"conversations": [{"from": role, "value": said} for role, said in turns], "tools": tools})
    assert record.tools == ({"type": "function", "function": TOOL},)
    assert [message.role for message in record.messages] == ["user", "assistant", "tool", "assistant"]
    text, answers = pieces(load_template("tulu", tiny_tokenizer()).render(record))
    assert answers == [f"<tool_call>\n{json.dumps(CALL)}\n</tool_call></s>\n", "It is 8.</s>\n"]
    assert text.startswith(f"<|system|>\n<tools>\n{json.dumps(record.tools[0])}\n</tools>\n<|user|>\nArea?\n")
    assert "<|tool|>\n8\n" in text


@pytest.mark.parametrize("arguments", [CALL["arguments"], json.dumps(CALL["arguments"])])
@pytest.mark.parametrize("content", [None, "", "Let me see."])
def test_openai_calls_are_kept_and_supervised(arguments: object, content: str | None) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "area", "arguments": arguments}}
    record = one({"messages": [QUESTION, {"role": "assistant", "content": content, "tool_calls": [call]}]})
    assert record.messages[1].tool_calls == ({"type": "function", "id": "c", "function": CALL},)
    assert supervised(record) == [
        f"{content + chr(10) if content else ''}<tool_call>\n{json.dumps(CALL)}\n</tool_call></s>\n"
    ]
    assert normalised(record)["messages"][1]["tool_calls"] == [dict(record.messages[1].tool_calls[0])]


def test_empty_tools_are_none() -> None:
    assert one(chat(tools="[]")).tools == one(chat(tools=None)).tools == one(chat(tools=[])).tools == ()


# Reasoning, flags, parts, roles.


@pytest.mark.parametrize("key", ["reasoning_content", "thinking"])
def test_reasoning_is_kept_and_supervised(key: str) -> None:
    record = one({"messages": [QUESTION, {**ANSWER, key: "Hm."}]})
    assert record.messages[1].reasoning == "Hm."
    assert supervised(record) == ["<think>\nHm.\n</think>\n\nA.</s>\n"]


@pytest.mark.parametrize("flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}])
def test_turns_marked_as_context_are_not_learned(flag: dict[str, object]) -> None:
    wrong = {"role": "assistant", "content": "Wrong.", **flag}
    assert supervised(one({"messages": [QUESTION, wrong, QUESTION, {**ANSWER, "weight": 1}]})) == ["A.</s>\n"]
    assert "nothing to learn" in refused({"messages": [QUESTION, wrong]})


def test_a_weight_between_is_refused() -> None:
    assert "weight=0.5; allowed" in refused({"messages": [QUESTION, {**ANSWER, "weight": 0.5}]})


def test_only_the_last_answer_on_request() -> None:
    row = {"messages": [QUESTION, ANSWER, QUESTION, {**ANSWER, "content": "B."}]}
    assert supervised(one(row)) == ["A.</s>\n", "B.</s>\n"]
    assert supervised(one(row, supervise="last")) == ["B.</s>\n"]


def test_text_parts_are_joined_and_media_refused() -> None:
    parts = [{"type": "text", "text": "two "}, {"type": "text", "text": "fish"}]
    assert contents(one({"messages": [{"role": "user", "content": parts}, ANSWER]}))[0] == ("user", "two fish")
    image = [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "?"}]
    assert "multimodal: it has an image part" in refused({"messages": [{"role": "user", "content": image}, ANSWER]})
    assert "multimodal: it has 'image'" in refused(chat(image="a.jpg"))
    assert contents(one(chat(images=[])))


@pytest.mark.parametrize(
    ("given", "role"),
    [("developer", "system"), ("HUMAN", "user"), ("chatgpt", "assistant"), ("Model", "assistant"), ("ipython", "tool")],
)
def test_role_names_in_any_case(given: str, role: str) -> None:
    for keys in (("role", "content"), ("from", "value")):
        for column in ("messages", "conversations", "conversation"):
            turns = [{"role": "user", "content": "Q?"}, dict(zip(keys, (given, "x"), strict=True)), ANSWER]
            assert contents(one({column: turns}))[1] == (role, "x")
            assert contents(one({column: json.dumps(turns)}))[1] == (role, "x")


def test_roles_of_ones_own() -> None:
    row = {"messages": [{"role": "customer", "content": "Q?"}, {"role": "agent", "content": "A."}]}
    assert "--roles" in refused(row)
    assert contents(one(row, roles="customer=user,agent=assistant")) == [("user", "Q?"), ("assistant", "A.")]


# Columns.

COLUMNS = [
    ({"instruction": "Q?", "context": "C.", "response": "A."}, "Q?\nC."),
    ({"instruction": "Q?", "context": "", "response": "A."}, "Q?"),
    ({"question": "Q?", "answer": "A."}, "Q?"),
    ({"query": "Q?", "response": "A."}, "Q?"),
    ({"prompt": "Q?", "response": "A."}, "Q?"),
    ({"inputs": "Q?", "targets": "A."}, "Q?"),
    ({"problem": "Q?", "solution": "A."}, "Q?"),
    ({"input": "Q?", "output": "A."}, "Q?"),
    ({"input": float("nan"), "instruction": "Q?", "output": "A."}, "Q?"),
]


@pytest.mark.parametrize(("row", "prompt"), COLUMNS)
def test_usual_pairs_of_columns(row: dict[str, object], prompt: str) -> None:
    assert contents(one(row)) == [("user", prompt), ("assistant", "A.")]


def test_columns_of_other_names() -> None:
    row = {"Frage": "Q?", "Antwort": "A.", "Rolle": "S."}
    assert "--columns" in refused(row)
    read = one(row, columns=["instruction=Frage", "output=Antwort", "system=Rolle"])
    assert contents(read) == [("system", "S."), ("user", "Q?"), ("assistant", "A.")]
    plain = one(row, columns={"prompt": "Frage", "completion": "Antwort"})
    assert plain.plain
    assert "instruction=Q" not in refused({**row}, columns="prompt=Nope")
    with pytest.raises(ValueError, match="place=column"):
        ReadOptions(columns=("promt=Frage",))


@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_column_is_the_first_turn(column: str) -> None:
    turns = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]
    for row in ({"conversations": turns}, {"question": "Q?", "answer": "A."}, {"prompt": "Q?", "completion": "A."}):
        record = one({**row, column: "S."})
        assert contents(record) == [("system", "S."), ("user", "Q?"), ("assistant", "A.")]
        assert not record.plain
    assert "differ" in refused({"messages": [{"role": "system", "content": "T."}, QUESTION, ANSWER], column: "S."})


def test_history_is_learned() -> None:
    record = one({"instruction": "Q?", "output": "A.", "history": [["P?", "B."]]})
    assert supervised(record) == ["B.</s>\n", "A.</s>\n"]


def test_what_bears_on_the_answer_is_never_dropped_in_silence() -> None:
    assert "'documents'" in refused(chat(documents=["d"]))
    assert "'context'" in refused(chat(context="c"))
    pool = in_memory([chat(rationale="r", id=1, category="x"), chat(rationale="s")])
    reader = Reader(pool)
    assert all(isinstance(row, Record) for row in reader.part(0))
    (found,) = reader.found
    assert dict(found.unread) == {"rationale": 2}
    assert any("'rationale' is not read; 2 rows" in sentence for sentence in found.lines)
    pool = in_memory([{"messages": [QUESTION, {**ANSWER, "mood": "glad"}]}])
    reader = Reader(pool)
    list(reader.part(0))
    assert dict(reader.found[0].unread) == {"messages[].mood": 1}


def test_what_was_detected_is_said_once_a_part() -> None:
    pool = in_memory([chat(id=1), chat(id=1), {"question": "Q?", "answer": "A."}, {"x": 1}])
    reader = Reader(pool)
    list(reader.part(0))
    (found,) = reader.found
    assert (found.n_rows, found.n_rejected, found.n_repeated_ids) == (4, 1, 1)
    assert found.lines[0] == (
        "memory: 4 rows, 2 as messages (messages) and 1 as pair (question, answer); the first: "
        "user: 'Well?' → assistant: 'Yes.'"
    )


# Prompt and completion, preferences, trees.


def test_of_prompt_and_completion_only_the_completion_is_learned() -> None:
    prompt = [QUESTION, {"role": "assistant", "content": "Which?"}, {"role": "user", "content": "That."}]
    assert supervised(one({"prompt": prompt, "completion": [ANSWER]})) == ["A.</s>\n"]
    assert supervised(one({"prompt": prompt, "completion": "A."})) == ["A.</s>\n"]
    assert supervised(one({"prompt": "Q?", "completion": [ANSWER]})) == ["A.</s>\n"]


def test_preferences_and_trees_are_named_as_what_they_are() -> None:
    assert "preference pair" in refused({"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [ANSWER]})
    assert "preference pair" in refused({"chosen": [QUESTION, ANSWER], "rejected": [QUESTION, ANSWER]})
    row = {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [ANSWER]}
    assert supervised(one(row, columns="completion=chosen")) == ["A.</s>\n"]
    assert "flatten" in refused({"message_tree_id": "t", "prompt": {"text": "Q?", "replies": []}})
    assert "flatten" in refused({"message_id": "m", "parent_id": None, "message_tree_id": "t", "text": "x"})


# Files.

ROWS = [{"instruction": f"Q{i}?", "input": "", "output": f"A{i}."} for i in range(3)]
LAYOUTS = {
    "array.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=1),
    "array.jsonl": json.dumps(ROWS, indent=2),
    "objects.jsonl": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "lines.ndjson": "\n".join(map(json.dumps, ROWS)),
    "lines.json": "\n".join(map(json.dumps, ROWS)),
    "mark.json": "\ufeff" + json.dumps(ROWS),
    "table.csv": "instruction,input,output\n" + "".join(f"Q{i}?,,A{i}.\n" for i in range(3)),
    "table.tsv": "instruction\tinput\toutput\r\n" + "".join(f"Q{i}?\t\tA{i}.\r\n" for i in range(3)),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_files_of_every_layout(tmp_path: Path, name: str, packed: bool) -> None:
    content = LAYOUTS[name].encode()
    file = tmp_path / (name + ".gz" * packed)
    file.write_bytes(gzip.compress(content) if packed else content)
    for source in (file, tmp_path):
        pool = open_pool([source])
        assert [contents(row) for row in pool.rows()] == [
            [("user", f"Q{i}?"), ("assistant", f"A{i}.")] for i in range(3)
        ]
        assert {row: json.loads(data) for row, data in fetched(pool, 2, 0).items()} == {0: ROWS[0], 2: ROWS[2]}


def test_an_array_under_a_key(tmp_path: Path) -> None:
    file = tmp_path / "wrapped.json"
    file.write_text(json.dumps({"version": [1, {"a": "]"}], "rows": ROWS, "more": 1}, indent=1))
    with pytest.raises(DataError, match="'rows'"):
        list(open_pool([file]).rows())
    assert len(list(open_pool([f"{file}:rows"]).rows())) == 3


def test_an_array_is_streamed(tmp_path: Path) -> None:
    """Rows come before the end of the file is reached, which here is cut off."""
    file = tmp_path / "long.json"
    rows = [{**ROWS[0], "output": "é" * 999} for _ in range(1000)]
    file.write_text(json.dumps(rows, ensure_ascii=False)[:-5])
    stream = open_pool([file]).rows()
    assert isinstance(next(stream), Record)
    with pytest.raises(DataError, match="cannot read"):
        list(stream)


def test_rows_that_are_no_lines_are_strict_json(tmp_path: Path) -> None:
    (tmp_path / "nan.json").write_text('[{"prompt": "Q?", "completion": "A.", "score": NaN, "x": [-Infinity]}]')
    row = fetched(open_pool([tmp_path / "nan.json"]))[0]
    assert json.loads(row, parse_constant=pytest.fail)["score"] is None


def test_quoted_and_blank_cells(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('instruction,input,output\n"a, ""b""",,"x\ny"\nshort,row\nNone,,nan\n')
    first, second, third = open_pool([tmp_path / "t.csv"]).rows()
    assert contents(first) == [("user", 'a, "b"'), ("assistant", "x\ny")]
    assert "2 cells where the header has 3" in reason(second)
    assert contents(third) == [("user", "None"), ("assistant", "nan")]


def test_a_broken_line_at_the_beginning_costs_that_line_alone(tmp_path: Path) -> None:
    for broken in (b'{"messages": [', b'{"a": 1', b"[1, 2]", b'{"messages": [{"role": "user"'):
        (tmp_path / "pool.jsonl").write_bytes(broken + b"\n" + line(chat()) + b"\n" + line(chat("No.")))
        first, *others = open_pool([tmp_path / "pool.jsonl"]).rows()
        assert isinstance(first, Rejected)
        assert len(others) == 2
        assert all(isinstance(row, Record) for row in others)


def test_the_run_folder_is_no_part_of_a_pool_folder(tmp_path: Path) -> None:
    for name in ("a.jsonl", "run/selected.jsonl", ".cache/old.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(line(chat(name)))
    for source in (tmp_path, f"{tmp_path}/**/*.jsonl"):
        pool = open_pool([source], exclude=tmp_path / "run")
        assert [file.name for file in pool.files] == ["a.jsonl"]
    assert open_pool([tmp_path / "run" / "selected.jsonl"], exclude=tmp_path / "run").files


def test_a_folder_of_several_configurations_is_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    card = ["---", "configs:"]
    for config in ("one", "two"):
        (folder / config).mkdir(parents=True)
        card += [f"- config_name: {config}", "  data_files:"]
        for split in ("train", "test"):
            (folder / config / f"{split}.jsonl").write_bytes(line(chat(f"{config} {split}")))
            card += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*card, "---", "A set."]))
    with pytest.raises(DataError, match=f"hf:{folder}:two:test"):
        open_pool([folder])
    with pytest.raises(DataError, match=f"name one: hf:{folder}:one, hf:{folder}:two"):
        open_pool([f"hf:{folder}"])
    for named, answer in (("one", "one train"), ("two:test", "two test")):
        (row,) = open_pool([f"hf:{folder}:{named}"]).rows()
        assert contents(row)[1][1] == answer


# The whole folder of situations, where it is.


def test_situations_of_the_shared_folder(shared_data: Path) -> None:
    folder = shared_data.parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"no situations at {folder}")
    rejected = {"07-turn-weights": 1, "09-content-parts": 1, "17-prompt-completion": 2, "23-context-columns": 1}
    for case in sorted(folder.iterdir()):
        if case.name[:2] in ("12", "20", "21", "22") or not case.is_dir():
            continue
        rows = list(open_pool([case]).rows()) if not (case / "alpaca_data.json").is_file() else []
        rows += [row for file in case.glob("*.json") for row in open_pool([file]).rows()]
        assert len({row.row for row in rows}) == len(rows) or case.name.startswith("05")
        assert sum(isinstance(row, Rejected) for row in rows) == rejected.get(case.name, 0), case.name
        assert all("None" not in reason(row) for row in rows if isinstance(row, Rejected))
