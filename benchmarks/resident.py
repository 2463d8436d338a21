"""Resident memory while one process goes through many rows: does it grow with them?

    python benchmarks/resident.py --output /tmp/resident --rows 50000 --small
    python benchmarks/resident.py --output /tmp/resident-demo --rows 10000

Short rows that are made of the words of the embedded pool, through every pass of one `run`: reading, tokenising, a pass
over texts (BM25), forward passes (RDS+), backward passes (GIST), and scoring; with the embedded model, or with a random
one of two layers of 32 units, for which rows are cheap. Resident memory is looked at every half second of each; the
slope is that of a straight line through what came after the first fifth of the rows. The folder must be new. Writes its
part of benchmarks/results/resident.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import gistselect
from gistselect.bench.measure import _status_bytes
from gistselect.files import write_json
from gistselect.run.config import RunConfig
from gistselect.run.pipeline import execute
from gistselect.run.progress import SilentReporter, Step

DEMO = Path(gistselect.__file__).parent / "demo"
RESULTS = Path(__file__).parent / "results" / "resident.json"
EVERY = 0.5
"""Seconds between two looks."""
SETTLED = 0.2
"""Share of a step's rows after which its memory counts."""


class Watching(SilentReporter):
    """Notes (rows done, resident bytes) of every step as it goes on."""

    def __init__(self, n_rows: int) -> None:
        super().__init__()
        self.n_rows = n_rows
        self.seen: dict[str, list[tuple[float, int]]] = {}
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, total: int | None, unit: str, **more: Any) -> Iterator[Step]:
        began = time.monotonic()
        with super().step(name, total, unit, **more) as step:
            advance, last = step.advance, 0.0

            def watched(amount: int) -> None:
                nonlocal last
                advance(amount)
                if time.monotonic() - last >= EVERY and unit != "steps":  # those of a training are no rows
                    last = time.monotonic()
                    rows = step.done / step.total * self.n_rows if step.total else step.done
                    self.seen.setdefault(name, []).append((rows, _status_bytes("VmRSS")))

            step.advance = watched
            yield step
        self.seconds[name] = time.monotonic() - began


def slope(seen: list[tuple[float, int]], n_rows: int) -> dict[str, Any]:
    """MB for 10,000 further rows, and where memory stood."""
    settled = np.array([one for one in seen if one[0] >= SETTLED * n_rows])
    megabytes = settled[:, 1] / 1e6
    shown = seen[:: max(1, len(seen) // 40)]
    return {
        "looks": len(settled),
        "mb_at_start": round(seen[0][1] / 1e6, 1),
        "mb_least": round(float(megabytes.min()), 1),
        "mb_most": round(float(megabytes.max()), 1),
        "mb_per_10000_rows": round(float(np.polyfit(settled[:, 0] / 10_000, megabytes, 1)[0]), 2),
        "seen": [[round(rows), round(n_bytes / 1e6, 1)] for rows, n_bytes in shown],
    }


def write_pool(path: Path, n_rows: int) -> None:
    """Chats of 1 to 4 words each side."""
    said = [
        turn["content"]
        for file in sorted((DEMO / "data" / "train" / "processed").rglob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").split("\n")
        if line
        for turn in json.loads(line)["messages"]
    ]
    words = np.array(sorted({word for text in said for word in text.split() if word.isascii()}))
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for row in range(n_rows):
            sides = [" ".join(rng.choice(words, size=rng.integers(1, 5))) for _ in range(2)]
            turns = [{"role": role, "content": side} for role, side in zip(("user", "assistant"), sides, strict=True)]
            file.write(json.dumps({"id": f"row-{row}", "dataset": "made", "messages": turns}) + "\n")


def small_model(folder: Path) -> Path:
    """A seeded random Llama with the embedded model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ends)).save_pretrained(folder)
    return folder


def main() -> None:
    """Make the pool, run, and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--small", action="store_true", help="a random model of two layers of 32 units")
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    pool = options.output / "pool.jsonl"
    write_pool(pool, options.rows)
    config = RunConfig.from_values(
        {
            "model": str(small_model(options.output / "model") if options.small else DEMO / "model"),
            "pool": (str(pool),),
            "target": ("gsm8k",),
            "data_dir": DEMO / "data",
            "max_length": 128,
            "max_queries": 16,
            "representation": ("gist", "rds", "bm25"),
            "budget": "5%",
            "device": "cpu",
            "warmup_share": min(1.0, 100 / options.rows),
            "warmup": {"epochs": 2, "global_batch_size": 8, "adapter": {"rank": 8}},
            "stability_draws": 0,
            "output": options.output / "run",
        }
    )
    watching = Watching(options.rows)
    execute(config, watching)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    n_tokens = json.loads((config.output / "manifest.json").read_text(encoding="utf-8"))["pool"]["n_tokens"]
    found = {
        name: {"seconds": round(watching.seconds[name], 1), **slope(seen, options.rows)}
        for name, seen in watching.seen.items()
        if sum(rows >= SETTLED * options.rows for rows, _ in seen) >= 3
    }
    name = "small" if options.small else "demo"
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    known[name] = {
        "command": f"python benchmarks/resident.py --rows {options.rows}" + " --small" * options.small,
        "commit": commit,
        "machine": f"{os.cpu_count()} busy CPU cores, {torch.get_num_threads()} thread",
        "rows": options.rows,
        "tokens": n_tokens,
        "steps": found,
    }
    write_json(RESULTS, known)
    for name, one in found.items():
        print(f"{name}: {one}", flush=True)


if __name__ == "__main__":
    main()
