"""TyDiQA (gold passage): nine languages; one question each as query and demonstration, the rest held out.

`xqa_proxy` asks questions of the same shape that are not TyDiQA, after TyDiQA's demonstrations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gistselect.errors import DataError
from gistselect.tasks.files import Cut, Item, find, hub_rows, query, read_object, refuse_overlap
from gistselect.types import Record

PHRASES = {
    "english": (
        "Answer the following question based on the information in the given passage.",
        "Passage:",
        "Question:",
        "Answer:",
    ),
    "arabic": (
        "أجب على السؤال التالي بناءً على المعلومات في المقطع المعطى.",
        "المقطع:",
        "السؤال:",
        "الإجابة:",
    ),
    "bengali": (
        "প্রদত্ত অধ্যায়ের তথ্যের উপর ভিত্তি করে নিম্নলিখিত প্রশ্নের উত্তর দিন।",
        "অধ্যায়:",
        "প্রশ্ন:",
        "উত্তর:",
    ),
    "finnish": (
        "Vastaa seuraavaan kysymykseen annetun kappaleen tiedon perusteella.",
        "Kappale:",
        "Kysymys:",
        "Vastaus:",
    ),
    "indonesian": (
        "Jawab pertanyaan berikut berdasarkan informasi di bagian yang diberikan.",
        "Bagian:",
        "Pertanyaan:",
        "Jawaban:",
    ),
    "korean": ("주어진 문단의 정보에 기반하여 다음 질문에 답하십시오.", "문단:", "질문:", "답변:"),
    "russian": (
        "Ответьте на следующий вопрос на основе информации в данном отрывке.",
        "Отрывок:",
        "Вопрос:",
        "Ответ:",
    ),
    "swahili": (
        "Jibu swali lifuatalo kulingana na habari kwenye kifungu kilichotolewa.",
        "Kifungu:",
        "Swali:",
        "Jibu:",
    ),
    "telugu": (
        "ఇచ్చిన పేరాలోని సమాచారం ఆధారంగా కింది ప్రశ్నకు సమాధానం ఇవ్వండి.",
        "పేరా:",
        "ప్రశ్న:",
        "సమాధానం:",
    ),
}
"""Published wording: instruction, passage word, question word, answer word."""

HUB = "google-research-datasets/tydiqa"
Question = Mapping[str, Any]
"""`id`, `context`, `question`, and `answers`, a list of objects with `text`."""


class TyDiQA:
    """Groups are the languages, in the order of `tydiqa/tydiqa-one-shot.json`."""

    name = "tydiqa"
    version = 1

    def __init__(self, data_dir: Path | None) -> None:
        self.data_dir = data_dir
        """None reads the hub's data set."""

    def queries(self) -> list[Record]:
        """The first item of each language."""
        return [
            _record(f"tydiqa/{language}/0", row, language, shot)
            for row, (language, shot) in enumerate(self._shots.items())
        ]

    def evaluation(self) -> list[Record]:
        """The items of `tydiqa/tydiqa-goldp-v1.1-dev.json` that are not among the queries.

        Raises `DataError` if the file is missing, or holds the queries only.
        """
        asked = {record.messages[0].content for record in self.queries()}
        numbers: Counter[str] = Counter()
        records: list[Record] = []
        for item in self._held_out:
            language = _language(item)
            record = _record(f"tydiqa/{language}/test/{numbers[language]}", len(records), language, item)
            if record.messages[0].content not in asked:
                numbers[language] += 1
                records.append(record)
        if not records:
            raise DataError(
                f"{self._held_out_path} holds no item besides the queries; it must be the TyDiQA development set."
            )
        return records

    def items(self, cut: Cut) -> list[Item]:
        """All held-out items after one demonstration in their language, passages shortened by `cut`.

        Raises `DataError` for a language without items, or an item that is also a demonstration.
        """
        missing = set(PHRASES) - {_language(one) for one in self._held_out}
        if self.data_dir and missing:
            raise DataError(f"tydiqa: there is no item for {', '.join(sorted(missing))}; is the file complete?")
        return _items("tydiqa", self._held_out, self._shots, cut)

    def files(self) -> list[Path]:
        """Every file that is read; empty for the hub."""
        return [self._shots_path, self._held_out_path] if self.data_dir else []

    @cached_property
    def _shots_path(self) -> Path:
        return find(self.data_dir, "tydiqa/tydiqa-one-shot.json")

    @cached_property
    def _held_out_path(self) -> Path:
        return find(
            self.data_dir,
            "tydiqa/tydiqa-goldp-v1.1-dev.json",
            "tydiqa/dev/tydiqa-goldp-v1.1-dev.json",
            hint=" Put TyDiQA's file there; or evaluate without --data-dir, to use the hub, or on the stand-in "
            "'xqa_proxy' if the folder has it.",
        )

    @cached_property
    def _shots(self) -> dict[str, Question]:
        """The first item of each language."""
        if self.data_dir:
            return _one_shot(self._shots_path)
        shots: dict[str, Question] = {}
        for row in _hub_questions("train"):
            shots.setdefault(_language(row), row)
        return shots

    @cached_property
    def _held_out(self) -> list[Question]:
        return _gold_passage_questions(self._held_out_path) if self.data_dir else _hub_questions("validation")


