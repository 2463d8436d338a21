"""The published protocols as data: few-shot prompts and reference answers, from LESS-style files or the hub.

Prompts follow the LESS evaluation (arXiv 2402.04333, appendix) as run in the chat format: demonstrations and
question in one user turn, the start of the answer given as a prefix of the assistant turn.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

from gistselect.errors import ConfigError, DataError
from gistselect.tasks.files import read_object
from gistselect.tasks.tydiqa import PHRASES
from gistselect.types import Message, Record

LETTERS = ("A", "B", "C", "D")
MMLU_CATEGORIES = {
    "STEM": (
        "abstract_algebra",
        "astronomy",
        "college_biology",
        "college_chemistry",
        "college_computer_science",
        "college_mathematics",
        "college_physics",
        "computer_security",
        "conceptual_physics",
        "electrical_engineering",
        "elementary_mathematics",
        "high_school_biology",
        "high_school_chemistry",
        "high_school_computer_science",
        "high_school_mathematics",
        "high_school_physics",
        "high_school_statistics",
        "machine_learning",
    ),
    "humanities": (
        "formal_logic",
        "high_school_european_history",
        "high_school_us_history",
        "high_school_world_history",
        "international_law",
        "jurisprudence",
        "logical_fallacies",
        "moral_disputes",
        "moral_scenarios",
        "philosophy",
        "prehistory",
        "professional_law",
        "world_religions",
    ),
    "social sciences": (
        "econometrics",
        "high_school_geography",
        "high_school_government_and_politics",
        "high_school_macroeconomics",
        "high_school_microeconomics",
        "high_school_psychology",
        "human_sexuality",
        "professional_psychology",
        "public_relations",
        "security_studies",
        "sociology",
        "us_foreign_policy",
    ),
    "other": (
        "anatomy",
        "business_ethics",
        "clinical_knowledge",
        "college_medicine",
        "global_facts",
        "human_aging",
        "management",
        "marketing",
        "medical_genetics",
        "miscellaneous",
        "nutrition",
        "professional_accounting",
        "professional_medicine",
        "virology",
    ),
}
"""The four categories of the 57 subjects (Hendrycks et al. 2021)."""
N_SHOTS = {"mmlu": 5, "bbh": 3, "tydiqa": 1, "xqa_proxy": 1, "gsm8k": 8}
Cut = Callable[[str], str]
"""Shortens a passage to the published number of tokens."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question with everything that its prompt may hold."""

    id: str
    group: str
    head: str
    """Start of the prompt; ends where the first demonstration begins."""
    shots: tuple[str, ...]
    """Demonstrations, each ending where the next begins; the first k are used if not all fit the context."""
    question: str
    prefix: str
    """Start of the answer, given to the model."""
    lead: str = ""
    """More of the answer that stands before the reference when its loss is measured."""
    reference: str
    """The answer whose loss is measured, as it continues the prefix."""
    answers: tuple[str, ...]
    """What counts as right."""
    choices: tuple[str, ...] = ()
    """Continuations to choose from by likelihood; empty if the answer is generated."""

    def record(self, n_shots: int, row: int) -> Record:
        """The prompt with the first `n_shots` demonstrations, and the reference as the scored answer."""
        user = self.head + "".join(self.shots[:n_shots]) + self.question
        return Record(
            id=self.id,
            source=self.group,
            row=row,
            messages=(Message(role="user", content=user), Message(role="assistant", content=self.reference)),
            prefix=self.prefix + self.lead,
            closed=False,
            group=self.group,
        )


def read_items(name: str, data_dir: Path | None, cut: Cut) -> list[Item]:
    """All items of a built-in protocol, from a LESS-style folder or, without one, from the hub.

    Raises `DataError` naming the missing or damaged file, a group without items, or an item that is also a
    demonstration.
    """
    reader = READERS[name]
    items = list(reader(_folder(data_dir, name), cut))
    if not items:
        raise DataError(f"{name}: there is no item to evaluate in {data_dir}.")
    return items


def _folder(data_dir: Path | None, name: str) -> Path | None:
    if data_dir is None:
        return None
    candidates = [data_dir / "eval" / name, data_dir / name]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DataError(
        f"{name}: neither {candidates[0]} nor {candidates[1]} is a folder; give a LESS-style --data-dir, "
        "or none to use the hub."
    )


def mmlu_items(folder: Path | None, cut: Cut) -> Iterator[Item]:
    """Subjects are those of the test files; five demonstrations from the subject's dev file."""
    for subject, dev, test in _mmlu_subjects(folder):
        # Two spaces after "about", as published.
        name = subject.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about  {name}.\n\n"
        shots = tuple(f"{_mmlu_question(row)} {row[5]}\n\n" for row in dev[: N_SHOTS["mmlu"]])
        _refuse_overlap("mmlu", subject, {tuple(row) for row in dev}, (tuple(row) for row in test))
        for number, row in enumerate(test):
            yield Item(
                id=f"mmlu/{subject}/{number}",
                group=subject,
                head=head,
                shots=shots,
                question=_mmlu_question(row),
                prefix="The answer is:",
                reference=f" {row[5]}",
                answers=(f" {row[5]}",),
                choices=tuple(f" {letter}" for letter in LETTERS),
            )


