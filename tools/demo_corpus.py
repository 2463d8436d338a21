"""The rows of the demo model: which are held out, which are trained on, and in which order.

Every choice is a function of the row itself and of a salt: the order of the files, of the rows in them and of
the other choices changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from build_demo_data import SOURCES, is_mathematics, read_lines
from demo_recipe import Recipe

FILLER = "p3"
"""The source that fills what the others leave of the token budget."""

Conversation = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Row:
    id: str
    source: str
    messages: Conversation

    @property
    def question(self) -> str:
        return self.messages[0]["content"].strip()


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What the model must not read, by id and by text."""

    pool_ids: frozenset[str]
    pool_questions: frozenset[str]
    evaluation_questions: frozenset[str]

    def reason(self, row: Row, record: dict) -> str | None:
        """Why this row of the corpus (and its record) is kept from training; None if it is not."""
        user_texts = {message["content"].strip() for message in row.messages if message["role"] == "user"}
        if is_mathematics(record):
            return "mathematics"
        if row.id in self.pool_ids:
            return "pool row"
        if user_texts & self.pool_questions:
            return "same question as a pool row"
        if user_texts & self.evaluation_questions:
            return "evaluation item"
        return None


@dataclass(kw_only=True)
class Corpus:
    """Rows by purpose, `training` in training order; `held_out` counts what was kept from training, by reason."""

    training: list[Row] = field(default_factory=list)
    validation: list[Row] = field(default_factory=list)
    pool: list[Row] = field(default_factory=list)
    held_out: Counter[str] = field(default_factory=Counter)


def row_fraction(text: str, purpose: str, seed: int) -> float:
    """A uniform number in [0, 1) that is a function of the text alone; numbers of two purposes are unrelated."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{purpose}\n{text}".encode()).digest()[:7]) / 2**56


def read_rows(path: Path) -> Iterator[tuple[Row, dict]]:
    for line in read_lines(path):
        record = json.loads(line)
        yield Row(id=record["id"], source=record["dataset"], messages=record["messages"]), record


def pool_rows(demo: Path) -> list[Row]:
    return [row for path in sorted(demo.glob("train/processed/*/*_data.jsonl")) for row, _ in read_rows(path)]


def evaluation_questions(data: Path) -> frozenset[str]:
    """Every GSM8K and BBH question of the full corpus, not only those in the demo."""
    gsm8k = [
        json.loads(line)["question"]
        for name in ("target", "test")
        for line in read_lines(data / f"eval/gsm8k/{name}.jsonl")
    ]
    tasks = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((data / "eval/bbh/bbh").glob("*.json"))]
    bbh = [item["input"] for task in tasks for item in task["examples"]]
    return frozenset(text.strip() for text in gsm8k + bbh)


def read_corpus(data: Path, demo: Path, recipe: Recipe) -> Corpus:
    """Sort every permissively licensed row into training, validation or held out."""
    corpus = Corpus(pool=pool_rows(demo))
    held_out = HeldOut(
        pool_ids=frozenset(row.id for row in corpus.pool),
        pool_questions=frozenset(row.question for row in corpus.pool),
        evaluation_questions=evaluation_questions(data),
    )
    for source in sorted(SOURCES):
        for row, record in read_rows(data / "train/processed" / source / f"{source}_data.jsonl"):
            if reason := held_out.reason(row, record):
                corpus.held_out[reason] += 1
            elif row_fraction(row.question, "validation", recipe.seed) < recipe.validation_share:
                corpus.validation.append(row)
            else:
                corpus.training.append(row)
    corpus.training.sort(key=lambda row: row_fraction(row.id, "order", recipe.seed))
    return corpus


def rows_within_budget(rows: Sequence[Row], lengths: Sequence[int], recipe: Recipe) -> list[int]:
    """Indices of the rows to train on, in the given order: every source in full, the filler up to the budget.

    The filler's rows are taken by the hash of their own id, smallest first, until one would exceed the budget;
    where a row stands in the order of training plays no part. `lengths` are in tokens.
    """
    fillers = [index for index, row in enumerate(rows) if row.source == FILLER]
    fillers.sort(key=lambda index: row_fraction(rows[index].id, "budget", recipe.seed))
    kept = {index for index, row in enumerate(rows) if row.source != FILLER}
    left = recipe.tokens - sum(lengths[index] for index in kept)
    for index in fillers:
        left -= lengths[index]
        if left < 0:
            break
        kept.add(index)
    return sorted(kept)


def share_by_tenth(rows: Sequence[Row], source: str) -> list[float]:
    """The share of a source among the rows in each tenth of the run."""
    bounds = [len(rows) * tenth // 10 for tenth in range(11)]
    tenths = [rows[start:stop] for start, stop in pairwise(bounds)]
    return [sum(row.source == source for row in tenth) / len(tenth) for tenth in tenths]