class XQAProxy:
    """Evaluation only: it has no queries of its own."""

    name = "xqa_proxy"
    version = 1

    def __init__(self, data_dir: Path | None) -> None:
        self.data_dir = data_dir

    def items(self, cut: Cut) -> list[Item]:
        """All items of `xqa_proxy/xqa-proxy.json`, asked as TyDiQA's are. Raises `ConfigError` without a folder."""
        questions, shots = self.files()
        return _items("xqa_proxy", _gold_passage_questions(questions), _one_shot(shots), cut)

    def files(self) -> list[Path]:
        """Both files that are read."""
        names = ("xqa_proxy/xqa-proxy.json", "tydiqa/tydiqa-one-shot.json")
        return [find(self.data_dir, name) for name in names]


def _items(name: str, questions: Sequence[Question], shots: Mapping[str, Question], cut: Cut) -> list[Item]:
    if unknown := {_language(one) for one in questions} - (shots.keys() & PHRASES.keys()):
        raise DataError(f"{name}: no demonstration or no prompt for {', '.join(sorted(unknown))}.")
    refuse_overlap(name, "all languages", {one["id"] for one in shots.values()}, (one["id"] for one in questions))
    return [_item(question, shots[_language(question)], cut) for question in questions]


def _item(question: Question, shot: Question, cut: Cut) -> Item:
    language = _language(question)
    instruction, passage_word, question_word, answer_word = PHRASES[language]
    shown, asked = (
        f"{passage_word} {cut(one['context'])}\n{question_word} {one['question']}" for one in (shot, question)
    )
    answers = tuple(answer["text"] for answer in question["answers"])
    return Item(
        id=question["id"],
        group=language,
        head=f"{instruction}\n\n",
        shots=(f"{shown}\n{answer_word} {shot['answers'][0]['text']}\n\n",),
        question=asked,
        prefix=answer_word,
        reference=f" {answers[0]}",
        answers=answers,
    )


def _record(id: str, row: int, language: str, item: Question) -> Record:
    if language not in PHRASES:
        raise DataError(f"{id}: no wording for the language {language!r}; known: {', '.join(PHRASES)}.")
    instruction, passage_word, question_word, answer_word = PHRASES[language]
    return query(
        id,
        row,
        prompt=f"{instruction}{passage_word} {item['context']}\n{question_word} {item['question']}",
        prefix=answer_word,
        answer=f" {item['answers'][0]['text']}",
        group=language,
    )


def _language(question: Question) -> str:
    return str(question["id"]).partition("-")[0]


def _one_shot(path: Path) -> dict[str, Question]:
    return {
        language: _checked({"id": language, **(items[0] if items else {})}, f"{path}, {language}")
        for language, items in read_object(path).items()
    }


def _gold_passage_questions(path: Path) -> list[Question]:
    try:
        found = [
            {**item, "context": paragraph["context"]}
            for article in read_object(path)["data"]
            for paragraph in article["paragraphs"]
            for item in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not in the GoldP form data > paragraphs > qas ({error!r}).") from error
    return [_checked(item, f"{path}, question {number}") for number, item in enumerate(found, start=1)]


def _hub_questions(split: str) -> list[Question]:
    rows = hub_rows(HUB, "secondary_task", split)
    return [{**row, "answers": [{"text": text} for text in row["answers"]["text"]]} for row in rows]


def _checked(item: Question, place: str) -> Question:
    """The item if it has everything that is read from it. Raises `DataError` if not."""
    try:
        texts = [item["id"], item["context"], item["question"], *(answer["text"] for answer in item["answers"])]
    except (KeyError, TypeError) as error:
        raise DataError(f"{place}: expected 'id', 'context', 'question' and 'answers' with a 'text'.") from error
    if len(texts) < 4 or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{place}: expected text in 'id', 'context' and 'question', and at least one answer.")
    return item