def _mmlu_question(row: Sequence[str]) -> str:
    options = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, row[1:5], strict=True))
    return f"{row[0]}{options}\nAnswer:"


def _mmlu_subjects(folder: Path | None) -> Iterator[tuple[str, list[list[str]], list[list[str]]]]:
    """(subject, dev rows, test rows); a row is question, four options and the letter of the answer."""
    if folder is None:
        for subject in sorted(chain.from_iterable(MMLU_CATEGORIES.values())):
            splits = [
                [
                    [row["question"], *row["choices"], LETTERS[row["answer"]]]
                    for row in _hub("cais/mmlu", subject, split)
                ]
                for split in ("dev", "test")
            ]
            yield subject, splits[0], splits[1]
        return
    paths = sorted((folder / "test").glob("*_test.csv"))
    if not paths:
        raise DataError(f"mmlu: {folder / 'test'} has no *_test.csv file.")
    for path in paths:
        subject = path.name.removesuffix("_test.csv")
        yield subject, _mmlu_rows(folder / "dev" / f"{subject}_dev.csv"), _mmlu_rows(path)


def _mmlu_rows(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"mmlu: cannot read {path}: {error}") from None
    for number, row in enumerate(rows, start=1):
        if len(row) != 6 or row[5] not in LETTERS:
            raise DataError(f"{path}, row {number}: expected a question, four options and a letter A to D.")
    if not rows:
        raise DataError(f"mmlu: {path} is empty.")
    return rows


def bbh_items(folder: Path | None, cut: Cut) -> Iterator[Item]:
    """Three demonstrations with their chains of thought: the last three blank-line blocks of the three-shot file."""
    for task, prompt, examples in _bbh_tasks(folder):
        *head, first, second, third = prompt.strip().split("\n\n")
        blocks = (first, second, third)
        questions = {block.partition("\nA:")[0].removeprefix("Q:").strip() for block in blocks}
        _refuse_overlap("bbh", task, questions, (one["input"].strip() for one in examples))
        for number, example in enumerate(examples):
            yield Item(
                id=f"bbh/{task}/{number}",
                group=task,
                head="\n\n".join(head) + "\n\n",
                shots=tuple(f"{block}\n\n" for block in blocks),
                question=f"Q: {example['input']}",
                prefix="A:",
                lead=" So the answer is",
                reference=f" {example['target']}.",
                answers=(example["target"],),
            )


def _bbh_tasks(folder: Path | None) -> Iterator[tuple[str, str, list[dict[str, str]]]]:
    """(task, three-shot prompt, examples with `input` and `target`)."""
    shipped = files("gistselect").joinpath("demo/data/eval/bbh/bbh-three-shot.json")
    prompts: dict[str, str] = (
        read_object(folder / "bbh-three-shot.json") if folder else json.loads(shipped.read_text("utf-8"))
    )
    if folder is None:
        for task in sorted(prompts):
            yield task, prompts[task], list(_hub("lukaemon/bbh", task, "test"))
        return
    tests = next((folder / name for name in ("bbh", "test") if (folder / name).is_dir()), None)
    if tests is None:
        raise DataError(f"bbh: {folder} has neither bbh/ nor test/ with one <task>.json for each task.")
    for task in sorted(prompts):
        examples = read_object(tests / f"{task}.json").get("examples", [])
        if not examples:
            raise DataError(f"bbh: {tests / f'{task}.json'} has no examples.")
        yield task, prompts[task], examples


def tydiqa_items(folder: Path | None, cut: Cut) -> Iterator[Item]:
    """Gold passage, one demonstration a language."""
    if folder is None:
        shots = _first_of_each_language(_hub("google-research-datasets/tydiqa", "secondary_task", "train"))
        rows = _hub("google-research-datasets/tydiqa", "secondary_task", "validation")
        questions = [{**row, "answers": [{"text": text} for text in row["answers"]["text"]]} for row in rows]
        yield from _span_items("tydiqa", questions, shots, cut)
        return
    candidates = [folder / name / "tydiqa-goldp-v1.1-dev.json" for name in (".", "dev")]
    path = next((one for one in candidates if one.is_file()), None)
    if path is None:
        raise DataError(
            f"tydiqa: the evaluation file {candidates[0]} is missing. Put TyDiQA's tydiqa-goldp-v1.1-dev.json there, "
            "leave --data-dir out to use the hub, or evaluate the stand-in 'xqa_proxy' if the folder has it."
        )
    yield from _span_items("tydiqa", list(_goldp(path)), _one_shot(folder), cut, languages=set(PHRASES))


