"""BIG-Bench Hard: 27 tasks; three worked examples each as queries and demonstrations, the test files held out."""

from __future__ import annotations

import json
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from gistselect.errors import DataError
from gistselect.tasks.files import Cut, Item, find, hub_rows, query, read_object, refuse_overlap
from gistselect.types import Record

N_EXAMPLES = 3
Pair = tuple[str, str]
"""Question and answer."""


class BBH:
    """Groups are the tasks, in the order of `bbh/bbh-three-shot.json`."""

    name = "bbh"
    version = 1

    def __init__(self, data_dir: Path | None) -> None:
        self.data_dir = data_dir
        """None reads the hub's data set, with the demonstrations that this package brings."""

    def queries(self) -> list[Record]:
        """Each worked example once as the question after the other two; the answer is a chain of thought."""
        records: list[Record] = []
        for task, (task_prompt, examples) in self._examples.items():
            for number, (question, answer) in enumerate(examples):
                others = [_shown(example) for i, example in enumerate(examples) if i != number]
                records.append(
                    query(
                        f"bbh/{task}/{number}",
                        len(records),
                        prompt="\n\n".join([task_prompt, *others, question]),
                        prefix="A:",
                        answer=answer,
                        group=task,
                    )
                )
        return records

    def evaluation(self) -> list[Record]:
        """All items of `bbh/test/<task>.json` (or `bbh/bbh/`), with the three worked examples before them.

        Their reference is the bare answer. It is asked for in the words that end the worked examples; these
        stand in the unsupervised prefix, so that the loss is that of the answer alone.
        """
        records: list[Record] = []
        for task, (task_prompt, examples) in self._examples.items():
            shown = [_shown(example) for example in examples]
            for number, (question, target) in enumerate(self._test[task]):
                records.append(
                    query(
                        f"bbh/{task}/test/{number}",
                        len(records),
                        prompt="\n\n".join([task_prompt, *shown, f"Q: {question}"]),
                        prefix="A: So the answer is",
                        answer=f" {target}.",
                        group=task,
                    )
                )
        return records

    def items(self, cut: Cut) -> list[Item]:
        """All held-out items, tasks sorted by name; there is no passage to `cut`.

        The model is to reason before it answers, so the prefix that it is given is shorter than that of the loss.
        Raises `DataError` for an item that is also a demonstration.
        """
        items = []
        for task, (task_prompt, examples) in sorted(self._examples.items()):
            demonstrations = {question.removeprefix("Q:").strip() for question, _ in examples}
            refuse_overlap("bbh", task, demonstrations, (question.strip() for question, _ in self._test[task]))
            for number, (question, target) in enumerate(self._test[task]):
                items.append(
                    Item(
                        id=f"bbh/{task}/{number}",
                        group=task,
                        head=f"{task_prompt}\n\n",
                        shots=tuple(f"{_shown(example)}\n\n" for example in examples),
                        question=f"Q: {question}",
                        prefix="A:",
                        lead=" So the answer is",
                        reference=f" {target}.",
                        answers=(target,),
                    )
                )
        return items

    def files(self) -> list[Path]:
        """Every file that is read; empty for the hub."""
        return [self._shots_path, *(self._path(task) for task in self._examples)] if self.data_dir else []

    @cached_property
    def _shots_path(self) -> Path:
        return find(self.data_dir, "bbh/bbh-three-shot.json")

    def _path(self, task: str) -> Path:
        return find(self.data_dir, f"bbh/test/{task}.json", f"bbh/bbh/{task}.json")

    @cached_property
    def _examples(self) -> dict[str, tuple[str, list[Pair]]]:
        """Of each task the prompt and its worked examples."""
        if self.data_dir is None:
            shipped = files("gistselect").joinpath("demo/data/eval/bbh/bbh-three-shot.json")
            prompts, name = json.loads(shipped.read_text("utf-8")), shipped.name
        else:
            prompts, name = read_object(self._shots_path), str(self._shots_path)
        return {task: _worked_examples(str(text), f"{name}, {task!r}") for task, text in prompts.items()}

    @cached_property
    def _test(self) -> dict[str, list[Pair]]:
        if self.data_dir is None:
            return {
                task: [(row["input"], row["target"]) for row in hub_rows("lukaemon/bbh", task, "test")]
                for task in self._examples
            }
        return {task: _held_out(self._path(task)) for task in self._examples}


def _shown(example: Pair) -> str:
    return f"{example[0]}\nA:{example[1]}"


def _worked_examples(text: str, place: str) -> tuple[str, list[Pair]]:
    """The task prompt before the last three blocks that blank lines part, and these as examples."""
    blocks = text.split("\n\n")
    examples = [tuple(block.split("\nA:")) for block in blocks[-N_EXAMPLES:]]
    if [len(example) for example in examples] != [2] * N_EXAMPLES:
        raise DataError(f"{place}: its last three blocks are not a question and an answer each.")
    return "\n\n".join(blocks[:-N_EXAMPLES]).strip(), [(question, answer) for question, answer in examples]


def _held_out(path: Path) -> list[Pair]:
    try:
        examples: list[dict[str, Any]] = read_object(path)["examples"]
        pairs = [(example["input"], example["target"]) for example in examples]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: expected a list 'examples' of objects with 'input' and 'target'.") from error
    if not pairs:
        raise DataError(f"{path} has no examples. Fetch the file again.")
    return pairs
