"""Representations that read text alone, each against a version that takes a word or a row at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import bm25s
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import chisquare, kstest

from gistselect.data.words import text_of, words
from gistselect.errors import DataError
from gistselect.linalg.hashing import fingerprints, mixed
from gistselect.representations.bm25 import BM25
from gistselect.representations.dsir import DSIR
from gistselect.representations.interface import Features, Representation
from gistselect.representations.length import Length, _bins
from gistselect.representations.queries import Queries
from gistselect.representations.random import Random
from gistselect.types import Message, Record
from reference_errors import assert_like_reference
from tiny_runs import RecordingReporter, run, write_pool, write_target

WORDS = ["a", "cat", "and", "the", "dog", "saw", "rain", "over", "seven", "hills,", "東京都の人口", "größer", "ten"]


def record(number: int, text: str, group: str = "") -> Record:
    return Record(id=f"r{number}", source="s", row=number, messages=(Message(role="user", content=text),), group=group)


def made(n: int, seed: int, most: int = 60) -> list[Record]:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(1, most))) for _ in range(n)]
    return [record(number, text, "ab"[number % 2]) for number, text in enumerate(texts)]


def queries_of(records: Sequence[Record]) -> Queries:
    groups = tuple(one.group for one in records)
    return Queries(target="mine", records=tuple(records), examples=(), groups=groups)


class Shards:
    """Records cut into shards of a size."""

    def __init__(self, records: Sequence[Record], size: int = 7) -> None:
        self.records, self.size = records, size

    def shards(self) -> Iterator[Sequence[Record]]:
        for start in range(0, len(self.records), self.size):
            yield self.records[start : start + self.size]


def scored(one: Representation, pool: Shards, queries: Queries) -> dict[str, np.ndarray]:
    """The scores of each row by its id."""
    prepared = None if one.prepare_inputs is None else one.prepare([], pool, Path())
    fitted = one.fit(queries, pool, Path(), prepared)
    collector = one.collector(fitted if one.per_target else None, pool)
    found = {}
    for records in pool.shards():
        kept = Features(values=collector.take(records).astype(np.float32), measured={})
        values = one.score([kept], [fitted], np.ones(1)).values
        found |= {record.id: row for record, row in zip(records, values, strict=True)}
    return found


def stacked(scores: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([scores[name] for name in sorted(scores, key=lambda name: int(name[1:]))])


def test_bm25_equals_another_package() -> None:
    pool, asked = made(40, 1), made(6, 2)
    found = stacked(scored(BM25(), Shards(pool), queries_of(asked)))
    index = bm25s.BM25(method="lucene", k1=1.2, b=0.75, backend="numpy")
    index.index([list(words(text_of(one))) for one in pool], show_progress=False)
    expected = np.zeros((40, 2))
    for one in asked:
        # bm25s leaves out Lucene's constant factor k1 + 1, and counts a query's word once.
        for word, count in Counter(words(text_of(one))).items():
            expected[:, "ab".index(one.group)] += count * 2.2 * index.get_scores([word]) / 3
    assert_like_reference("BM25 (bm25s)", "the package bm25s", found, expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
@pytest.mark.parametrize("normalise", [False, True])
def test_dsir_equals_a_loop_over_ngrams(smoothing: float, normalise: bool) -> None:
    pool, asked = made(20, 3), made(6, 4, most=8)

    def counts(record: Record) -> list[int]:
        hashed = [int(fingerprints([word])[0]) for word in words(text_of(record))]
        pairs = [
            int(mixed(np.array([first], dtype=np.uint64), np.array([second], dtype=np.uint64))[0])
            for first, second in pairwise(hashed)
        ]
        return [one % 50 for one in hashed + pairs]

    of_pool = Counter(bucket for one in pool for bucket in counts(one))
    expected = np.zeros((20, 2))
    for column, group in enumerate("ab"):
        of_group = Counter(bucket for one in asked if one.group == group for bucket in counts(one))
        total = of_group.total() + 50 * smoothing
        for row, one in enumerate(pool):
            ratios = [
                np.log((of_group[bucket] + smoothing) / total + 1e-8) - np.log(of_pool[bucket] / of_pool.total() + 1e-8)
                for bucket in counts(one)
            ]
            expected[row, column] = np.mean(ratios) if normalise else np.sum(ratios)
    dsir = DSIR(buckets=50, smoothing=smoothing, normalise=normalise, noise=False)
    found = stacked(scored(dsir, Shards(pool), queries_of(asked)))
    assert_like_reference("DSIR", "loop over n-grams", found, expected, rtol=1e-5, atol=1e-5)


def test_noise_of_dsir_draws_in_proportion_to_the_weights() -> None:
    """Three rows of known weights: the first choice follows them over many seeds."""
    pool = [record(0, "cat cat"), record(1, "cat dog"), record(2, "dog dog")]
    asked = queries_of([record(0, "cat cat dog")])
    settings = {"buckets": 5000, "smoothing": 500.0}
    plain = stacked(scored(DSIR(**settings, noise=False), Shards(pool), asked))[:, 0]
    first = Counter(
        int(np.argmax(stacked(scored(DSIR(**settings, seed=seed), Shards(pool), asked)))) for seed in range(600)
    )
    share = np.exp(plain) / np.exp(plain).sum()
    assert chisquare([first[row] for row in range(3)], share * 600).pvalue > 1e-3


def test_the_manifest_and_the_summary_say_what_a_score_is(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool.jsonl")
    values = {
        "pool": (str(tmp_path / "pool.jsonl"),),
        "target": (str(write_target(tmp_path / "sums.jsonl")),),
        "output": tmp_path / "run",
        "representation": ("bm25", "dsir:noise=false"),
    }
    reporter = RecordingReporter()
    methods = json.loads((run(values, reporter) / "manifest.json").read_text(encoding="utf-8"))["methods"]
    assert (methods["bm25"]["title"], methods["bm25"]["score"]) == ("BM25", BM25.definition)
    assert methods["dsir-noise-false"]["score"] == DSIR.definition
    assert any(BM25.definition in text for text in reporter.said)


def test_dsir_without_a_word_in_a_group_says_which() -> None:
    asked = queries_of([record(0, "cat", "a"), record(1, "?!", "b")])
    with pytest.raises(DataError, match="group 'b' of target 'mine'"):
        scored(DSIR(), Shards(made(3, 0)), asked)


def test_random_draws_are_uniform_and_differ_by_seed() -> None:
    pool = Shards(made(3000, 5, most=4))
    asked = queries_of(made(2, 6))
    first, second = (stacked(scored(Random(seed=seed), pool, asked)) for seed in (0, 1))
    assert (first[:, 0] == first[:, 1]).all()
    assert kstest(first[:, 0], "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.1


@pytest.mark.parametrize(("order", "sign"), [("longest", 1), ("shortest", -1)])
def test_length_counts_words(order: str, sign: int) -> None:
    pool = [record(0, "one two, three"), record(1, ""), record(2, "猫と犬と")]
    found = stacked(scored(Length.model_validate({"order": order}), Shards(pool), queries_of(made(2, 6))))
    assert (found == sign * np.array([[3, 3], [0, 0], [3, 3]])).all()


def test_matched_length_draws_the_lengths_of_the_queries() -> None:
    """The best rows of a pool with lengths spread evenly have the queries' lengths."""
    rng = np.random.default_rng(7)
    pool = [record(number, "cat " * int(2 ** rng.uniform(0, 8))) for number in range(4000)]
    asked = [record(number, "cat " * int(n)) for number, n in enumerate(rng.choice([11, 70], size=99, p=[0.25, 0.75]))]
    scores = stacked(scored(Length(), Shards(pool), queries_of(asked)))[:, 0]
    lengths = np.array([len(text_of(one).split()) for one in pool], dtype=float)
    best = np.argsort(-scores)[:200]
    share = np.bincount(_bins(lengths[best]), minlength=20) / 200
    wanted = np.bincount(_bins(np.array([len(text_of(one).split()) for one in asked], dtype=float)), minlength=20) / 99
    assert_allclose(share, wanted, atol=0.12)
    assert share[wanted > 0].sum() > 0.9


@pytest.mark.parametrize("one", [BM25(), DSIR(), DSIR(noise=False, normalise=True), Random(), Length()], ids=str)
def test_neither_order_nor_shards_matter(one: Representation) -> None:
    """Neither of the pool, nor of the queries within their groups."""
    pool, asked = made(30, 8), made(6, 9)
    expected = scored(one, Shards(pool), queries_of(asked))
    turned = queries_of([asked[index] for index in (4, 1, 0, 5, 2, 3)])
    mixed_up = [pool[index] for index in np.random.default_rng(0).permutation(30)]
    for other in (scored(one, Shards(mixed_up, 30), queries_of(asked)), scored(one, Shards(pool, 11), turned)):
        assert other.keys() == expected.keys()
        for name, values in expected.items():
            assert_allclose(other[name], values, rtol=1e-6, atol=1e-6)
