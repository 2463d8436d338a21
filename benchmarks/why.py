"""What each method's scores follow, read from a finished study: `python benchmarks/why.py STUDY_FOLDER NAME`.

For every method: does it find the target's sources, does it follow length, loss or gradient norm, does it agree with
BM25, how many rows are over chance, how much of a gradient the subspace holds; and the spectrum of GIST's queries. It
looks at scores alone, trains nothing and judges nothing.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.stats import mannwhitneyu, spearmanr

from gistselect.files import read_json, write_json
from gistselect.run.scoring import SCORES
from gistselect.run.store import read_table
from study_setup import RESULTS, circumstances
from study_targets import SOURCES

app = cyclopts.App(help=__doc__)
FOLLOWED = ("n_supervised", "n_tokens", "loss", "gradient_norm")


@app.default
def main(study: Path, name: str, *, model: str, budget: int = 64, results: Path = RESULTS) -> None:
    """Write why-NAME.json.

    Parameters
    ----------
    study:
        Folder of a finished `gistselect compare` for GSM8K.
    name:
        What the file is called after.
    model:
        The model that scored, in words.
    budget:
        Rows that count as selected.
    results:
        Folder for the JSON file.
    """
    scores = first(study / "artifacts")
    columns = {method: read_table(folder / SCORES).sort_by("row") for method, folder in scores.items()}
    known = columns["gist"]
    rows = known["row"].to_numpy()
    mathematics = np.isin(known["source"].to_pylist(), SOURCES["gsm8k"])
    values = {method: one["score"].to_numpy() for method, one in columns.items() if len(one) == len(rows)}
    best = {method: set(np.argsort(-one, kind="stable")[:budget].tolist()) for method, one in values.items()}
    measured = {key: known[key].to_numpy().astype(float) for key in FOLLOWED}
    found: dict[str, Any] = {}
    for method, score in values.items():
        chosen = np.array(sorted(best[method]))
        found[method] = {
            "auc_of_mathematics": _auc(score, mathematics),
            "follows": {key: _rank(score, one) for key, one in measured.items()},
            "agrees_with_bm25": _rank(score, values["bm25"]),
            "selected": {key: float(one[chosen].mean()) for key, one in measured.items()},
            "selected_with_bm25": len(best[method] & best["bm25"]) / budget,
            **_chance(scores[method], columns[method], mathematics, chosen),
        }
    pool = {key: float(one.mean()) for key, one in measured.items()}
    made = circumstances(f"why.py STUDY {name} --budget {budget}", model, {"budget": budget})
    spectrum = _spectrum(scores["gist"])
    write_json(
        results / f"why-{name}.json",
        {"made": made, "rows": len(rows), "pool": pool, "spectrum": spectrum, "methods": found},
    )


def first(artifacts: Path) -> dict[str, Path]:
    """The scores of each representation that were finished first: those of the study, before any variant of them."""
    done = sorted(artifacts.glob("scores-*/complete.json"), key=lambda path: path.stat().st_mtime)
    found = {}
    for path in done:
        inputs = read_json(path.parent / "inputs.json")
        if not (inputs["options"].get("energy_weighting") or inputs["options"].get("divide_by_norm")):
            found.setdefault(inputs["representation"], path.parent)
    return found


def _rank(first: NDArray[Any], second: NDArray[Any]) -> float:
    found: Any = spearmanr(first, second)
    return 0.0 if math.isnan(found.statistic) else float(found.statistic)


def _auc(score: NDArray[Any], relevant: NDArray[np.bool_]) -> float:
    """Share of pairs of a row of the target's sources and another that the score puts in that order."""
    found: Any = mannwhitneyu(score[relevant], score[~relevant])
    return float(found.statistic / (relevant.sum() * (~relevant).sum()))


def _chance(folder: Path, table: Any, mathematics: NDArray[np.bool_], chosen: NDArray[np.intp]) -> dict[str, Any]:
    """Rows over the 95 % quantile of rows without signal, and captured energy, where a method has them."""
    found: dict[str, Any] = {}
    (null,) = read_json(folder / "complete.json")["facts"]["null_score_quantiles"].values()
    if null:
        score = table["score"].to_numpy()
        found["null_95"] = null["0.95"]
        found["over_null"] = {
            "pool": float((score > null["0.95"]).mean()),
            "mathematics": float((score[mathematics] > null["0.95"]).mean()),
        }
    if "captured_energy" in table.column_names:
        energy = table["captured_energy"].to_numpy()
        found["captured_energy"] = {
            "pool": float(energy.mean()),
            "mathematics": float(energy[mathematics].mean()),
            "selected": float(energy[chosen].mean()),
        }
    return found


def _spectrum(scores: Path) -> dict[str, Any]:
    """How the variance of the query gradients is spread."""
    ((_, (fit, _)),) = read_json(scores / "inputs.json")["columns"]
    (folder,) = (path for path in scores.parent.glob("fit-*") if fit.startswith(path.name.removeprefix("fit-")))
    arrays = load_file(folder / "fit" / "arrays.safetensors")
    shares = np.cumsum(arrays["singular_values"] ** 2) / np.sum(arrays["singular_values"] ** 2)
    target = arrays["target_features"][0]
    return {
        "queries": len(shares),
        "rank": int(arrays["query_features"].shape[1]),
        "variance_of_first": {str(k): float(shares[k - 1]) for k in (1, 5, 10, 20) if k <= len(shares)},
        "share_of_mean_in_first": float(target[0] ** 2 / np.sum(target**2)),
    }


if __name__ == "__main__":
    app()
