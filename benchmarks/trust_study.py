"""How far scores can be trusted, on a model small enough to train often: `python benchmarks/trust_study.py`.

LDS over 80 random subsets, QLD, and planted rows: `gistselect validate` with its options written down, on GSM8K. It can
be interrupted and continued, and writes one small JSON file.
"""

from __future__ import annotations

from typing import Any

import cyclopts
import numpy as np
import torch
from scipy.stats import rankdata

from gistselect.files import read_json
from gistselect.run.progress import Reporter
from gistselect.run.validate_config import ValidateConfig
from gistselect.run.validating import VALIDATION, random_subsets, validate
from study_arms import LEVEL
from study_setup import DEFAULT_PLACE, Place, circumstances, model_title, often

app = cyclopts.App(help=__doc__, default_parameter=cyclopts.Parameter(consume_multiple=True))
METHODS = ("gist", "less:nonzeros=8", "ekfac:rows=256", "rds", "loss_drop", "bm25", "dsir", "length", "random")
PIECES: dict[str, dict[str, Any]] = {
    "lds": {"measures": ["lds"], "validation_rows": 640, "subsets": 80, "train_seeds": [0]},
    "planted": {"measures": ["planted"], "train_seeds": [0]},
    "qld": {"measures": ["qld"], "validation_rows": 120, "removed_share": 0.1, "train_seeds": [0, 1]},
}
"""LDS trains on parts, QLD on all rows but a few: to take as long it gets fewer rows, of which it leaves out more."""


@app.default
def main(
    *,
    place: Place = DEFAULT_PLACE,
    smollm2: bool = False,
    pieces: tuple[str, ...] = tuple(PIECES),
    subsets: int | None = None,
    threads: int = 1,
    workers: int = 0,
) -> None:
    """Compute whatever is missing.

    Parameters
    ----------
    smollm2:
        The real model instead of the embedded one: hours on a CPU, in pieces.
    pieces:
        lds, planted, qld; the file holds those that are asked for.
    subsets:
        Of LDS, each one training; the same ones again when asked for more.
    threads:
        CPU threads.
    workers:
        Processes that share the work; 0 for this one alone.
    """
    torch.set_num_threads(threads)
    name = "smollm2" if smollm2 else "demo"
    shared = {"engine_kind": "local", "devices": f"cpu:{workers}"} if workers else {}
    common = {**often(smollm2, place), **shared}
    told = f"trust_study.py --seed {place.seed}" + " --smollm2" * smollm2
    told += f" --pieces {' '.join(pieces)}" * (pieces != tuple(PIECES)) + f" --subsets {subsets}" * bool(subsets)
    changes = {"lds": {"subsets": subsets}} if subsets else {}
    asked = {piece: {**PIECES[piece], **changes.get(piece, {})} for piece in pieces}
    made = circumstances(told, model_title(not smollm2), {**common, "pieces": asked})
    found = []
    for options in asked.values():
        config = ValidateConfig.from_values({**common, **options, "representation": METHODS})
        validate(config, Reporter())
        found += read_json(config.output / VALIDATION)
        parts = {"level": LEVEL, "random_orders": random_orders(found, place.seed), "found": found}
        place.write(f"trust-{name}", {"made": made, **parts})


def random_orders(found: list[dict[str, Any]], seed: int, draws: int = 2000) -> dict[str, float]:
    """LDS that random orders reach with these subsets: one of them stands among the methods, and may be lucky."""
    points = next((one["details"] for one in found if one["measure"] == "LDS"), None)
    if points is None:
        return {}
    n, subsets = PIECES["lds"]["validation_rows"], len(points["loss"])
    chosen = random_subsets(n, points["rows"], subsets, seed)
    orders = np.random.default_rng(seed).random((draws, n))
    predicted = rankdata(np.stack([orders[:, rows].sum(axis=1) for rows in chosen]), axis=0)
    real = rankdata(-np.array(points["loss"]))
    reached = [float(np.corrcoef(predicted[:, draw], real)[0, 1]) for draw in range(draws)]
    low, high = np.quantile(reached, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return {"orders": draws, "mean": float(np.mean(reached)), "low": low, "high": high, "highest": max(reached)}


if __name__ == "__main__":
    app()
