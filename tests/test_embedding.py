"""The representation `embedding`: a tiny BERT, one text at a time, and what makes its results other ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.testing import assert_allclose

from gistselect.errors import ConfigError, ModelError
from gistselect.model.config import ModelConfig
from gistselect.model.encoder import TextEncoder
from gistselect.run.remember import recall
from reference_errors import assert_like_reference
from tiny_runs import run

TEXTS = ["a cat", "", "the dog saw ten hills and rain and rain and rain and rain", "x", "größer 大きい", "b cat 3?"]


@pytest.fixture
def text_run(pool_file: Path, target_file: Path, tmp_path: Path, tiny_encoder: Path) -> dict[str, Any]:
    return {
        "pool": (str(pool_file),),
        "target": (str(target_file),),
        "output": tmp_path / "run",
        "budget": 3,
        "representation": ("embedding",),
        "encoder": str(tiny_encoder),
    }


def one_by_one(folder: Path, texts: list[str], most: int = 24) -> np.ndarray:
    """Mean last hidden states, a text at a time without any padding, in float64."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    found = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        ids = [*ids[: most - 1], ids[-1]] if len(ids) > most else ids
        with torch.no_grad():
            found.append(model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0).numpy())
    return np.stack(found)


@pytest.mark.parametrize("most", [512, 8])
def test_embeddings_equal_single_texts(tiny_encoder: Path, most: int) -> None:
    """Whatever stands beside a text; the model's positions end at 24 tokens."""
    encoder = TextEncoder(ModelConfig(path=str(tiny_encoder), device="cpu"), most)
    expected = one_by_one(tiny_encoder, TEXTS, min(most, 24))
    assert_allclose(encoder.embed(TEXTS), expected, atol=1e-5)
    assert_allclose(encoder.embed(TEXTS[::-1]), expected[::-1], atol=1e-5)
    assert encoder.embed([]).shape == (0, 16)


def test_a_causal_language_model_serves_too(tiny_model: Path) -> None:
    texts = ["a cat", "What is the sum?", ""]
    encoder = TextEncoder(ModelConfig(path=str(tiny_model), device="cpu"), 512)
    found = encoder.embed(texts)
    assert_allclose(found[:2], one_by_one(tiny_model, texts[:2]), atol=1e-5)
    assert np.isnan(found[2]).all()  # no token at all, and so no mean


def test_a_run_ranks_by_cosine_and_loads_no_language_model(text_run: dict[str, Any], tiny_encoder: Path) -> None:
    output = run(text_run)
    lines = [json.loads(line) for line in Path(text_run["target"][0]).read_text().splitlines()]
    pool = [json.loads(line) for line in Path(text_run["pool"][0]).read_text().splitlines() if line.endswith("}")]
    pool = [one for one in pool if one["messages"][1]["content"]]
    q, p = (
        one_by_one(tiny_encoder, ["\n".join(turn["content"] for turn in one["messages"]) for one in rows])
        for rows in (
            [{**one, "messages": [*one["messages"], {"content": ""}]} for one in part] for part in (lines, pool)
        )
    )
    cosines = (p @ q.T) / np.linalg.norm(p, axis=1)[:, None] / np.linalg.norm(q, axis=1)
    groups = np.array([one["group"] for one in lines])
    scores = pq.read_table(output / "scores.parquet").to_pydict()
    for group in "abc":
        expected, what = cosines[:, groups == group].mean(axis=1), ("Embedding", "one text at a time, float64")
        assert_like_reference(*what, scores[f"score/sums/{group}"], expected, atol=1e-5)
    assert not list(output.glob("artifacts/tokens-*"))
    assert recall(output).encoder == str(tiny_encoder)


def test_another_encoder_under_the_same_name_is_another_one(
    text_run: dict[str, Any], tiny_encoder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModel

    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, folder)
    named = {**text_run, "encoder": None, "representation": (f"embedding:encoder={folder}",)}
    first = pq.read_table(run(named) / "scores.parquet")["score"]
    features = set(named["output"].glob("artifacts/features-*"))
    moved = folder.rename(tmp_path / "elsewhere")
    run({**named, "representation": (f"embedding:encoder={moved}",)})
    assert set(named["output"].glob("artifacts/features-*")) == features
    model = AutoModel.from_pretrained(moved)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.mul_(-1.5)
    model.save_pretrained(folder)
    for path in moved.glob("*token*"):
        shutil.copy(path, folder)
    second = pq.read_table(run(named) / "scores.parquet")["score"]
    assert len(set(named["output"].glob("artifacts/features-*"))) == 2
    assert first != second
    run({**named, "representation": (f"embedding:encoder={folder},tokens=6",)})
    assert len(set(named["output"].glob("artifacts/features-*"))) == 3


def test_what_is_no_encoder_is_said_before_any_work(text_run: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--encoder"):
        run({**text_run, "encoder": None})
    with pytest.raises(ModelError, match="there is no model folder"):
        run({**text_run, "encoder": str(tmp_path / "missing")})
    assert not list(text_run["output"].glob("artifacts/*"))
