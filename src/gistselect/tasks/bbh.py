"""BIG-Bench Hard: 27 tasks with three worked examples each as queries."""

from __future__ import annotations

from pathlib import Path

from gistselect.errors import DataError
from gistselect.tasks.files import find, query, read_object
from gistselect.types import Record

N_EXAMPLES = 3


class BBH:
    """Groups are the tasks, in the order of `bbh/bbh-three-shot.json`."""

    name = "bbh"
    version = 1

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    def queries(self) -> list[Record]:
        """Each worked example once as the question after the other two; the answer is a chain of thought."""
        records: list[Record] = []
        for task, (task_prompt, examples) in self._tasks().items():
            for number, example in enumerate(examples):
                question, answer = example
                others = [shown for i, shown in enumerate(examples) if i != number]
                records.append(
                    query(
                        f"bbh/{task}/{number}",
                        len(records),
                        prompt=_prompt(task_prompt, others, question),
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
        for task, (task_prompt, examples) in self._tasks().items():
            path = find(self.data_dir, f"bbh/test/{task}.json", f"bbh/bbh/{task}.json")
            for number, (question, target) in enumerate(_items(path)):
                records.append(
                    query(
                        f"bbh/{task}/test/{number}",
                        len(records),
                        prompt=_prompt(task_prompt, examples, f"Q: {question}"),
                        prefix="A: So the answer is",
                        answer=f" {target}.",
                        group=task,
                    )
                )
        return records

    def _tasks(self) -> dict[str, tuple[str, list[tuple[str, str]]]]:
        """Of each task the prompt and its worked examples as (question, answer)."""
        path = find(self.data_dir, "bbh/bbh-three-shot.json")
        tasks = {}
        for task, text in read_object(path).items():
            blocks = str(text).split("\n\n")
            examples = [tuple(block.split("\nA:")) for block in blocks[-N_EXAMPLES:]]
            if [len(example) for example in examples] != [2] * N_EXAMPLES:
                raise DataError(f"{path}, {task!r}: its last three blocks are not a question and an answer each.")
            tasks[task] = ("\n\n".join(blocks[:-N_EXAMPLES]).strip(), examples)
        return tasks


def _prompt(task_prompt: str, demonstrations: list[tuple[str, str]], question: str) -> str:
    shown = [f"{asked}\nA:{answer}" for asked, answer in demonstrations]
    return "\n\n".join([task_prompt, *shown, question])


def _items(path: Path) -> list[tuple[str, str]]:
    try:
        return [(item["input"], item["target"]) for item in read_object(path)["examples"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: expected a list 'examples' of objects with 'input' and 'target'.") from error
