"""How a model's answer is judged: pure functions of strings. The YAML files name the `score_*` ones."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

_NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?|[-−]?\.\d+")
_ANSWER_IS = re.compile(r"the answer is", re.IGNORECASE)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def final_number(text: str) -> Decimal | None:
    """The last number in a text, thousands separators removed; None if there is none."""
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "").replace("−", "-")) if numbers else None


def number_match(answer: str, reference: str) -> bool:
    """Whether the final numbers are equal as numbers (`1,200.00` equals `1200`)."""
    found = final_number(answer)
    return found is not None and found == final_number(reference)


def final_answer(text: str) -> str:
    """What follows the last "the answer is", to the end of its line and without the final stop.

    Without the phrase it is the whole text, as in the published scoring.
    """
    matches = list(_ANSWER_IS.finditer(text))
    if not matches:
        return text.strip()
    rest = text[matches[-1].end() :].lstrip(" \t:")
    return rest.partition("\n")[0].strip().removesuffix(".").strip()


def answer_match(answer: str, reference: str) -> bool:
    """Equality that ignores case, punctuation and white space.

    A reference of nothing but punctuation (`dyck_languages`) is compared as it stands: stripped of its
    punctuation it would equal every other such answer.
    """
    if not _without_punctuation(reference).strip():
        return answer.split() == reference.split()
    return _without_punctuation(answer.lower()).split() == _without_punctuation(reference.lower()).split()


def squad_tokens(text: str) -> list[str]:
    """Words of an answer as SQuAD and MLQA compare them, in any script.

    NFC, lower case; ASCII punctuation vanishes, as in SQuAD, and other Unicode punctuation becomes a space;
    English articles go; letters of scripts written without spaces (Han, Kana, Thai, Lao, Khmer, Myanmar) are
    words of their own, as in MLQA's mixed segmentation.
    """
    text = unicodedata.normalize("NFC", text).lower()
    text = "".join("" if _is_ascii_punctuation(c) else " " if unicodedata.category(c)[0] == "P" else c for c in text)
    text = _ARTICLES.sub(" ", text)
    return "".join(f" {cluster} " if _is_unspaced(cluster[0]) else cluster for cluster in _clusters(text)).split()


def squad_f1(answer: str, references: Sequence[str]) -> float:
    """Largest word F1 with a reference (Rajpurkar et al. 2016); two empty answers agree."""
    return max(_word_f1(squad_tokens(answer), squad_tokens(reference)) for reference in references)


def squad_exact_match(answer: str, references: Sequence[str]) -> bool:
    """Whether the normalised answer is one of the normalised references."""
    return any(squad_tokens(answer) == squad_tokens(reference) for reference in references)


def score_number(item: dict[str, Any], outputs: list[str]) -> dict[str, float]:
    """GSM8K: exact match of the final number."""
    return {"exact_match": float(any(number_match(outputs[0], reference) for reference in item["answers"]))}


def score_final_answer(item: dict[str, Any], outputs: list[str]) -> dict[str, float]:
    """BBH: exact match of the text after "So the answer is"."""
    found = final_answer(outputs[0])
    return {"exact_match": float(any(answer_match(found, reference) for reference in item["answers"]))}


def score_span(item: dict[str, Any], outputs: list[str]) -> dict[str, float]:
    """TyDiQA and its like: word F1 and exact match. Only the first line of the output is the answer."""
    answer = outputs[0].strip().partition("\n")[0]
    return {
        "f1": squad_f1(answer, item["answers"]),
        "exact_match": float(squad_exact_match(answer, item["answers"])),
    }


def score_text(item: dict[str, Any], outputs: list[str]) -> dict[str, float]:
    """Targets of your own: the output equals the reference but for outer white space."""
    return {"exact_match": float(any(outputs[0].strip() == reference.strip() for reference in item["answers"]))}


def score_choice(item: dict[str, Any], outputs: list[tuple[float, bool]]) -> dict[str, float]:
    """MMLU: the reference letter is the likeliest of the letters."""
    likelihoods = [likelihood for likelihood, _ in outputs]
    return {"accuracy": float(likelihoods.index(max(likelihoods)) == item["choices"].index(item["answers"][0]))}


def _word_f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))


def _without_punctuation(text: str) -> str:
    return "".join(c for c in text if unicodedata.category(c)[0] != "P" and not _is_ascii_punctuation(c))


def _is_ascii_punctuation(character: str) -> bool:
    # ASCII marks such as $ + < = are symbols to Unicode and punctuation to SQuAD.
    return character.isascii() and character.isprintable() and not character.isalnum() and character != " "


def _clusters(text: str) -> list[str]:
    """Characters with the combining marks that follow them (a Thai vowel sign is no word of its own)."""
    clusters: list[str] = []
    for character in text:
        if clusters and unicodedata.category(character)[0] == "M":
            clusters[-1] += character
        else:
            clusters.append(character)
    return clusters


def _is_unspaced(character: str) -> bool:
    code = ord(character)
    return (
        0x0E00 <= code <= 0x0EFF  # Thai, Lao
        or 0x1000 <= code <= 0x109F  # Myanmar
        or 0x1780 <= code <= 0x17FF  # Khmer
        or 0x3040 <= code <= 0x30FF  # Hiragana, Katakana
        or 0x3400 <= code <= 0x4DBF
        or 0x4E00 <= code <= 0x9FFF
        or 0xF900 <= code <= 0xFAFF
        or 0x20000 <= code <= 0x323AF  # Han
    )
