"""Rows of every shape become conversations, or are rejected with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gistselect.data.pool import open_pool
from gistselect.data.shapes import FORMATS
from gistselect.data.stored import normalised
from gistselect.types import Record
from rows import chat, contents, fetched, in_memory, line, reason

ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}
SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "a"},
    ]
}
SHAPES = {
    "messages": (chat(), [("user", "Well?"), ("assistant", "Yes.")], False),
    "prompt_completion": (
        {"prompt": "p", "completion": " c"},
        [("user", "p"), ("assistant", " c")],
        True,
    ),
    "alpaca": (ALPACA, [("user", "Add.\n1 2"), ("assistant", "3")], False),
    "pair": ({"question": "q", "answer": "a", "context": "c"}, [("user", "q\nc"), ("assistant", "a")], False),
    "turns": ({"data": ["q", "a"]}, [("user", "q"), ("assistant", "a")], False),
    "text": ({"text": "q ### a ### b"}, [("user", "q ### a ### "), ("assistant", "b")], True),
    "sharegpt": (SHAREGPT, [("system", "s"), ("user", "q"), ("assistant", "a")], False),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_by_name_and_detected(name: str) -> None:
    row, expected, plain = SHAPES[name]
    for format in (name, "auto"):
        (record,) = in_memory([row], format=format, separator="### ").rows()
        assert contents(record) == expected
        assert isinstance(record, Record)
        assert record.plain is plain


def test_shape_variants() -> None:
    conversational = {
        "prompt": [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "a"}],
    }
    both = {**chat("from messages"), "prompt": "p", "completion": None}
    records = list(in_memory([conversational, {**ALPACA, "input": ""}, {**ALPACA, "input": None}, both]).rows())
    assert contents(records[0]) == [("user", "q"), ("assistant", "a")]
    assert not records[0].plain  # pyright: ignore[reportAttributeAccessIssue]
    assert contents(records[1])[0] == contents(records[2])[0] == ("user", "Add.")
    assert contents(records[3])[1] == ("assistant", "from messages")


def test_normalised_is_a_chat_row() -> None:
    (record,) = in_memory([{**SHAREGPT, "id": 7, "source": "talks"}]).rows()
    assert isinstance(record, Record)
    expected = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    expected.append({"role": "assistant", "content": "a"})
    assert normalised(record) == {"id": "7", "dataset": "talks", "messages": expected}


# Bad rows.

BAD_LINES = [
    (b'{"messages": [', "not readable JSON"),
    (b'{"prompt": "caf\xe9", "completion": "x"}', "not UTF-8"),
    (b"[1, 2]", "is a list"),
    (b"null", "is null, not an object"),
    (b"[" * 100_000, "not readable JSON"),
    (line({"words": "x"}), "accepted shapes: messages"),
    (line({"text": "x"}), "--separator"),
    (line({"messages": []}), "empty"),
    (line({"messages": "hello"}), "a text that is not JSON"),
    (line({"messages": 3}), "a number, not a list of turns"),
    (line({"messages": ["hello", 3]}), "turn 1 is text, not an object"),
    (line({"messages": [{"role": "user"}]}), "turn 1 has no content"),
    (line({"messages": [{"content": "x"}]}), "turn 1 has no role"),
    (line({"messages": [{"role": "user", "content": None}]}), "turn 1 (user) has no text"),
    (
        line({"messages": [{"role": "bot", "content": "x"}]}),
        "turn 1 has the role 'bot', which is not known; say what it is with --roles",
    ),
    (line({"messages": [{"role": ["user"], "content": "x"}]}), "turn 1 has the role"),
    (line({"messages": [{"role": "user", "content": "x"}]}), "no assistant turn"),
    (line({"messages": [{"role": "assistant", "content": None}]}), "an assistant turn is empty"),
    (line(chat(" \n")), "assistant turn is empty"),
    (line({"prompt": "x", "completion": ""}), "assistant turn is empty"),
    (line({"prompt": "x", "completion": 3}), "the answer is a number"),
    (line({"instruction": ["x"], "output": "y"}), "'instruction' is a list"),
    (b'{"prompt": "half \\ud83d", "completion": "y"}', "lone surrogate at character 5"),
]


@pytest.mark.parametrize(("bad", "why"), BAD_LINES)
def test_a_bad_row_is_named_and_the_rows_around_it_stay(tmp_path: Path, bad: bytes, why: str) -> None:
    file = tmp_path / "pool.jsonl"
    file.write_bytes(line(chat("first")) + b"\n\n" + bad + b"\n" + line(chat("last")))
    pool = open_pool([file])
    first, second, third = pool.rows()
    assert contents(first)[1][1] == "first"
    assert contents(third)[1][1] == "last"
    assert why in reason(second)
    assert reason(second).startswith(f"{tmp_path.name}/pool.jsonl, line 3: ")
    assert fetched(pool, 1) == {1: bad}
    json.dumps([second.id, second.source], ensure_ascii=False).encode()


def test_a_format_named_is_the_only_one_tried() -> None:
    (row,) = in_memory([chat()], format="alpaca").rows()
    assert "alpaca (instruction, output)" in reason(row)
