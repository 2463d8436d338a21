"""How far scores move, and which rows are selected, where only the way of computing changes.

    python benchmarks/repeatability.py --output /tmp/same [--rows 400] [--seconds 150]

The embedded model, one warm-up, and its checkpoint for every variant: each is a command of its own in a folder of its
own. Of each method the largest change of a score, also in standard deviations of the scores, and how many of the rows
of a budget of 5 % are others. "with its warm-up" trains the adapter anew as well. Finished variants are kept, so the
same command goes on. Writes benchmarks/results/repeatability.json of all that are finished.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gistselect
from gistselect.files import write_json
from gistselect.run.store import read_table

DEMO = Path(gistselect.__file__).parent / "demo"
RESULTS = Path(__file__).parent / "results" / "repeatability.json"
METHODS = ("gist", "less:dimension=1024", "ekfac", "rds", "loss_drop", "bm25")
BUDGET = "5%"
MAIN = "from gistselect.cli import main; main()"
EAGER = (
    "from transformers import AutoModelForCausalLM as M; load = M.from_pretrained; "
    "M.from_pretrained = lambda *a, **k: load(*a, **{**k, 'attn_implementation': 'eager'}); "
)
PLAIN = "import torch; torch.backends.cuda.enable_flash_sdp(False); "
"""Leaves scaled_dot_product_attention its plain kernel, on a CPU too."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to compute the same."""

    options: Sequence[str] = ()
    threads: int = 1
    before: str = ""
    """Python that the process runs first."""
    is_reversed: bool = False
    """The rows of the pool in the opposite order."""
    trains: bool = False
    """Its own warm-up, in place of the common one."""
    against: str = "first"


VARIANTS: dict[str, Variant] = {
    "first": Variant(),
    "the same command again": Variant(),
    "again, with its warm-up": Variant(trains=True),
    "two threads": Variant(threads=2),
    "two threads, with its warm-up": Variant(trains=True, threads=2),
    "rows in the opposite order": Variant(is_reversed=True),
    "batches of one row": Variant(options=("--engine.batch-tokens", "1")),
    "batches of 8,192 tokens": Variant(options=("--engine.batch-tokens", "8192")),
    "padded": Variant(options=("--engine.packing", "padded")),
    "one at a time, unpacked": Variant(options=("--engine.packing", "single")),
    "activation checkpointing": Variant(options=("--engine.activation-checkpointing",)),
    "one autograd call a row": Variant(options=("--engine.capture", "autograd")),
    "padded, eager attention": Variant(options=("--engine.packing", "padded"), before=EAGER),
    "plain kernel of sdpa": Variant(before=PLAIN),
    "one worker process": Variant(options=("--engine", "local", "--devices", "cpu:1")),
    "two worker processes": Variant(options=("--engine", "local", "--devices", "cpu:2")),
    "Ray": Variant(options=("--engine", "ray")),
    "bfloat16": Variant(options=("--dtype", "bfloat16")),
    "bfloat16, batches of one row": Variant(
        options=("--dtype", "bfloat16", "--engine.batch-tokens", "1"), against="bfloat16"
    ),
    "float16": Variant(options=("--dtype", "float16")),
    "8 bits": Variant(options=("--quantization", "8bit")),
    "4 bits": Variant(options=("--quantization", "4bit")),
}


def command(output: Path, pool: Path, adapter: Path | None, variant: Variant) -> list[str]:
    """A run of every method, or of the warm-up alone."""
    given = {
        "--model": DEMO / "model",
        "--pool": pool,
        "--target": "gsm8k",
        "--data-dir": DEMO / "data",
        "--max-length": 256,
        "--max-queries": 16,
        "--budget": BUDGET,
        "--device": "cpu",
        "--warmup.epochs": 2,
        "--warmup.global-batch-size": 8,
        "--warmup.adapter.rank": 8,
        "--stability-draws": 0,
        "--output": output,
    }
    named = [text for name, value in given.items() for text in (name, str(value))]
    named += ["--representation", *METHODS, *(["--adapter", str(adapter)] if adapter else [])]
    return [sys.executable, "-c", variant.before + MAIN, "run", *named, *variant.options]


def is_done(folder: Path, name: str) -> bool:
    """Whether the variant's run has ended."""
    return (place_of(folder, name) / "manifest.json").is_file()


def place_of(folder: Path, name: str) -> Path:
    """The run folder of a variant."""
    return folder / name.replace(" ", "-").replace(",", "")


