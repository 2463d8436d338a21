"""A validation for people: a table as Markdown, and a chart of every measure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gistselect.files import replacing
from gistselect.report.figures import Dot, interval_chart

MEANINGS = {
    "LDS": "rank correlation of predicted and real target loss over random subsets; 1 is perfect, 0 is chance",
    "QLD": "rise of the target loss (nats a token) without the best rows, minus without random ones; higher is better",
    "AUPRC": "area under the precision-recall curve for planted rows; 1 is perfect",
    "MRR": "mean of 1 / rank of the first row that states a made-up fact; 1 is perfect",
}
"""What a measure says, by its name."""


def write_validation(found: Sequence[Mapping[str, Any]], folder: Path, level: float) -> None:
    """validation.md, and a chart for each measure."""
    share = f"{level:.0%}".replace("%", " %")
    lines = ["# How far the scores can be trusted", "", f"{share} intervals.", ""]
    for measure in dict.fromkeys(one["measure"] for one in found):
        own = [one for one in found if one["measure"] == measure]
        meaning = MEANINGS.get(
            measure, "share of the rows that state a made-up fact among the first ones; 1 is perfect"
        )
        name = f"validation-{re.sub(r'[^a-z0-9]+', '-', measure.lower())}.svg"
        chart = interval_chart(
            [Dot(name=f"{one['method']}, {one['target']}", kind=one["target"], **one["interval"]) for one in own],
            title=f"{measure} of each method",
            x_label=f"{measure}; dashed: chance",
            reference=own[0]["chance"],
        )
        with replacing(folder / name) as part:
            part.write_text(chart, encoding="utf-8")
        lines += [f"## {measure}", "", f"{meaning[0].upper()}{meaning[1:]}.", ""]
        lines += ["| of | method | value | interval | by chance |", "| --- | --- | --- | --- | --- |"]
        for one in own:
            value = one["interval"]
            target = re.sub(r"([\\|`*\[\]<>#])", r"\\\1", " ".join(one["target"].split()))
            lines.append(
                f"| {target} | {one['method']} | {value['mean']:.3f} | [{value['low']:.3f}, {value['high']:.3f}] "
                f"| {one['chance']:.3f} |"
            )
        lines += ["", f"![{measure}]({name})", ""]
    with replacing(folder / "validation.md") as part:
        part.write_text("\n".join(lines), encoding="utf-8")
