"""Supervised tokens beside those of TRL's SFTTrainer with `assistant_only_loss`, over TRL's chat templates.

    pip install trl && python benchmarks/compare_with_trl.py [--show KIND]

TRL trains with a template of its own (`*_training.jinja`) where it has one for the template that a model ships; here
every template is read as it ships. What the model is asked to produce must be the same. Without trl nothing is done.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gistselect
from gistselect.data.config import ReadOptions
from gistselect.data.shapes import conversation
from gistselect.data.templates import load_template
from gistselect.data.tokens import encode
from gistselect.errors import ConfigError
from gistselect.types import Example, Record

MODEL = Path(gistselect.__file__).parent / "demo" / "model"
CONTROL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|<\|?[a-z_]{4,30}_of_turn\|?>|<\|?turn\|?>|<(?:bos|eos)>"
)
"""Strings in a template that its model's tokenizer reads as one token."""
TOOL = {
    "type": "function",
    "function": {
        "name": "area",
        "description": "Area of a figure",
        "parameters": {"type": "object", "properties": {"sides": {"type": "array", "items": {"type": "integer"}}}},
    },
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "area", "arguments": {"sides": [2, 4]}}}


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CALLED = [
    said("user", "How large is it?"),
    said("assistant", "", tool_calls=[CALL]),
    said("tool", "8", name="area", tool_call_id="abcdefghi"),
    said("assistant", "It is 8."),
]
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "one turn": ([said("user", "How many?"), said("assistant", "Four.")], []),
    "two turns": (
        [said("user", "How many?"), said("assistant", "Four."), said("user", "And now?"), said("assistant", "Five.")],
        [],
    ),
    "system text": ([said("system", "Be brief."), said("user", "How many?"), said("assistant", "Four.")], []),
    "system text, two turns": (
        [
            said("system", "Be brief."),
            said("user", "How many?"),
            said("assistant", "Four."),
            said("user", "And now?"),
            said("assistant", "Five."),
        ],
        [],
    ),
    "several lines": ([said("user", "Write\n\ntwo lines"), said("assistant", "One\n\n  two\n")], []),
    "reasoning in the last turn": (
        [
            said("user", "How many?"),
            said("assistant", "Four."),
            said("user", "And now?"),
            said("assistant", "Five.", reasoning_content="Four and one."),
        ],
        [],
    ),
    "reasoning in every turn": (
        [
            said("user", "How many?"),
            said("assistant", "Four.", reasoning_content="Two and two."),
            said("user", "And now?"),
            said("assistant", "Five.", reasoning_content="Four and one."),
        ],
        [],
    ),
    "thinking tags in the text": (
        [said("user", "How many?"), said("assistant", "<think>\nTwo and two.\n</think>\n\nFour.")],
        [],
    ),
    "a call": (CALLED[:2], [TOOL]),
    "a call and its answer": (CALLED, [TOOL]),
    "reasoning before a call": (
        [CALLED[0], CALLED[1] | {"reasoning_content": "I measure it."}, *CALLED[2:]],
        [TOOL],
    ),
    "tools without a call": ([said("user", "How many?"), said("assistant", "Four.")], [TOOL]),
}

SHOWN = {"reasoning": ["Two and two", "Four and one", "I measure"], "call": ["[2, 4]", "[2,4]"], "tools": ["Area of"]}
"""What is to be seen of each in a rendering."""


