"""The study: does a selection teach a real model more than what is cheap? `python benchmarks/quality.py --small`.

SmolLM2-135M-Instruct, GSM8K, and a seeded part of the pool in a LESS-style folder. It is `gistselect compare` with its
options written down, so it can be interrupted and continued, and writes a small JSON file of everything it found.
"""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import torch

from gistselect.files import read_json, replacing, write_json
from gistselect.run.progress import Reporter
from gistselect.run.study import STUDY, run_study
from gistselect.run.study_config import StudyConfig
from study_model import default_cache, study_model

app = cyclopts.App(help=__doc__)
RESULTS = Path(__file__).parent / "results"
ADAPTER = {"rank": 16, "alpha": 32, "dropout": 0.0}
SHORT = {"learning_rate": 3e-4, "device_batch_size": 4, "adapter": ADAPTER}
"""What 16 steps on a CPU need instead of the published 2e-5 on thousands of rows; chosen before any arm was judged."""
COMMON: dict[str, Any] = {
    "max_length": 256,
    "warmup": {**SHORT, "global_batch_size": 4, "epochs": 4},
    "finetune": {**SHORT, "global_batch_size": 4, "epochs": 1},
    "warmup_share": 0.1,
    "template": "model",
    "dtype": "float32",
}
DEMO = {"device_batch_size": 2, "adapter": ADAPTER}
SIZES: dict[str, dict[str, Any]] = {
    "demo": {
        "pool_rows": None,
        "target": ["gsm8k", "mmlu", "bbh"],
        "representation": [
            *("gist", "less:nonzeros=8", "ekfac", "loss_drop", "rds", "bm25", "dsir", "length"),
        ],
        "baselines": ["random", "length"],
        "budgets": [64],
        "max_length": 2048,
        "max_queries": 100,
        "heldout_items": 50,
        "template": "tulu",
        "warmup": {**DEMO, "learning_rate": 1e-3, "global_batch_size": 16},
        "finetune": {**DEMO, "learning_rate": 5e-3, "global_batch_size": 16, "epochs": 2},
        "train_seeds": [0, 1, 2],
    },
    "small": {
        "pool_rows": 600,
        "target": ["gsm8k"],
        "representation": ["gist", "less:nonzeros=8", "ekfac:rows=128", "loss_drop", "rds", "bm25"],
        "baselines": ["random", "length"],
        "budgets": [64],
        "max_queries": 60,
        "heldout_items": 60,
        "train_seeds": [0, 1, 2],
    },
    "cpu": {
        "pool_rows": 5000,
        "target": ["gsm8k", "mmlu", "bbh"],
        "representation": [
            *("gist", "less:nonzeros=8", "ekfac", "loss_drop", "rds", "bm25", "dsir"),
        ],
        "selectors": ["top_k", "round_robin", "gip"],
        "baselines": ["random", "length"],
        "budgets": ["1%", "5%"],
        "max_queries": 60,
        "heldout_items": 60,
        "train_seeds": [0, 1, 2],
    },
    "full": {
        "pool_rows": None,
        "target": ["gsm8k", "mmlu", "bbh"],
        "representation": ["gist", "less", "ekfac", "loss_drop", "rds", "bm25", "dsir"],
        "selectors": ["top_k", "round_robin", "gip"],
        "baselines": ["random", "length", "full"],
        "budgets": ["1%", "5%"],
        "max_length": 1024,
        "finetune": {**SHORT, "global_batch_size": 32, "epochs": 4},
        "dtype": "auto",
        "heldout_items": 200,
        "train_seeds": [0, 1, 2],
    },
}


@app.default
def main(
    *,
    data: Path = Path(__file__).parents[1].parent / "shared" / "data" / "full",
    demo: bool = False,
    small: bool = False,
    cpu: bool = False,
    full: bool = False,
    seed: int = 0,
    work: Path | None = None,
    threads: int = 2,
    train_seeds: tuple[int, ...] = (),
    results: Path = RESULTS,
) -> None:
    """Run one size of the study, or continue it.

    Parameters
    ----------
    data:
        LESS-style folder: train/processed and eval.
    demo:
        The embedded 3.7 M-parameter model instead, every representation, three targets; give --data .../small.
    small:
        One target, six representations, three seeds: at most 90 minutes on two CPU cores.
    cpu:
        The table that a CPU can fill in a few days, in pieces.
    full:
        The whole pool, for a GPU.
    seed:
        Names the part of the pool.
    work:
        Folder for everything between; by default in the user's cache.
    threads:
        CPU threads.
    train_seeds:
        Seeds of the trainings, fewer than the size has for a first look; by default all.
    results:
        Folder for the JSON file.
    """
    chosen = [name for name, wanted in (("demo", demo), ("small", small), ("cpu", cpu), ("full", full)) if wanted]
    if len(chosen) != 1:
        raise SystemExit("give one of --demo, --small, --cpu and --full.")
    torch.set_num_threads(threads)
    size = chosen[0]
    folder = (work or default_cache() / "quality") / f"{size}-{seed}"
    values = {**COMMON, **SIZES[size], **({"train_seeds": train_seeds} if train_seeds else {})}
    model = files("gistselect.demo") / "model" if demo else study_model(default_cache())
    pool = pool_part(data / "train" / "processed", values.pop("pool_rows"), seed, folder)
    config = StudyConfig.from_values(
        {**values, "model": str(model), "pool": [str(pool)], "data_dir": data}
        | {"output": folder / "study", "seed": seed}
    )
    study = run_study(config, Reporter())
    stored = read_json(config.output / STUDY)
    assert stored["findings"] == json.loads(json.dumps(study.described()["findings"]))
    write_json(results / f"{size}-seed{seed}.json", {"made": circumstances(size, seed, threads, values), **stored})


def pool_part(folder: Path, n_rows: int | None, seed: int, work: Path) -> Path:
    """`n_rows` random rows of all files of a pool, in the pool's order; the folder itself for None."""
    if n_rows is None:
        return folder
    part = work / f"pool-{n_rows}-seed{seed}.jsonl"
    if not part.exists():
        lines = [
            line
            for path in sorted(folder.glob("*/*.jsonl"))
            for line in path.read_bytes().splitlines(keepends=True)
            if line.strip()
        ]
        kept = np.sort(np.random.default_rng(seed).choice(len(lines), size=n_rows, replace=False))
        with replacing(part) as file:
            file.write_bytes(b"".join(lines[row].rstrip(b"\n") + b"\n" for row in kept))
    return part


def circumstances(size: str, seed: int, threads: int, options: dict[str, Any]) -> dict[str, Any]:
    """What a reader needs to make the same figures."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "command": f"python benchmarks/quality.py --{size} --seed {seed} --threads {threads}",
        "commit": commit,
        "model": "the embedded demo model" if size == "demo" else "SmolLM2-135M-Instruct",
        "processor": platform.machine(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "options": options,
        "packages": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


if __name__ == "__main__":
    app()
