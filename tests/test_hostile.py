"""Hostile and strange inputs of every form: each is read, or refused in a sentence; nothing else may come of it."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gistselect.data.pool import open_pool
from gistselect.errors import ConfigError, DataError, ModelError
from gistselect.model.adapter_files import adapter_settings, locate_adapter, stored_shapes
from gistselect.run.config import RunConfig
from gistselect.run.remember import read_yaml
from gistselect.types import Rejected
from replay import Replay
from tiny_runs import row

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CORPUS = Path(__file__).parent / "fuzz_corpus.txt"
DEEP = "[" * 100_000
TURNS = json.dumps([Q, A])

REFUSED_ROWS: dict[str, str] = {
    "not JSON": "{",
    "two objects": '{"a": 1} {"b": 2}',
    "a number": "3",
    "text": '"x"',
    "null": "null",
    "true": "true",
    "a list": "[1, 2]",
    "deep": DEEP,
    "deep object": '{"messages": ' + DEEP + "]" * 100_000 + "}",
    "empty object": "{}",
    "huge number": '{"messages": 1e999999}',
    "long integer": '{"messages": ' + "9" * 10_000 + "}",
    "NaN messages": '{"messages": NaN}',
    "no messages": '{"messages": []}',
    "messages null": '{"messages": null}',
    "messages object": '{"messages": {"role": "user"}}',
    "messages text": '{"messages": "hello"}',
    "messages text of a number": '{"messages": "3"}',
    "messages text deep": json.dumps({"messages": DEEP}),
    "turn null": '{"messages": [null]}',
    "turn list": '{"messages": [[]]}',
    "turn number": '{"messages": [1]}',
    "turn without role": '{"messages": [{"content": "x"}]}',
    "turn without content": '{"messages": [{"role": "user"}]}',
    "role list": '{"messages": [{"role": [], "content": "x"}]}',
    "role object": '{"messages": [{"role": {}, "content": "x"}]}',
    "role number": '{"messages": [{"role": 1, "content": "x"}]}',
    "role unknown": '{"messages": [{"role": "\\u001b[2J", "content": "x"}]}',
    "content number": json.dumps({"messages": [Q, {"role": "assistant", "content": 3}]}),
    "content object": json.dumps({"messages": [Q, {"role": "assistant", "content": {"a": 1}}]}),
    "content of parts of nothing": json.dumps({"messages": [Q, {"role": "assistant", "content": [{"type": 1}]}]}),
    "part list": json.dumps({"messages": [Q, {"role": "assistant", "content": [[]]}]}),
    "image part": json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, A]}),
    "half a surrogate": '{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "a"}]}',
    "half a surrogate in the answer": '{"prompt": "p", "completion": "\\udc00"}',
    "empty answer": json.dumps({"messages": [Q, {"role": "assistant", "content": " "}]}),
    "no answer": json.dumps({"messages": [Q]}),
    "answer not learned": json.dumps({"messages": [Q, {**A, "weight": 0}]}),
    "weight text": json.dumps({"messages": [Q, {**A, "weight": "0"}]}),
    "weight half": json.dumps({"messages": [Q, {**A, "weight": 0.5}]}),
    "train list": json.dumps({"messages": [Q, {**A, "train": []}]}),
    "reasoning number": json.dumps({"messages": [Q, {**A, "reasoning_content": 3}]}),
    "call without name": json.dumps({"messages": [Q, {**A, "tool_calls": [{}]}]}),
    "call number": json.dumps({"messages": [Q, {**A, "tool_calls": 3}]}),
    "call text": json.dumps({"messages": [Q, {**A, "tool_calls": "x"}]}),
    "call text deep": json.dumps({"messages": [Q, {**A, "tool_calls": DEEP}]}),
    "call name list": json.dumps({"messages": [Q, {**A, "tool_calls": [{"function": {"name": []}}]}]}),
    "name list": json.dumps({"messages": [Q, {**A, "name": [1]}]}),
    "tools text": json.dumps({"messages": [Q, A], "tools": "x"}),
    "tools number": json.dumps({"messages": [Q, A], "tools": 3}),
    "tools of numbers": json.dumps({"messages": [Q, A], "tools": [3]}),
    "two systems": json.dumps({"messages": [{"role": "system", "content": "a"}, Q, A], "system": "b"}),
    "history number": json.dumps({"instruction": "i", "output": "o", "history": 3}),
    "history of threes": json.dumps({"instruction": "i", "output": "o", "history": [["a", "b", "c"]]}),
    "images": json.dumps({"messages": [Q, A], "images": ["x.png"]}),
    "prompt number": '{"prompt": 1, "completion": "c"}',
    "completion null": '{"prompt": "p", "completion": null}',
    "preference": json.dumps({"chosen": [Q, A], "rejected": [Q, A]}),
    "tree": json.dumps({"message_tree_id": "x", "prompt": {"text": "x", "replies": []}}),
    "text alone": '{"text": "hello"}',
    "unknown columns": '{"a": 1, "b": 2}',
    "control codes as column": '{"\\u001b[2J": 1}',
    "documents": json.dumps({"messages": [Q, A], "documents": ["x"]}),
}
READ_ROWS: dict[str, str] = {
    "id of a list": json.dumps(row("q", "a", id=[1, {"a": None}])),
    "id NaN": '{"messages": ' + TURNS + ', "id": NaN}',
    "id infinite": '{"messages": ' + TURNS + ', "id": Infinity}',
    "id of half a surrogate": '{"messages": ' + TURNS + ', "id": "\\ud83d"}',
    "id a path": json.dumps(row("q", "a", id="../../../etc/passwd")),
    "id with null": json.dumps(row("q", "a", id="a\0b")),
    "id very long": json.dumps(row("q", "a", id="x" * 100_000)),
    "data set a path": json.dumps(row("q", "a", dataset="../../x")),
    "data set a list": json.dumps(row("q", "a", dataset=["x"])),
    "group a list": json.dumps(row("q", "a", group=[1])),
    "repeated keys": '{"prompt": "a", "prompt": "b", "completion": "c"}',
    "control tokens": json.dumps(row("</s><s>", "</s> <|assistant|>\n<s>")),
    "jinja": json.dumps(row("{{ 7 * 7 }}{% raw %}", "{% endfor %}{{ x.__class__ }}")),
    "markup": json.dumps(row("[red]x[/red]", "[link=file:///]x[/]")),
    "null characters": json.dumps(row("a\0b", "\0")),
    "line separators": json.dumps(row("a\u2028b\u2029c\x85d", "e\x0bf"), ensure_ascii=False),
    "direction": json.dumps(row("\u202egnp.exe", "\u2066x")),
    "noncharacters": json.dumps(row("\ufdd0\ufde0\ufde2\uffff", "\ufde1 x")),
    "private use": json.dumps(row("\U000ffffe0\U000fffff", "\ue000")),
    "combining": json.dumps(row("e" + "\u0301" * 5000, "a" * 3)),
    "unknown column of any type": json.dumps(row("q", "a", note={"deep": [1, [2, [3]]]})),
    "reasoning alone": json.dumps({"messages": [Q, {"role": "assistant", "content": "", "reasoning_content": "r"}]}),
    "call with arguments of any type": json.dumps(
        {
            "messages": [
                Q,
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]},
            ]
        }
    ),
    "carriage return": json.dumps(row("q", "a")) + "\r",
    "white space around": "  " + json.dumps(row("q", "a")) + "\t ",
    "upper case role": json.dumps({"messages": [{"role": " USER ", "content": "q"}, {"role": "GPT", "content": "a"}]}),
}
FILES: dict[str, bytes] = {
    "empty.jsonl": b"",
    "blank.jsonl": b"\n \n\t\n",
    "zeros.jsonl": b"\0" * 1000,
    "utf16.jsonl": json.dumps(row("q", "a")).encode("utf-16"),
    "latin.jsonl": b'{"prompt": "\xe9", "completion": "c"}\n',
    "gzip.jsonl": gzip.compress(b"{}"),
    "cut.jsonl.gz": gzip.compress(b'{"prompt": "p", "completion": "c"}\n' * 99)[:-9],
    "plain.jsonl.gz": b'{"prompt": "p", "completion": "c"}\n',
    "empty.jsonl.gz": b"",
    "garbage.jsonl.zst": b"\x28\xb5\x2f\xfd" + b"\xff" * 50,
    "empty.parquet": b"",
    "magic.parquet": b"PAR1" + b"\xff" * 50 + b"PAR1",
    "empty.csv": b"",
    "header.csv": b"prompt,completion\n",
    "twice.csv": b"prompt,prompt\na,b\n",
    "quote.csv": b'prompt,completion\n"a,b\n',
    "cells.tsv": b"prompt\tcompletion\na\n",
    "open.json": b"[",
    "deep.json": b"[" * 100_000,
    "objects.json": b'{"a": {"b": ' * 50_000,
    "wrapped.json": b'{"rows": [{"prompt": "p"}]}',
    "scalar.json": b"3",
    "comma.json": b"[,]",
    "trailing.json": b'[{"prompt": "p", "completion": "c"},]',
    "more.json": b"[] []",
    "card.json": b'{"messages": []}',
}
CONFIGURATIONS: dict[str, str] = {
    "list": "- a",
    "text": "hello",
    "tabs": "\tpool: x",
    "not YAML": "{:",
    "control": "pool: \x00",
    "object": "pool: !!python/object:os.system x",
    "anchors": "a: &a [1]\npool: [*a, *a]",
    "laughs": "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\npool: *c",
    "number key": "3: x",
    "unknown option": "poool: x",
    "pool a number": "pool: 3",
    "no target": "pool: [x]\noutput: o",
    "budget none": "pool: [x]\ntarget: [y]\noutput: o\nbudget: 0",
    "budget NaN": "pool: [x]\ntarget: [y]\noutput: o\nbudget: .nan",
    "budget text": "pool: [x]\ntarget: [y]\noutput: o\nbudget: much",
    "seed negative": "pool: [x]\ntarget: [y]\noutput: o\nseed: -1",
    "representation unknown": "pool: [x]\ntarget: [y]\noutput: o\nrepresentation: [../../x]",
    "representation options": "pool: [x]\ntarget: [y]\noutput: o\nrepresentation: ['less:dimension=-1']",
    "columns": "pool: [x]\ntarget: [y]\noutput: o\ncolumns: [a=b=c]",
    "roles": "pool: [x]\ntarget: [y]\noutput: o\nroles: [x=king]",
    "twice": "pool: [x, x]\ntarget: [y]\noutput: o",
}
ADAPTERS: dict[str, tuple[bytes | None, bytes | None]] = {
    "no configuration": (None, b""),
    "not JSON": (b"{", b""),
    "a list": (b"[]", b""),
    "a number": (b"3", b""),
    "empty": (b"{}", b""),
    "not UTF-8": (b"\xff\xfe", b""),
    "another kind": (b'{"peft_type": "IA3"}', b""),
    "megatron": (b'{"peft_type": "LORA", "megatron_config": {}, "megatron_core": "os"}', b""),
    "imports": (b'{"peft_type": "LORA", "megatron_config": {"a": 1}, "megatron_core": "evil"}', b""),
    "no weights": (b'{"peft_type": "LORA"}', None),
    "empty weights": (b'{"peft_type": "LORA"}', b""),
    "header too long": (b'{"peft_type": "LORA"}', b"\xff" * 8 + b"{}"),
    "header cut": (b'{"peft_type": "LORA"}', b"\x10" + b"\0" * 7 + b"{"),
    "header a list": (b'{"peft_type": "LORA"}', b"\x02" + b"\0" * 7 + b"[]"),
    "offsets beyond": (
        b'{"peft_type": "LORA"}',
        (lambda header: len(header).to_bytes(8, "little") + header)(
            b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
        ),
    ),
}


def rows_of(path: Path) -> list[Any]:
    return list(open_pool([path]).rows())


@pytest.mark.parametrize("name", REFUSED_ROWS)
def test_a_hostile_row_is_quarantined_and_costs_no_other(tmp_path: Path, name: str) -> None:
    path = tmp_path / "pool.jsonl"
    good = json.dumps(row("q", "a"))
    path.write_bytes("\n".join([good, REFUSED_ROWS[name], good]).encode())
    first, bad, last = rows_of(path)
    assert isinstance(bad, Rejected)
    assert "line 2: " in bad.reason
    assert "NoneType" not in bad.reason
    assert len(bad.reason) < 2000
    assert not isinstance(first, Rejected)
    assert not isinstance(last, Rejected)


@pytest.mark.parametrize("name", READ_ROWS)
def test_a_strange_row_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(READ_ROWS[name].encode() + b"\n" + json.dumps(row("q", "b")).encode())
    records = rows_of(path)
    assert not any(isinstance(one, Rejected) for one in records), records
    replay = Replay(tmp_path)
    for template in range(len(replay.templates)):
        scored, rejected = replay(bytes([0, template]) + path.read_bytes())
        assert scored + rejected == 2


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_or_has_no_usable_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    try:
        rows = rows_of(path)
    except DataError as error:
        said = str(error)
    else:
        assert all(isinstance(one, Rejected) for one in rows)
        said = rows[0].reason
    assert name in said


@pytest.mark.parametrize("name", [*REFUSED_ROWS])
def test_a_hostile_target_stops_with_its_row(tmp_path: Path, name: str) -> None:
    from gistselect.tasks import load_task

    path = tmp_path / "target.jsonl"
    path.write_bytes(json.dumps(row("q", "a")).encode() + b"\n" + REFUSED_ROWS[name].encode())
    with pytest.raises(DataError, match="1 of 2 target rows"):
        load_task(str(path)).queries()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_hostile_configuration_is_refused_in_words(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIGURATIONS[name])
    with pytest.raises(ConfigError):
        RunConfig.from_values(read_yaml(path))


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_hostile_adapter_is_refused_in_words(tmp_path: Path, name: str) -> None:
    described, weights = ADAPTERS[name]
    if described is not None:
        (tmp_path / "adapter_config.json").write_bytes(described)
    if weights is not None:
        (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError):
        _read(tmp_path)


def _read(folder: Path) -> None:
    adapter_settings(locate_adapter(folder))
    stored_shapes(folder)


def test_what_the_fuzz_kept_is_read_or_refused(tmp_path: Path) -> None:
    replay = Replay(tmp_path)
    kept = [base64.b64decode(line) for line in CORPUS.read_bytes().splitlines()]
    assert len(kept) >= 100
    outcomes = [replay(content) for content in kept]
    assert sum(scored for scored, _ in outcomes) > 10
    assert sum(rejected for _, rejected in outcomes) > 10


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "function_call"]) | JSON, "content": JSON},
    optional={"tool_calls": JSON, "reasoning_content": JSON, "weight": JSON, "name": JSON, "train": JSON},
)
COLUMNS = ("tools", "system", "id", "history", "prompt", "completion", "conversations", "input", "output")
ROW = st.fixed_dictionaries(
    {}, optional={"messages": st.lists(TURN, max_size=4) | JSON, **dict.fromkeys(COLUMNS, JSON)}
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(ROW, min_size=1, max_size=3), template=st.integers(0, 3))
def test_any_json_is_scored_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], template: int
) -> None:
    replay = _replay(tmp_path_factory)
    content = "\n".join(json.dumps(one) for one in rows).encode()
    scored, rejected = replay(bytes([0, template]) + content)
    assert scored + rejected in (0, len(rows))


_KEPT: list[Replay] = []


def _replay(factory: pytest.TempPathFactory) -> Replay:
    if not _KEPT:
        _KEPT.append(Replay(factory.mktemp("replay")))
    return _KEPT[0]


def test_how_many_inputs_are_kept() -> None:
    assert len(REFUSED_ROWS) * 2 + len(READ_ROWS) + len(FILES) + len(CONFIGURATIONS) + len(ADAPTERS) >= 200