def tokenizer_for(source: str) -> Any:
    """The demo model's tokenizer with the control tokens of a template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(CONTROL.findall(source)))})
    tokenizer.chat_template = source
    return tokenizer


def theirs(tokenizer: Any, turns: Sequence[dict[str, Any]], tools: Sequence[Any]) -> tuple[list[int], list[int]] | str:
    """Ids and mask as `SFTTrainer` makes them, or why it makes none."""
    from jinja2 import TemplateError
    from trl.chat_template_utils import get_training_chat_template

    try:
        template = get_training_chat_template(tokenizer)
    except ValueError:
        template = None
    if not re.search(r"\{%-?\s*generation\b", template or tokenizer.chat_template):
        return "scored here only: TRL has no mask for the template"
    try:
        made = tokenizer.apply_chat_template(
            list(turns),
            tools=list(tools) or None,
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        return f"scored here only: the template fails in TRL ({type(error).__name__})"
    if 1 not in made["assistant_masks"]:
        return "scored here only: TRL masks nothing of the row"
    return made["input_ids"], made["assistant_masks"]


def ours(path: Path, tokenizer: Any, turns: list[dict[str, Any]], tools: list[Any]) -> Example | str:
    try:
        template = load_template(str(path), tokenizer)
    except ConfigError as error:
        return str(error)
    row = {"messages": turns} | ({"tools": tools} if tools else {})
    read = conversation(row, ReadOptions())
    record = Record(id="r", source="s", row=0, messages=read.messages, tools=read.tools)
    (outcome,) = encode([record], template, tokenizer, 100_000)
    return outcome if isinstance(outcome, Example) else outcome.reason


def runs(ids: Sequence[int], mask: Sequence[Any]) -> list[list[int]]:
    """The supervised runs of tokens."""
    found: list[list[int]] = []
    previous = False
    for token, learned in zip(ids, mask, strict=True):
        if learned:
            if not previous:
                found.append([])
            found[-1].append(int(token))
        previous = bool(learned)
    return found


def kind(tokenizer: Any, own: Example | str, other: tuple[list[int], list[int]] | str) -> tuple[str, str]:
    """How the two compare, and both as text."""
    if isinstance(own, str):
        if isinstance(other, str):
            return "scored by neither", f"{own} <> {other}"
        lost = next((what for what in ("reasoning", "call", "tools") if f" {what}" in own.partition("not show")[2]), "")
        where = tokenizer.decode(other[0])
        if lost and not any(text in where for text in SHOWN[lost]):
            return f"refused here: the template does not show the {lost}, and TRL trains without", own
        return "refused here only", f"{own} <> {list(map(tokenizer.decode, runs(*other)))!r}"
    mine = runs(own.input_ids.tolist(), own.supervised.tolist())
    told = repr(list(map(tokenizer.decode, mine)))
    if isinstance(other, str):
        return other, told
    both = f"{told} <> {list(map(tokenizer.decode, runs(*other)))!r}"
    if mine == runs(*other):
        return ("same" if own.input_ids.tolist() == other[0] else "same, in another rendering of the context"), both
    one, two = ("".join(map(tokenizer.decode, found)) for found in (mine, runs(*other)))
    if one == two:
        return "same text", both
    if one in two or all(tokenizer.decode(run) in two for run in mine):
        return "TRL learns more", both
    if two in one or all(tokenizer.decode(run) in one for run in runs(*other)):
        return "TRL learns less", both
    return "another text", both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", help="print the rows of this kind")
    arguments = parser.parse_args()
    try:
        import trl
    except ImportError:
        print("trl is not installed: nothing to compare with")
        sys.exit(0)
    counts: Counter[str] = Counter()
    where: dict[str, Counter[str]] = defaultdict(Counter)
    paths = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    for path in paths:
        tokenizer = tokenizer_for(path.read_text(encoding="utf-8"))
        for name, (turns, tools) in CONVERSATIONS.items():
            own = ours(path, tokenizer, turns, tools)
            found, both = kind(tokenizer, own, theirs(tokenizer, turns, tools))
            counts[found] += 1
            where[found][name] += 1
            if arguments.show == found:
                print(f"{path.name}, {name}: {both}")
    print(f"TRL {trl.__version__}: {len(paths)} templates, {len(CONVERSATIONS)} conversations")
    for found, count in counts.most_common():
        print(f"{count:5}  {found}: " + ", ".join(f"{name} {n}" for name, n in where[found].most_common(3)))


if __name__ == "__main__":
    main()
