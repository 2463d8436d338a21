"""Representations through the real run, against slow and obvious versions."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.numpy import load_file

from dense_reference import dense_gradients
from gistselect.errors import ConfigError
from gistselect.linalg.projection import dense_signs
from gistselect.representations.specification import label, parse
from gistselect.run.config import RunConfig
from gistselect.streams import Stream, generator
from reference_errors import assert_like_reference
from tiny_runs import RecordingReporter, ids, row, run, write_rows


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
        assert_like_reference("BM25", "loop over words", scores[f"score/mine/{group}"], expected[group], rtol=1e-5)
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


@pytest.mark.parametrize("name", ["less", "less_adam"])
def test_less_equals_the_dense_method_at_all_checkpoints(
    config: dict[str, Any], pool_file: Path, target_file: Path, name: str
) -> None:
    """Every step by the formula in float64; only the random signs are the tool's own."""
    output = run(config, representation=(f"{name}:dimension=512",), warmup_checkpoints=(1, 2))
    folders = sorted(output.glob("artifacts/warmup-*/training/checkpoint-*"), key=lambda path: int(path.name[11:]))
    rates = [one["mean_learning_rate"] for one in _warmup_facts(output)]
    pool, queries = usable(pool_file), usable(target_file)
    groups = [json.loads(line)["group"] for line in target_file.read_bytes().split(b"\n") if line]
    total, energy = np.zeros((len(pool), 3)), np.zeros(len(pool))
    for folder, rate in zip(folders, rates, strict=True):
        moments = load_file(folder / "moments.safetensors")
        parameters = sorted(name.partition("/")[2] for name in moments if name.startswith("exp_avg/"))
        assert parameters
        g, q = (dense_gradients(config["model"], folder, rows) for rows in (pool, queries))
        order = _parameter_order(config["model"], folder)
        m = np.concatenate([moments[f"exp_avg/{name}"].ravel() for name in order]).astype(np.float64)
        v = np.concatenate([moments[f"exp_avg_sq/{name}"].ravel() for name in order]).astype(np.float64)
        step = _step(folder)
        b1, b2, eps = 0.9, 0.999, 1e-8
        m1, v1 = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        if name == "less":
            update = m1 / np.sqrt(v1 + eps)
        else:
            update = (m1 / (1 - b1 ** (step + 1))) / (np.sqrt(v1 / (1 - b2 ** (step + 1))) + eps)
        P, Q = (_projected(values, config["model"], folder, 512) for values in (update, q))
        cosines = (P @ Q.T) / np.linalg.norm(P, axis=1)[:, None] / np.linalg.norm(Q, axis=1)
        for index, group in enumerate("abc"):
            total[:, index] += rate / sum(rates) * cosines[:, [one == group for one in groups]].mean(axis=1)
        energy += rate / sum(rates) * ((P @ np.linalg.qr(Q.T)[0]) ** 2).sum(axis=1) / (P**2).sum(axis=1)
    scores = scores_of(output)
    for index, group in enumerate("abc"):
        what = {"less": "LESS", "less_adam": "LESS with Adam's step"}[name], "its formula on looped gradients, float64"
        assert_like_reference(*what, scores[f"score/sums/{group}"], total[:, index], atol=2e-4)
    assert_allclose(scores["captured_energy"], energy, atol=2e-3)
    facts = json.loads(next(output.glob("artifacts/scores-*/complete.json")).read_text())["facts"]
    assert 0 < facts["null_score_quantiles"]["sums"]["0.5"] < facts["null_score_quantiles"]["sums"]["0.99"] < 0.5


