"""How answers are judged: numbers, final answers, words of an answer in any script."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from decimal import Decimal

import pytest

from gistselect.evaluation import scoring


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He has 3 apples and 4 pears, so 7.\n#### 7", "7"),
        ("The total is $1,234.50.", "1234.50"),
        ("It is -5 degrees", "-5"),
        ("minus: −12", "-12"),
        ("the answer is 18.", "18"),
        ("٣ plus ٤ is ٧", "7"),
        (".5 of them", ".5"),
        ("1,200.00", "1200"),
    ],
)
def test_final_number(text: str, number: str) -> None:
    assert scoring.final_number(text) == Decimal(number)


def test_final_number_of_nothing() -> None:
    assert scoring.final_number("") is None
    assert scoring.final_number("no idea") is None
    assert not scoring.number_match("", "#### 7")
    assert not scoring.number_match("eight", "#### 8")
    assert scoring.number_match("So it is 72.0 clips", "48+24 = <<48+24=72>>72\n#### 72")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Let's think step by step. So the answer is (A).", "(A)"),
        ("So the answer is not. So the answer is True.\n\nQ: next", "True"),
        ("so The Answer Is: valid", "valid"),
        ("So the answer is 12.5.", "12.5"),
        ("(B)", "(B)"),
        ("So the answer is", ""),
        ("", ""),
    ],
)
def test_final_answer(text: str, answer: str) -> None:
    assert scoring.final_answer(text) == answer


def test_answer_match_ignores_form_but_not_content() -> None:
    assert scoring.answer_match("a", "(A)")
    assert scoring.answer_match("Yes!", "yes")
    assert not scoring.answer_match("(B)", "(A)")
    assert not scoring.answer_match("", "(A)")
    # Stripped of punctuation, all answers of dyck_languages would be equal.
    assert scoring.answer_match("] ) }", "] ) }")
    assert not scoring.answer_match("> > >", "] ) }")
    assert not scoring.answer_match("", "] ) }")


def independent_f1(answer: str, reference: str) -> float:
    """SQuAD's published normalisation for text in scripts with spaces, written from its description."""

    def words(text: str) -> list[str]:
        text = "".join(c for c in unicodedata.normalize("NFC", text).lower() if c not in set(string.punctuation))
        text = re.sub(r"[^\S ]", " ", "".join(" " if unicodedata.category(c).startswith("P") else c for c in text))
        return [word for word in text.split() if word not in ("a", "an", "the")]

    first, second = words(answer), words(reference)
    common = Counter(first) & Counter(second)
    overlap = sum(common.values())
    if not first or not second:
        return float(first == second)
    if overlap == 0:
        return 0.0
    precision, recall = overlap / len(first), overlap / len(second)
    return 2 * precision * recall / (precision + recall)


ANSWERS = [
    ("The Kigali.", "Kigali", 1.0),
    ("in Kigali, Rwanda", "Kigali", 0.5),
    ("Nairobi", "Kigali", 0.0),
    ("", "Kigali", 0.0),
    ("...", "Kigali", 0.0),
    ("Императорском Казанском университете", "в Императорском Казанском университете", 6 / 7),
    ("«Казань»!", "казань", 1.0),
    ("الإسكندر الأكبر؟", "الإسكندر الأكبر", 1.0),
    ("2289 మంది", "2289", 2 / 3),
    ("서울 특별시", "서울", 2 / 3),
    ("cafe\u0301", "café", 1.0),
    ("the a an", "", 1.0),
    ("a b c d", "d c x", 4 / 6),
]


@pytest.mark.parametrize(("answer", "reference", "score"), ANSWERS)
def test_squad_f1(answer: str, reference: str, score: float) -> None:
    assert scoring.squad_f1(answer, [reference]) == pytest.approx(score)
    assert scoring.squad_f1(answer, [reference]) == pytest.approx(independent_f1(answer, reference))
    assert scoring.squad_exact_match(answer, [reference]) == (score == 1.0)


def test_squad_scores_take_the_best_reference_and_split_unspaced_scripts() -> None:
    assert scoring.squad_f1("Kigali", ["Nairobi", "Kigali city", "Kigali"]) == 1.0
    assert scoring.squad_exact_match("Kigali", ["Nairobi", "the Kigali"])
    assert scoring.squad_tokens("基加利。") == ["基", "加", "利"]
    assert scoring.squad_f1("基加利市", ["基加利"]) == pytest.approx(6 / 7)
    # A Thai vowel sign stays with its letter.
    assert scoring.squad_tokens("ดี") == ["ดี"]


def test_task_scores() -> None:
    assert scoring.score_number({"answers": ["#### 7"]}, ["it is 7"]) == {"exact_match": 1.0}
    assert scoring.score_final_answer({"answers": ["(A)"]}, [" So the answer is (A)."]) == {"exact_match": 1.0}
    assert scoring.score_span({"answers": ["Kigali"]}, [" Kigali\nQuestion: x"]) == {"f1": 1.0, "exact_match": 1.0}
    assert scoring.score_text({"answers": ["x y"]}, [" x y "]) == {"exact_match": 1.0}
    item = {"choices": [" A", " B", " C", " D"], "answers": [" C"]}
    likelihoods = [(-3.0, False), (-2.0, False), (-1.0, True), (-4.0, False)]
    assert scoring.score_choice(item, likelihoods) == {"accuracy": 1.0}  # pyright: ignore[reportArgumentType]
