"""What all commands of the study share: models, recipes, named parts of the pool, and the circumstances of a result."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import torch

from gistselect.files import replacing, write_json
from study_model import default_cache, study_model

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).parents[2] / "shared" / "data"
"""Where the pool and the targets lie unless --data says otherwise: beside the repository."""
WORK = default_cache() / "quality"
"""Where everything between is kept, so that a command continues."""
ADAPTER = {"rank": 16, "alpha": 32, "dropout": 0.0}
SHORT = {"learning_rate": 3e-4, "device_batch_size": 4, "adapter": ADAPTER}
"""What 16 steps on a CPU need instead of the published 2e-5 on thousands of rows; chosen before any arm was judged."""
REAL: dict[str, Any] = {
    "max_length": 256,
    "warmup": {**SHORT, "global_batch_size": 4, "epochs": 4},
    "finetune": {**SHORT, "global_batch_size": 4, "epochs": 1},
    "warmup_share": 0.1,
    "template": "model",
    "dtype": "float32",
}
"""SmolLM2-135M-Instruct."""
SMALL = {"device_batch_size": 2, "adapter": ADAPTER}
DEMO: dict[str, Any] = {
    "max_length": 2048,
    "warmup": {**SMALL, "learning_rate": 1e-3, "global_batch_size": 16},
    "finetune": {**SMALL, "learning_rate": 5e-3, "global_batch_size": 16, "epochs": 2},
    "warmup_share": 0.1,
    "template": "tulu",
    "dtype": "float32",
}
"""The embedded model, with the rates of `gistselect demo`."""

OFTEN: dict[str, Any] = {
    "target": ["gsm8k"],
    "baselines": ["random"],
    "max_queries": 60,
    "heldout_items": 80,
    "budget": 64,
    "max_length": 512,
    "warmup_share": 0.15,
}
"""What changes where a model is trained often: for the validation and the ablations, which share a folder."""


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Place:
    """Options of every command of the study: what it reads, and where it writes."""

    data: Path = SHARED / "full"
    """LESS-style folder: train/processed and eval."""
    seed: int = 0
    """Names the part of the pool, and every draw."""
    work: Path = WORK
    """Folder for everything between, from which a command continues; by default in the user's cache."""
    results: Path = RESULTS
    """Folder for the JSON file."""

    @property
    def pool(self) -> Path:
        """The sources of the pool, a folder each."""
        return self.data / "train" / "processed"

    def write(self, name: str, found: Mapping[str, Any]) -> None:
        """Keep a result, whole or not at all."""
        write_json(self.results / f"{name}-seed{self.seed}.json", dict(found))


DEFAULT_PLACE = Place()
PLACES = frozenset({"model", "encoder", "pool", "data_dir", "output"})
"""Options that name a place on one machine, which no result says."""
OFTEN_ROWS = 1000
"""Rows of the pool there."""


def model_folder(demo: bool) -> str:
    """The embedded model, or SmolLM2, fetched unless it is there."""
    return str(files("gistselect.demo") / "model") if demo else str(study_model(default_cache()))


def model_title(demo: bool) -> str:
    """What a result calls that model."""
    return "the embedded demo model" if demo else "SmolLM2-135M-Instruct"


def pool_lines(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every row of a LESS-style pool with the name of its source, as bytes, in the pool's order."""
    for path in sorted(folder.glob("*/*.jsonl")):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.strip():
                yield path.parent.name, line


def pool_part(folder: Path, n_rows: int | None, seed: int, work: Path, apart: Set[bytes] = frozenset()) -> Path:
    """`n_rows` random rows of all files of a pool, in the pool's order, without those set apart.

    None for all rows: then the folder itself, if none is set apart.
    """
    if n_rows is None and not apart:
        return folder
    part = work / f"pool-{n_rows or 'all'}-seed{seed}{'-apart' * bool(apart)}.jsonl"
    if not part.exists():
        lines = [line for _, line in pool_lines(folder) if line not in apart]
        write_lines(part, [lines[row] for row in drawn_rows(len(lines), n_rows or len(lines), seed)])
    return part


def drawn_rows(n: int, n_rows: int, seed: int) -> list[int]:
    """Which of n rows a part of the pool has."""
    return np.sort(np.random.default_rng(seed).choice(n, size=min(n_rows, n), replace=False)).tolist()


def write_lines(path: Path, lines: list[bytes]) -> None:
    """A JSONL file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write_bytes(b"".join(line.rstrip(b"\n") + b"\n" for line in lines))


def often(smollm2: bool, place: Place) -> dict[str, Any]:
    """Options of every run in the folder that validation and ablations share."""
    folder = place.work / f"often-{'smollm2' if smollm2 else 'demo'}-{place.seed}"
    return {
        **(REAL if smollm2 else DEMO),
        **OFTEN,
        **({"max_length": REAL["max_length"]} if smollm2 else {}),
        "model": model_folder(not smollm2),
        "pool": [str(pool_part(place.pool, OFTEN_ROWS, place.seed, folder))],
        "data_dir": place.data,
        "output": folder / "study",
        "seed": place.seed,
    }


def circumstances(command: str, model: str, options: dict[str, Any]) -> dict[str, Any]:
    """What a reader needs to make the same figures; options that name a place are left out."""
    options = {name: value for name, value in options.items() if name not in PLACES}
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    on_cuda = torch.cuda.is_available()
    return {
        "command": f"python benchmarks/{command}",
        "commit": commit,
        "model": model,
        "processor": torch.cuda.get_device_name() if on_cuda else platform.machine(),
        "device": "cuda" if on_cuda else "cpu",
        "options": json.loads(json.dumps(options, default=str)),
        "packages": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
