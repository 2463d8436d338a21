"""A tiny run for tests: a pool, a target and options that take a second on one core."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gistselect.run.config import RunConfig
from gistselect.run.pipeline import execute
from gistselect.run.progress import Reporter, SilentReporter, Step

CONTRACT = {
    "selected.jsonl",
    "selection.parquet",
    "scores.parquet",
    "quarantine.jsonl",
    "rejected_queries.jsonl",
    "subspace.safetensors",
    "subspace.json",
    "spectrum.svg",
    "run.yaml",
    "manifest.json",
    "queries.jsonl",
    "report.html",
    "events.jsonl",
}
TIMED = {"manifest.json", "run.yaml", "report.html", "events.jsonl"}
"""Files of the contract that hold times or paths."""
WARMUP = {"epochs": 2, "learning_rate": 1e-2, "global_batch_size": 4, "adapter": {"rank": 4, "alpha": 8}}


def row(question: str, answer: str, **more: Any) -> dict[str, Any]:
    """A chat row with one exchange."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as JSONL."""
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def write_pool(path: Path) -> Path:
    """50 usable rows and two that are not, with a blank line, mixed key order and other scripts."""
    rng = np.random.default_rng(3)
    lines = []
    for index in range(50):
        a, b = rng.integers(1, 99, size=2)
        answer = [f"The answer is {a + b}.", "größer · 大きい", f"No, it is {b} " * int(rng.integers(1, 9))][index % 3]
        lines.append(json.dumps(row(f"What is {a} and {b}?", answer, id=f"row-{index}", dataset=f"set{index % 3}")))
    lines[7] = lines[7].replace('", "', '",   "')
    lines.insert(20, "")
    lines.insert(30, '{"messages": [')
    lines.insert(31, json.dumps(row("Nothing?", "", id="empty")))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def write_target(path: Path) -> Path:
    """Seven queries in three groups."""
    rows = [row(f"What is {i} and 3?", f"The answer is {i + 3}.", group="ab"[i % 2]) for i in range(6)]
    return write_rows(path, [*rows, row("Which is more?", "大きい", group="c")])


def text_run(folder: Path) -> dict[str, Any]:
    """Options of a run in this folder that needs no model."""
    return {
        "pool": (str(write_pool(folder / "pool.jsonl")),),
        "target": (str(write_target(folder / "sums.jsonl")),),
        "representation": ("bm25",),
        "budget": 10,
        "output": folder / "run",
    }


def run(values: dict[str, Any], reporter: Reporter | None = None, **changes: Any) -> Path:
    """Execute a run with these options; its folder."""
    config = RunConfig.from_values({**values, **changes})
    execute(config, reporter or SilentReporter())
    return config.output


class RecordingReporter(SilentReporter):
    """Keeps what was said, and what was done of each step by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.steps_done: dict[str, list[int]] = {}
        self.last: dict[str, Step] = {}

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def step(self, name: str, total: int | None, unit: str, **more: Any) -> Iterator[Step]:
        done = self.steps_done.setdefault(name, [])
        with super().step(name, total, unit, **more) as step:
            advance = step.advance
            step.advance = lambda amount: (advance(amount), done.append(step.done))[0]
            self.last[name] = step
            yield step


def contents(folder: Path) -> dict[str, bytes]:
    """The contract's files but for those that hold times or paths."""
    return {name: (folder / name).read_bytes() for name in CONTRACT - TIMED}


def adapter_of(folder: Path) -> Path:
    """The first warm-up checkpoint of a run."""
    return min(folder.glob("artifacts/warmup-*/training/checkpoint-*"), key=lambda path: int(path.name[11:]))


def ids(path: Path) -> list[str]:
    """The ids of a JSONL file of the run folder."""
    return [json.loads(line)["id"] for line in path.read_bytes().split(b"\n") if line]
