"""Representations through the real run, against slow and obvious versions, and the conformance of all."""

from __future__ import annotations

import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose

from gistselect.errors import ConfigError
from gistselect.registry import names, resolve
from gistselect.representations.interface import Representation
from gistselect.representations.specification import label, parse
from gistselect.run.config import RunConfig
from tiny_runs import ids, row, run, write_rows


def scores_of(folder: Path, name: str = "") -> dict[str, Any]:
    where = folder / "methods" / name if name else folder
    return pq.read_table(where / "scores.parquet").to_pydict()


def usable(path: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line.startswith(b'{"messages": [{')]
    pairs = [(one["messages"][0]["content"], one["messages"][1]["content"]) for one in rows]
    return [pair for pair in pairs if pair[1]]


def by_loop(query: str, texts: list[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    """BM25 of one query (Robertson & Zaragoza 2009, Lucene's idf), a text and a word at a time."""
    split = [re.findall(r"[a-z0-9äöüß]+|[一-龥ぁ-ん]+", text.lower()) for text in texts]
    mean = sum(map(len, split)) / len(split)
    found = []
    for words in split:
        total = 0.0
        for word in re.findall(r"[a-z0-9äöüß]+|[一-龥ぁ-ん]+", query.lower()):
            holding = sum(word in one for one in split)
            idf = math.log(1 + (len(split) - holding + 0.5) / (holding + 0.5))
            frequency = words.count(word)
            total += idf * frequency * (k1 + 1) / (frequency + k1 * (1 - b + b * len(words) / mean))
        found.append(total)
    return found


def test_bm25_equals_a_loop_over_words_and_needs_no_model(tmp_path: Path) -> None:
    texts = ["the cat sat on the mat", "the dog sat", "a cat and a cat and a dog", "nothing here", "rain, rain"]
    pool = [row(text, "yes no"[: 3 * (index % 2) + 3], id=f"r{index}") for index, text in enumerate(texts)]
    queries = [("where is the cat?", "on the mat", "a"), ("dog or cat", "dog", "a"), ("rain", "rain again", "b")]
    write_rows(tmp_path / "pool.jsonl", pool)
    write_rows(tmp_path / "mine.jsonl", [row(q, a, group=g) for q, a, g in queries])
    output = run(
        {
            "pool": (str(tmp_path / "pool.jsonl"),),
            "target": (str(tmp_path / "mine.jsonl"),),
            "output": tmp_path / "run",
            "budget": 2,
            "representation": ("bm25",),
        }
    )
    whole = ["\n".join(turn["content"] for turn in one["messages"]) for one in pool]
    expected = {"a": np.zeros(len(pool)), "b": np.zeros(len(pool))}
    for question, answer, group in queries:
        size = sum(one[2] == group for one in queries)
        expected[group] += np.array(by_loop(f"{question} {answer}", whole)) / size
    scores = scores_of(output)
    for group in "ab":
        assert_allclose(scores[f"score/mine/{group}"], expected[group], rtol=1e-5)
    best = np.maximum(expected["a"], expected["b"])
    assert ids(output / "selected.jsonl") == [f"r{index}" for index in np.argsort(-best, kind="stable")[:2]]
    assert not list(output.glob("artifacts/tokens-*"))
    assert "loss" not in scores


def test_scripts_without_spaces_share_pairs_of_characters(tmp_path: Path) -> None:
    write_rows(tmp_path / "pool.jsonl", [row("東京都の人口", "多い", id="near"), row("猫と犬", "かわいい", id="far")])
    write_rows(tmp_path / "mine.jsonl", [row("京都の天気", "晴れ")])
    output = run(
        {
            "pool": (str(tmp_path / "pool.jsonl"),),
            "target": (str(tmp_path / "mine.jsonl"),),
            "output": tmp_path / "run",
            "budget": 1,
            "representation": ("bm25",),
        }
    )
    assert ids(output / "selected.jsonl") == ["near"]


@pytest.mark.parametrize("name", names("representation"))
def test_conformance(name: str, config: dict[str, Any]) -> None:
    kind: type[Representation] = resolve("representation", name)
    one = parse(name, RunConfig.from_values(config))
    assert isinstance(one, kind)
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(one) == hash(parse(name, RunConfig.from_values(config)))
    assert kind.name == name
    assert kind.title
    assert kind.definition
    assert kind.unscored
    json.dumps([one.fit_inputs, one.pool_inputs, one.score_inputs])


def test_options_of_a_specification() -> None:
    config = RunConfig.model_construct(
        rank=7, rtol=1e-3, sketch=None, keep_sketch=False, energy_weighting=False, seed=3
    )
    assert parse("gist", config).model_dump()["rank"] == 7
    assert parse("gist:rank=0.5", config).model_dump()["rank"] == 0.5
    assert parse("gist:rank=9,sketch=4", config).model_dump()["sketch"] == 4
    assert label("less:dimension=64,projection=sparse") == "less-dimension-64-projection-sparse"
    for wrong, message in {
        "bm25:k1": "name=value",
        "bm25:b=2": "b ",
        "bm25:size=3": "its options",
        "../x": "not understood",
        "gits": "Did you mean 'gist'",
    }.items():
        with pytest.raises(ConfigError, match=message):
            parse(wrong, config)