def test_rds_equals_a_loop_over_single_rows(config: dict[str, Any], pool_file: Path, target_file: Path) -> None:
    """No adapter and no warm-up: the last hidden states of the base model, one row at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output = run(config, representation=("rds",))
    assert not list(output.glob("artifacts/warmup-*"))
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    model = AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float64).eval()

    def mean_states(rows: list[tuple[str, str]]) -> np.ndarray:
        found = []
        for question, answer in rows:
            text = f"<|user|>\n{question}\n<|assistant|>\n{answer.strip()}</s>\n"
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.no_grad():
                states = model.model(input_ids=ids).last_hidden_state[0].numpy()
            weights = np.arange(1, len(states) + 1)
            found.append(weights @ states / weights.sum())
        return np.stack(found)

    pool, queries = mean_states(usable(pool_file)), mean_states(usable(target_file))
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (pool, queries)]
    cosines = unit[0] @ unit[1].T
    groups = np.array([json.loads(line)["group"] for line in target_file.read_bytes().split(b"\n") if line])
    scores = scores_of(output)
    for group in "abc":
        expected, what = cosines[:, groups == group].mean(axis=1), ("RDS+", "loop over single rows, float64")
        assert_like_reference(*what, scores[f"score/sums/{group}"], expected, atol=1e-5)
    assert np.isfinite(scores["loss"]).all()


def test_mean_of_scores_and_score_of_the_mean_are_different_estimators(config: dict[str, Any]) -> None:
    output = run(config, representation=("gist", "less:dimension=256"))
    assert not np.allclose(
        scores_of(output)["score/sums/a"], scores_of(output, "less-dimension-256")["score/sums/a"], atol=1e-2
    )


def test_methods_in_one_pass_equal_each_alone(config: dict[str, Any], target_file: Path, tmp_path: Path) -> None:
    """To the bit, whatever else the pass serves; each token shard is read once for all of them."""
    second = write_rows(target_file.with_name("words.jsonl"), [row("Which is more?", "größer")])
    two = {**config, "target": (str(target_file), str(second))}
    specifications = ("gist", "less:dimension=64", "gist:sketch=8", "rds", "bm25")
    reporter = RecordingReporter()
    together = run(two, reporter, representation=specifications)
    assert len([name for name in reporter.last if name.startswith("pool gradients")]) == 1
    for number, specification in enumerate(specifications):
        alone = run(two, representation=(specification,), output=tmp_path / f"alone-{number}", adapter=None)
        mine = together if number == 0 else together / "methods" / label(specification)
        if specification != "bm25":
            # bm25 alone has no tokenizer and so more columns are missing; its scores are compared below.
            assert (mine / "scores.parquet").read_bytes() == (alone / "scores.parquet").read_bytes()
        assert pq.read_table(mine / "scores.parquet")["score"] == pq.read_table(alone / "scores.parquet")["score"]
        assert (mine / "selected.jsonl").read_bytes() == (alone / "selected.jsonl").read_bytes()


def test_less_without_moments_says_what_to_do(config: dict[str, Any], tmp_path: Path) -> None:
    output = run(config)
    adapter = next(output.glob("artifacts/warmup-*/training/checkpoint-*"))
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in adapter.glob("adapter_*"):
        (bare / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match="moments"):
        run(config, representation=("less",), adapter=bare, output=tmp_path / "again")


def test_options_of_a_specification() -> None:
    config = RunConfig.model_construct(
        rank=7, rtol=1e-3, sketch=None, keep_sketch=False, energy_weighting=False, seed=3
    )
    assert parse("gist", config).model_dump()["rank"] == 7
    assert parse("gist:rank=0.5", config).model_dump()["rank"] == 0.5
    assert parse("gist:rank=9,sketch=4", config).model_dump()["sketch"] == 4
    assert label("less:dimension=64,nonzeros=8") == "less-dimension-64-nonzeros-8"
    assert label("embedding:encoder=/home/me/my models/mini lm/,tokens=8") == "embedding-encoder-mini-lm-tokens-8"
    assert label("embedding:encoder=C:\\models\\..") == "embedding-encoder"
    assert len(label(f"embedding:encoder={'x' * 999}")) < 120
    assert label(f"embedding:encoder={'x' * 999}") != label(f"embedding:encoder={'x' * 998}")
    for wrong, message in {
        "less:dimension": "name=value",
        "less:dimension=0": "dimension",
        "less:size=3": "its options",
        "less:direction=adam": "no option 'direction'; .*--representation less_adam",
        "../x": "not understood",
        "embedding": "--encoder",
        "bm25:k1=1\n2": "not understood",
        "gits": "Did you mean 'gist'",
    }.items():
        with pytest.raises(ConfigError, match=message):
            parse(wrong, config)


def _warmup_facts(output: Path) -> list[dict[str, Any]]:
    found = json.loads(next(output.glob("artifacts/warmup-*/complete.json")).read_text())
    return found["facts"]["checkpoints"]


def _step(folder: Path) -> int:
    return int(folder.name[11:])


def _parameters(model: str, adapter: Path) -> dict[str, int]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(adapter), is_trainable=True)
    return {name: value.numel() for name, value in loaded.named_parameters() if "lora_" in name}


def _parameter_order(model: str, adapter: Path) -> list[str]:
    return list(_parameters(model, adapter))


def _projected(values: np.ndarray, model: str, adapter: Path, width: int) -> np.ndarray:
    """(n, width): each parameter's part times its own signs, divided by sqrt(width)."""
    total, start = np.zeros((len(values), width)), 0
    for name, size in _parameters(model, adapter).items():
        key = int(generator(0, Stream.PROJECTION, *name.encode()).integers(2**63))
        signs = dense_signs(key, 0, size, width, torch.zeros(1, dtype=torch.float64)).numpy()
        total += values[:, start : start + size] @ signs / width**0.5
        start += size
    return total
