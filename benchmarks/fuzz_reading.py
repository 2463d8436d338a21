"""Random rows through readers, shapes, templates and tokens: no traceback, nothing supervised outside an answer.

    python benchmarks/fuzz_reading.py --seconds 60 --seed 0

Every text that is not to be learned holds one letter, every answer that is to be learned another; so labels are
checked without asking the code under test where an answer stands. Prints the number of cases; the first failure stops.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from gistselect.data.config import ReadOptions
from gistselect.data.parts import Rows
from gistselect.data.pool import Pool, Reader
from gistselect.data.stored import record_from_json, record_json
from gistselect.data.templates import load_template
from gistselect.data.tokens import encode
from gistselect.types import Example, Record, Rejected
from test_chat_templates import CALLS, TEMPLATES
from texts import CHATML, CHATML_MARKED, tiny_tokenizer

CONTEXT, LEARNED = "Ж", "ω"
PIECES = [
    *("a", " ", "\n", "x y", "\u2028", "\0", "🙂", "東京", "<", ">", "é", "12"),
    *(
        "</s>",
        "<s>",
        "<think>",
        "</think>",
        "<|im_end|>",
        "<|im_start|>assistant\n",
        "<|assistant|>\n",
        "[/INST]",
        "<A>",
    ),
    *("{{ x }}", "{% raw %}", "<tool_response>", "</tool_response>", "[CALL]", "<end>\n"),
]
ROLES = [
    "system",
    "user",
    "assistant",
    "human",
    "gpt",
    "tool",
    "observation",
    "function_call",
    "Model",
    "bot",
    "",
    None,
    3,
]
ODD: list[Any] = [None, 3, True, [], {}, "", float("nan"), ["x"], {"a": 1}, "\ud83d", b"x"]


def text(rng: random.Random, mark: str) -> Any:
    if rng.random() < 0.02:
        return rng.choice(ODD)
    return (
        "".join(rng.choice([*PIECES, mark]) for _ in range(rng.randrange(6)))
        + mark
        + rng.choice(["", " ", "\n", "</s>"])
    )


def turn(rng: random.Random) -> Any:
    if rng.random() < 0.01:
        return rng.choice(ODD)
    role = rng.choice(ROLES) if rng.random() < 0.1 else rng.choice(["user", "assistant", "assistant", "system", "tool"])
    answers = str(role).lower() in ("assistant", "gpt", "model", "function_call")
    learned = answers and rng.random() < 0.8
    mark = LEARNED if learned else CONTEXT
    role_key, text_key = rng.choice([("role", "content"), ("from", "value")])
    said = text(rng, mark)
    made: dict[str, Any] = {role_key: role, text_key: said}
    if answers and not learned:
        made[rng.choice(["weight", "train", "loss"])] = 0
    if rng.random() < 0.1:
        made[text_key] = [{"type": rng.choice(["text", "text", "image"]), "text": said}]
    if answers and rng.random() < 0.1:
        made[rng.choice(["reasoning_content", "thinking"])] = text(rng, mark)
    if answers and rng.random() < 0.1:
        arguments: Any = {"x": text(rng, mark), "y": [1, None]}
        call = {"name": rng.choice(["f", "get</s>"]), "arguments": rng.choice([arguments, "not JSON", None])}
        made["tool_calls"] = [{"type": "function", "function": call}] * rng.randrange(3)
    return made


def row(rng: random.Random) -> Any:
    kind = rng.random()
    made: dict[str, Any]
    if kind < 0.02:
        return rng.choice(ODD)
    if kind < 0.75:
        turns: Any = [turn(rng) for _ in range(rng.randrange(7))]
        made = {rng.choice(["messages", "conversations"]): json.dumps(turns, default=str) if kind < 0.05 else turns}
    else:
        prompt, answer = rng.choice(
            [("prompt", "completion"), ("instruction", "output"), ("question", "answer"), ("inputs", "targets")]
        )
        made = {prompt: text(rng, CONTEXT), answer: text(rng, LEARNED)}
    for column in ("system", "input", "context", "tools", "images", "id", "dataset", "note"):
        if rng.random() < 0.04:
            made[column] = text(rng, CONTEXT)
    if rng.random() < 0.05:
        made["tools"] = [{"name": "f</s>", "description": text(rng, CONTEXT)}]
    return made


def check(tokenizer: Any, record: Record, outcome: Example | Rejected, template: str) -> None:
    if isinstance(outcome, Rejected):
        assert outcome.reason, (template, record)
        return
    supervised = tokenizer.decode(outcome.input_ids[outcome.supervised], clean_up_tokenization_spaces=False)
    rest = tokenizer.decode(outcome.input_ids[~outcome.supervised], clean_up_tokenization_spaces=False)
    assert CONTEXT not in supervised, (template, record, supervised)
    assert outcome.n_cut or LEARNED not in rest, (template, record, rest)
    stored = Record(id=record.id, source=record.source, row=record.row, **record_from_json(record_json(record)))
    assert stored.messages == record.messages, record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    templates = []
    for source in ("", CHATML, CHATML_MARKED, CALLS, *(source for source, _ in TEMPLATES.values())):
        tokenizer = tiny_tokenizer(bos=len(templates) % 2 == 0, regex=len(templates) % 3 != 0)
        tokenizer.chat_template = source
        templates.append((source, load_template("model" if source else "tulu", tokenizer), tokenizer))
    cases = scored = 0
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        rows = [row(rng) for _ in range(200)]
        pool = Pool(parts=(Rows("fuzz", rows),), options=ReadOptions())
        reader = Reader(pool)
        found = list(reader.part(0))
        assert len(found) == len(rows) == sum(one.n_rows for one in reader.found)
        assert len({one.id for one in found}) == len(rows)
        places = {one.row: one.place for one in found if one.place is not None}
        assert len(pool.fetch(places)) == len(rows)
        records = [one for one in found if isinstance(one, Record)]
        source, template, tokenizer = rng.choice(templates)
        for record, outcome in zip(records, encode(records, template, tokenizer, 100_000), strict=True):
            check(tokenizer, record, outcome, source)
            scored += isinstance(outcome, Example)
        cases += len(rows)
    print(f"{cases:,} cases, {scored:,} scored, none wrong (seed {arguments.seed})")


if __name__ == "__main__":
    main()
