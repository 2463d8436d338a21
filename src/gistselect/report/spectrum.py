"""The singular values of the query gradients, as numbers and as a picture, from the content of subspace.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gistselect.files import replacing
from gistselect.linalg.subspace import rank_for_variance
from gistselect.report.charts import Line, line_chart

LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)
SHOWN = 10

Described = Mapping[str, Any]
"""Target → `checkpoints`, each with `name`, `singular_values` and `explained_variance`."""


def draw_spectrum(described: Described, path: Path) -> None:
    """Cumulative explained variance against rank, a curve for each target and checkpoint."""
    lines = [
        Line(
            name=f"{task}, {checkpoint['name']}",
            x=list(range(1, len(checkpoint["explained_variance"]) + 1)),
            y=checkpoint["explained_variance"],
        )
        for task, checkpoint in _spectra(described)
    ]
    chart = line_chart(
        lines,
        title="Spectrum of the query gradients",
        x_label="rank",
        y_label="cumulative explained variance",
        y_range=(0.0, 1.0),
    )
    with replacing(path) as part:
        part.write_text(chart, encoding="utf-8")


def spectrum_table(described: Described) -> list[dict[str, Any]]:
    """One row for each target and checkpoint: the number of queries, and the rank that keeps each share of variance."""
    table = []
    for task, checkpoint in _spectra(described):
        values = np.asarray(checkpoint["singular_values"])
        ranks = {f"{level:.0%}": rank_for_variance(values, level) for level in LEVELS}
        table.append({"target": task, "checkpoint": checkpoint["name"], "queries": len(values), **ranks})
    return table


def leading_values(described: Described) -> list[str]:
    """The largest singular values of each target and checkpoint, a line each."""
    return [
        f"{task}, {checkpoint['name']}: " + " ".join(f"{value:.3g}" for value in checkpoint["singular_values"][:SHOWN])
        for task, checkpoint in _spectra(described)
    ]


def _spectra(described: Described) -> list[tuple[str, dict[str, Any]]]:
    return [(task, checkpoint) for task in described for checkpoint in described[task]["checkpoints"]]
