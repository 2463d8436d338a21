"""TyDiQA (gold passage): nine languages with one question each as queries."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from gistselect.errors import DataError
from gistselect.tasks.files import find, query, read_object
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


class TyDiQA:
    """Groups are the languages, in the order of `tydiqa/tydiqa-one-shot.json`."""

    name = "tydiqa"
    version = 1

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    def queries(self) -> list[Record]:
        """The first item of each language."""
        path = find(self.data_dir, "tydiqa/tydiqa-one-shot.json")
        return [
            _record(f"tydiqa/{language}/0", row, language, items[0] if items else {}, path)
            for row, (language, items) in enumerate(read_object(path).items())
        ]

    def evaluation(self) -> list[Record]:
        """The items of `tydiqa/tydiqa-goldp-v1.1-dev.json` that are not among the queries.

        Raises `DataError` if the file is missing, or holds the queries only.
        """
        path = find(self.data_dir, "tydiqa/tydiqa-goldp-v1.1-dev.json")
        asked = {record.messages[0].content for record in self.queries()}
        numbers: Counter[str] = Counter()
        records: list[Record] = []
        for item in _gold_passage_items(path):
            language = str(item.get("id")).split("-")[0]
            record = _record(f"tydiqa/{language}/test/{numbers[language]}", len(records), language, item, path)
            if record.messages[0].content not in asked:
                numbers[language] += 1
                records.append(record)
        if not records:
            raise DataError(f"{path} holds no item besides the queries; it must be the TyDiQA development set.")
        return records


def _record(id: str, row: int, language: str, item: dict[str, Any], path: Path) -> Record:
    if language not in PHRASES:
        raise DataError(f"{path}: no wording for the language {language!r}; known: {', '.join(PHRASES)}.")
    instruction, passage_word, question_word, answer_word = PHRASES[language]
    try:
        prompt = f"{instruction}{passage_word} {item['context']}\n{question_word} {item['question']}"
        answer = f" {item['answers'][0]['text']}"
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"{path}, {id}: expected 'context', 'question' and 'answers' with a 'text'.") from error
    return query(id, row, prompt=prompt, prefix=answer_word, answer=answer, group=language)


def _gold_passage_items(path: Path) -> list[dict[str, Any]]:
    try:
        return [
            {**item, "context": paragraph["context"]}
            for article in read_object(path)["data"]
            for paragraph in article["paragraphs"]
            for item in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not in the GoldP form data > paragraphs > qas ({error!r}).") from error
