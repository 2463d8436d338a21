"""Duplicates and contamination against brute force over sets of words, and against datasketch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from gistselect.data import overlap
from gistselect.data.overlap import (
    HASHES,
    PASSAGE,
    SHINGLE,
    SHORTEST,
    HashedWords,
    NearDuplicates,
    Passages,
    Signatures,
    hashed_blocks,
    repeats,
    said,
    shingles,
    text_digest,
)
from gistselect.data.words import words
from gistselect.linalg.hashing import fingerprints, mixed
from gistselect.types import Message, Record


def record(*texts: str, **more: object) -> Record:
    roles = ("user", "assistant")
    turns = tuple(Message(role=roles[index % 2], content=text) for index, text in enumerate(texts))
    return Record(id="x", source="s", row=0, messages=turns, **more)  # pyright: ignore[reportArgumentType]


def hashed(records: Sequence[Record]) -> HashedWords:
    return HashedWords([said(one) for one in records])


def said_words(one: Record) -> list[str]:
    return [word for text in said(one) for word in words(text)]


def runs(found: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(found[start : start + length]) for start in range(len(found) - length + 1)}


def plain_shingles(one: Record) -> set[tuple[str, ...]]:
    found = said_words(one)
    return (runs(found, SHINGLE) or {tuple(found)}) if found else {("\n".join(said(one)),)}


few_words = st.lists(st.sampled_from(["a", "b", "c", "Dog", "größer", "大きい猫", "7", "x_y"]), max_size=30).map(
    " ".join
)
texts = st.one_of(few_words, st.text(max_size=20))
records = st.lists(st.tuples(texts, texts).map(lambda pair: record(*pair)), max_size=6)


@given(records)
def test_shingles_are_the_runs_of_five_words_of_each_record(rows: list[Record]) -> None:
    values, offsets = shingles(rows, hashed(rows))
    ends = [*offsets.tolist(), len(values)][1:]
    for one, start, stop in zip(rows, offsets.tolist(), ends, strict=True):
        expected = set()
        for run in plain_shingles(one):
            each = fingerprints(run)
            value = each[:1]
            for part in each[1:]:
                value = mixed(value, np.array([part]))
            expected.add(int(value[0]))
        assert set(values[start:stop].tolist()) == expected


@given(records, st.integers(1, 60))
def test_blocks_do_not_matter(rows: list[Record], characters: int) -> None:
    """Signatures and shared passages are the same however many rows are hashed together."""
    made, passages = Signatures(), Passages([("item", record("a b c a b c a b c", "b Dog 7 7 7 7 7 7 7 7 7 7 7 7"))])
    whole = hashed(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "BLOCK", characters)
        parts = [(made.of(some, own), passages.shared(own)) for some, own in hashed_blocks(rows)]
    for index, expected in enumerate((made.of(rows, whole), passages.shared(whole))):
        assert np.array_equal(np.concatenate([expected[:0], *(part[index] for part in parts)]), expected)


def overlapping(rng: np.random.Generator, share: float) -> tuple[Record, Record]:
    """Two records of which about this share of the words are the same, in places."""
    first = rng.integers(10_000, size=400)
    second = np.where(rng.random(400) < share, first, rng.integers(10_000, 20_000, size=400))
    return record(" ".join(map(str, first))), record(" ".join(map(str, second)))


def test_signatures_estimate_the_jaccard_index_as_datasketch_does() -> None:
    """Both lie within four standard errors of the index by brute force, without a bias."""
    rng = np.random.default_rng(0)
    made, ours, theirs, errors = Signatures(), [], [], []
    for share in np.linspace(0.5, 1, 60):
        pair = overlapping(rng, share)
        sets = [plain_shingles(one) for one in pair]
        exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        first, second = made.of(pair, hashed(pair))
        sketches = [MinHash(num_perm=HASHES) for _ in pair]
        for sketch, found in zip(sketches, sets, strict=True):
            sketch.update_batch([" ".join(run).encode() for run in found])
        ours.append(float((first == second).mean()) - exact)
        theirs.append(sketches[0].jaccard(sketches[1]) - exact)
        errors.append(np.sqrt(max(exact * (1 - exact), 1e-12) / HASHES))
    for found in (ours, theirs):
        scaled = np.array(found) / np.maximum(errors, 1e-6)
        assert np.abs(scaled).max() < 4
        assert abs(scaled.mean()) < 4 / np.sqrt(len(found))
        assert 0.6 < scaled.std() < 1.4


def test_a_signature_is_the_least_of_each_hash_function() -> None:
    rows = [record("one two three four five six seven"), record("x"), record("?!")]
    made = Signatures()
    values, offsets = shingles(rows, hashed(rows))
    bounds = [*offsets.tolist(), len(values)]
    for row, signature in enumerate(made.of(rows, hashed(rows))):
        for index in range(HASHES):
            a, b = int(made.factors[index]), int(made.summands[index])
            own = values[bounds[row] : bounds[row + 1]].tolist()
            assert signature[index] == min(((a * (x % 2**32) + b) % 2**64) >> 32 for x in own)


@settings(deadline=None)
@given(st.data(), st.sampled_from([0.6, 0.8, 0.95, 1.0]))
def test_bands_find_what_a_comparison_with_all_finds(data: st.DataObject, threshold: float) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n = data.draw(st.integers(1, 40))
    rows = rng.integers(2**32, size=(3, HASHES), dtype=np.uint32)[rng.integers(3, size=n)]
    changed = np.arange(HASHES) < rng.integers(0, HASHES - int(threshold * HASHES) + 6, size=n)[:, None]
    rows = np.where(rng.permuted(changed, axis=1), rng.integers(4, size=rows.shape, dtype=np.uint32), rows)
    seen, kept = NearDuplicates(threshold), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen, "_grow", seen._grow)
        seen._grow(2)
        for one in rows:
            expected = any((one == other).mean() >= threshold for other in kept)
            assert seen.holds(one) == expected
            if not expected:
                seen.add(one)
                kept.append(one)


def plain_shared(items: list[tuple[str, Record]], row: Record) -> int:
    """The first item that shares a passage with a row, -1 for none."""
    found = said_words(row)
    for number, (_, item) in enumerate(items):
        for text in said(item):
            own = list(words(text))
            length = min(len(own), PASSAGE)
            if length >= SHORTEST and runs(own, length) & runs(found, length):
                return number
    return -1


@settings(deadline=None)
@given(st.data())
def test_passages_equal_brute_force(data: st.DataObject) -> None:
    word = st.sampled_from(["a", "b"])
    text = st.lists(word, max_size=18).map(" ".join)
    items = [(f"item {index}", record(*pair)) for index, pair in enumerate(data.draw(st.lists(st.tuples(text, text))))]
    rows = [record(*pair) for pair in data.draw(st.lists(st.tuples(text, text), max_size=8))]
    passages = Passages(items)
    assert passages.shared(hashed(rows)).tolist() == [plain_shared(items, row) for row in rows]
    short = [all(len(list(words(text))) < SHORTEST for text in said(item)) for _, item in items]
    assert passages.n_short == sum(short)


def test_a_passage_is_found_whatever_its_case_and_punctuation() -> None:
    question = "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May."
    row = record("Solve: NATALIA sold clips to 48 of her friends, in April and then -- she sold half!", "24")
    assert Passages([("gsm8k/1", record(question, "72"))]).shared(hashed([row])).tolist() == [0]
    assert Passages([("short", record("how many in May", "72"))]).n_short == 1


def test_digests_ignore_white_space_and_composition_alone() -> None:
    same = [record("Größe  of\na", "b"), record("Gro\u0308ße of a ", "b")]
    assert len({text_digest(one) for one in same}) == 1
    calls = ({"type": "function", "function": {"name": "f", "arguments": {"x": 1}}},)
    answer = Message(role="assistant", content="", tool_calls=calls)
    called = Record(id="x", source="s", row=0, messages=(Message(role="user", content="a"), answer))
    other = [record("Größe of a", "B"), record("Größe of a", ""), record("Größe of", "a b"), called, record("a", "")]
    assert len({text_digest(one) for one in [same[0], *other]}) == 1 + len(other)
    assert text_digest(record("\ud800", "\x00")) != text_digest(record("\ud801", "\x00"))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=12))
def test_repeated_digests(pairs: list[tuple[int, int]]) -> None:
    digests = np.array(pairs, dtype=np.uint64).reshape(-1, 2).view("V16").reshape(-1)
    places, groups = repeats(digests)
    expected = [place for place, pair in enumerate(pairs) if pairs.count(pair) > 1]
    assert places.tolist() == expected
    for one, group in zip(places.tolist(), groups.tolist(), strict=True):
        same = [place for place in expected if pairs[place] == pairs[one]]
        assert places[groups == group].tolist() == same
