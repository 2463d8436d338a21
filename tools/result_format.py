"""How stored results are read and shown: tables, intervals, differences and charts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gistselect.report.figures import Dot, interval_chart

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
PLOTS = DOCS / "results"
TITLES = {
    "gist": "GIST",
    "less": "LESS",
    "less_adam": "LESS with Adam's step",
    "ekfac": "EK-FAC",
    "loss_drop": "Loss drop",
    "rds": "RDS+",
    "bm25": "BM25",
    "dsir": "DSIR",
    "length": "Length",
    "random": "Random",
}
MATHEMATICS = ("cot_gsm8k", "mawps", "svamp", "asdiv", "cot_aqua")
BEFORE, RANDOM = "before", "random rows"
NOT_YET = "*Not measured yet.*\n"
Interval = Mapping[str, float]


def stored(*names: str) -> dict[str, Any] | None:
    """The first of these result files that is there."""
    for name in names:
        if (path := RESULTS / f"{name}.json").exists():
            return {"file": path.name, **json.loads(path.read_text(encoding="utf-8"))}
    return None


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(one)} |" for one in lines) + "\n"


def title(name: str) -> str:
    """A method as people know it."""
    return TITLES.get(re.split(r"[-:]", name)[0], name)


def with_interval(one: Interval | None, digits: int = 3) -> str:
    """Mean and interval."""
    return "" if one is None else f"{one['mean']:.{digits}f} [{one['low']:.{digits}f}, {one['high']:.{digits}f}]"


def difference(one: Interval | None) -> str:
    """Mean difference and half its interval, in bold if the interval leaves out zero."""
    if one is None:
        return ""
    text = f"{one['mean']:+.3f} ± {(one['high'] - one['low']) / 2:.3f}"
    return f"**{text}**" if one["low"] > 0 or one["high"] < 0 else text


def mathematics(sources: Mapping[str, float]) -> str:
    """Which share of the rows is mathematics, by their sources' shares."""
    return f"{sum(sources.get(name, 0.0) for name in MATHEMATICS):.0%}"


def plot(name: str, dots: Sequence[Dot], plot_title: str, x_label: str, reference: float | None) -> str:
    """Write a chart and say where it stands."""
    chart = interval_chart(dots, title=plot_title, x_label=x_label, reference=reference)
    WRITTEN[PLOTS / f"{name}.svg"] = chart + "\n" * (not chart.endswith("\n"))
    return f"\n![{plot_title}](results/{name}.svg)\n"


WRITTEN: dict[Path, str] = {}
"""Charts that this run makes, by path."""


def dot_of(name: str, one: Interval, kind: str) -> Dot:
    """An estimate for a chart."""
    return Dot(name=name, mean=one["mean"], low=one["low"], high=one["high"], kind=kind)
