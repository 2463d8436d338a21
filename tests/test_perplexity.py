"""Perplexity against the model's own loss of single rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM

from reference_errors import assert_like_reference
from test_loss_drop import encoded, plain_losses
from tiny_runs import run


@pytest.mark.parametrize("order", ["mid", "lowest", "highest"])
def test_it_equals_the_models_own_loss_of_single_rows(config: dict[str, Any], pool_file: Path, order: str) -> None:
    output = run(config, representation=(f"perplexity:order={order}",))
    losses = plain_losses(
        AutoModelForCausalLM.from_pretrained(config["model"]).eval(), encoded(config["model"], pool_file)
    )
    expected = {"mid": -np.abs(losses - np.median(losses)), "lowest": -losses, "highest": losses}[order]
    scores = pq.read_table(output / "scores.parquet").to_pydict()
    for column in ("score", "score/sums/a", "score/sums/c"):
        what = "Perplexity", "the model's own loss of single rows"
        assert_like_reference(*what, scores[column], expected, atol=1e-5)
    selected = pq.read_table(output / "selection.parquet").to_pydict()
    assert set(selected["row"]) == {scores["row"][at] for at in np.argsort(-expected)[:10]}
    assert len(list(output.glob("artifacts/prepared-*"))) == (order == "mid")
    assert not list(output.glob("artifacts/warmup-*"))