def execute(folder: Path, name: str, variant: Variant, adapter: Path | None) -> Path:
    """The folder of the variant's run, made unless it is there."""
    place = place_of(folder, name)
    if not is_done(folder, name):
        pool = folder / ("reversed.jsonl" if variant.is_reversed else "pool.jsonl")
        environment = {**os.environ, "OMP_NUM_THREADS": str(variant.threads), "HF_HUB_OFFLINE": "1"}
        with (folder / "log").open("ab") as log:
            arguments = command(place, pool, adapter, variant)
            subprocess.run(arguments, env=environment, stdout=log, stderr=log, check=True)
    return place


def results(place: Path) -> dict[str, tuple[dict[str, np.ndarray], set[str]]]:
    """Of each method the scores (n_group,) by row id, and the ids of the selected rows."""
    manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    found = {}
    for name, one in zip(METHODS, manifest["results"]["methods"], strict=True):
        scores = read_table(place / one["folder"] / "scores.parquet")
        columns = [column for column in scores.column_names if column.startswith("score/")]
        values = np.stack([scores[column].to_numpy() for column in columns], axis=1).astype(np.float64)
        chosen = read_table(place / one["folder"] / "selection.parquet", ["id"])["id"].to_pylist()
        found[name] = dict(zip(scores["id"].to_pylist(), values, strict=True)), set(chosen)
    return found


def moved(first: Path, second: Path) -> dict[str, dict[str, float | int]]:
    """Of each method the largest change of a score, and how many selected rows are others."""
    found: dict[str, dict[str, float | int]] = {}
    before, after = results(first), results(second)
    for name in METHODS:
        (scores, chosen), (others, again) = before[name], after[name]
        shared = sorted(scores.keys() & others.keys())
        one, other = (np.stack([values[row] for row in shared]) for values in (scores, others))
        found[name] = {
            "largest": float(np.abs(one - other).max()),
            "deviation": float(one.std()),
            "moved_rows": int((one != other).any(axis=1).sum()),
            "selected": len(chosen),
            "changed": len(chosen - again),
            "unscored": len(scores.keys() ^ others.keys()),
        }
    return found


def pools(folder: Path, n_rows: int) -> None:
    """Rows of the embedded pool, forwards and backwards, under ids that do not depend on their order."""
    paths = sorted((DEMO / "data" / "train" / "processed").rglob("*.jsonl"))
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").split("\n") if line]
    lines = lines[:: max(1, len(lines) // n_rows)][:n_rows]
    folder.mkdir(parents=True, exist_ok=True)
    for name, these in (("pool.jsonl", lines), ("reversed.jsonl", lines[::-1])):
        (folder / name).write_text("\n".join(these) + "\n", encoding="utf-8")


def described(folder: Path, n_rows: int, found: Mapping[str, Any]) -> dict[str, Any]:
    """The result file."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "command": f"python benchmarks/repeatability.py --rows {n_rows}",
        "commit": commit,
        "machine": f"{os.cpu_count()} busy CPU cores, {torch.backends.cpu.get_cpu_capability()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "transformers", "ray", "bitsandbytes")},
        "rows": n_rows,
        "budget": BUDGET,
        "variants": found,
    }


def main() -> None:
    """Run what is missing, compare, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the runs; one that was begun is continued"
    )
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further run after this time")
    options = parser.parse_args()
    began, found = time.monotonic(), {}
    if not (options.output / "reversed.jsonl").is_file():
        pools(options.output, options.rows)
    common = execute(options.output, "common", Variant(trains=True), None)
    adapter = max(common.glob("artifacts/warmup-*/training/checkpoint-*"), key=lambda path: int(path.name[11:]))
    folders: dict[str, Path] = {}
    for name, variant in VARIANTS.items():
        if time.monotonic() - began > options.seconds and not is_done(options.output, name):
            continue
        folders[name] = execute(options.output, name, variant, None if variant.trains else adapter)
        if name == "first":
            continue
        against = common if variant.trains else folders[variant.against]
        found[name] = moved(against, folders[name])
        told = {method: f"{one['largest']:.2g}/{one['changed']}" for method, one in found[name].items()}
        print(f"{name}: {told}", flush=True)
    write_json(RESULTS, described(options.output, options.rows, found))
    if missing := [name for name in VARIANTS if name not in folders]:
        print(f"to be done by the same command again: {', '.join(missing)}")


if __name__ == "__main__":
    main()