def xqa_proxy_items(folder: Path | None, cut: Cut) -> Iterator[Item]:
    """Questions in the TyDiQA shape that are not TyDiQA; demonstrations from TyDiQA's one-shot file beside it."""
    if folder is None:
        raise ConfigError("xqa_proxy is read from a folder only; give --data-dir.")
    yield from _span_items(
        "xqa_proxy", list(_goldp(folder / "xqa-proxy.json")), _one_shot(folder.parent / "tydiqa"), cut
    )


def _span_items(
    name: str,
    questions: Sequence[dict[str, Any]],
    shots: dict[str, dict[str, Any]],
    cut: Cut,
    languages: set[str] | None = None,
) -> Iterator[Item]:
    found = {_language(one["id"]) for one in questions}
    if missing := (languages or set()) - found:
        raise DataError(f"{name}: there is no item for {', '.join(sorted(missing))}; is the file complete?")
    if unknown := found - (shots.keys() & PHRASES.keys()):
        raise DataError(f"{name}: no demonstration or no prompt for {', '.join(sorted(unknown))}.")
    _refuse_overlap(name, "all languages", {one["id"] for one in shots.values()}, (one["id"] for one in questions))
    for question in questions:
        language = _language(question["id"])
        instruction, passage_word, question_word, answer_word = PHRASES[language]

        def ask(one: dict[str, Any], words: tuple[str, str] = (passage_word, question_word)) -> str:
            return f"{words[0]} {cut(one['context'])}\n{words[1]} {one['question']}"

        answers = tuple(answer["text"] for answer in question["answers"])
        shot = shots[language]
        yield Item(
            id=question["id"],
            group=language,
            head=f"{instruction}\n\n",
            shots=(f"{ask(shot)}\n{answer_word} {shot['answers'][0]['text']}\n\n",),
            question=ask(question),
            prefix=answer_word,
            reference=f" {answers[0]}",
            answers=answers,
        )


def _one_shot(folder: Path) -> dict[str, dict[str, Any]]:
    return {language: rows[0] for language, rows in read_object(folder / "tydiqa-one-shot.json").items()}


def _first_of_each_language(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    shots: dict[str, dict[str, Any]] = {}
    for row in rows:
        answers = [{"text": text} for text in row["answers"]["text"]]
        shots.setdefault(_language(row["id"]), {**row, "answers": answers})
    return shots


def _goldp(path: Path) -> Iterator[dict[str, Any]]:
    """Questions of a SQuAD-shaped file with id, context, question and answers."""
    for article in read_object(path)["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield {**question, "context": paragraph["context"]}


def _language(identifier: str) -> str:
    return identifier.partition("-")[0]


def gsm8k_items(folder: Path | None, cut: Cut) -> Iterator[Item]:
    """Eight demonstrations: the first rows of `target.jsonl`, which come from the train split, word for word."""
    if folder is None:
        shots, tests = (list(_hub("openai/gsm8k", "main", split)) for split in ("train", "test"))
        paths = ("openai/gsm8k train", "openai/gsm8k test")
    else:
        paths = (folder / "target.jsonl", folder / "test.jsonl")
        shots, tests = (_json_lines(path, ("question", "answer")) for path in paths)
    shots = shots[: N_SHOTS["gsm8k"]]
    _refuse_overlap("gsm8k", "", {one["question"] for one in shots}, (one["question"] for one in tests))
    for number, one in enumerate(tests):
        yield Item(
            id=f"gsm8k/{number}",
            group="",
            head="Answer the following questions.\n\n",
            shots=tuple(f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n" for shot in shots),
            question=f"Question: {one['question']}",
            prefix="Answer:",
            reference=f" {one['answer']}",
            answers=(one["answer"],),
        )


READERS: dict[str, Callable[[Path | None, Cut], Iterator[Item]]] = {
    "mmlu": mmlu_items,
    "bbh": bbh_items,
    "tydiqa": tydiqa_items,
    "xqa_proxy": xqa_proxy_items,
    "gsm8k": gsm8k_items,
}


def _refuse_overlap(task: str, group: str, demonstrations: set[Any], items: Iterable[Any]) -> None:
    if shared := demonstrations & set(items):
        raise DataError(
            f"{task} {group}: {len(shared)} items to evaluate are also demonstrations, e.g. {str(min(shared))[:80]!r}; "
            "the evaluation file is not a held-out one."
        )


def _json_lines(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}.") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON: {error}") from None
        if not all(isinstance(row.get(column), str) for column in columns):
            raise DataError(f"{path}, line {number}: expected text in {' and '.join(columns)}.")
        rows.append(row)
    return rows


def _hub(path: str, name: str, split: str) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(path, name, split=split)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot load {path!r} ({name}, {split}) from the hub: {error}; give its files with --data-dir."
        ) from None
