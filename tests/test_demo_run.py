"""The truth of the method on a real language model: the target loss after fine-tuning (METHOD section 6, point 5)."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from gistselect.demo import demo_config
from gistselect.run.config import RunConfig
from gistselect.run.pipeline import execute
from gistselect.run.progress import SilentReporter


@pytest.mark.slow
def test_selected_rows_teach_more_than_random_rows(tmp_path: Path) -> None:
    """A third of the demo's pool, fewer queries and items; judged by the loss, not by where the rows come from."""
    folder = Path(str(files("gistselect.demo")))
    lines = [
        line
        for path in sorted(folder.glob("data/train/processed/*/*.jsonl"))
        for line in path.read_bytes().splitlines(keepends=True)
    ]
    (tmp_path / "pool.jsonl").write_bytes(b"".join(lines[::3]))
    config = demo_config(folder, tmp_path / "run").model_dump(mode="json", exclude_none=True)
    config |= {
        "pool": [str(tmp_path / "pool.jsonl")],
        "max_queries": 40,
        "max_length": 320,
        "budget": 48,
        "warmup_share": 0.15,
        "train_seeds": [0, 1],
        "heldout_items": 40,
        "device": "cpu",
    }
    execute(RunConfig.from_values(config), SilentReporter())
    (comparison,) = json.loads((tmp_path / "run" / "comparison.json").read_text())
    loss = {row["arm"]: row["interval"]["mean"] for row in comparison["rows"]}
    assert loss["GIST"] < loss["random rows"] < loss["before"]
    assert loss["random rows"] - loss["GIST"] > 0.02
