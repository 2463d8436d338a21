"""A study for people: a table as CSV and Markdown, and charts of every target."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gistselect.files import replacing
from gistselect.report.figures import Dot, cost_chart, interval_chart

SHOWN_SOURCES = 5
STAYS = "stays selected"
"""Column of the stability: in which share of the draws of the queries a selected row is selected."""
Finding = Mapping[str, Any]


def write_report(study: Mapping[str, Any], folder: Path) -> None:
    """study.csv, study.md, and for each target and metric a chart of the arms and one of their costs."""
    _write_csv(study, folder / "study.csv")
    charts: dict[str, list[str]] = {}
    for (target, metric), findings in _grouped(study["findings"], "target", "metric").items():
        name = quote(f"{target}-{metric}", safe=" ").replace(" ", "-")
        unit = "nats a token" if metric == "loss" else metric
        share = f"{study['level']:.0%}".replace("%", " %")
        arms = interval_chart(
            [_dot(one, f"budget {one['budget']}" if one["budget"] else "untrained") for one in findings],
            title=f"{target}: held-out {metric} after training",
            x_label=f"{unit}; dashed: random rows; {share} intervals over items and seeds",
            reference=next((one["mean"] for one in findings if one["arm"] == "random rows"), None),
        )
        charts[target] = [_write(folder / f"{name}.svg", arms)]
        if paid := [one for one in findings if (one["cost"] or {}).get("selection_seconds")]:
            chart = cost_chart(
                [_dot(one, f"budget {one['budget']}", one["cost"]["selection_seconds"]) for one in paid],
                title=f"{target}: held-out {metric} against the time of the selection",
                x_label="seconds of selection (logarithmic)",
                y_label=unit,
            )
            charts[target].append(_write(folder / f"{name}-cost.svg", chart))
    with replacing(folder / "study.md") as part:
        part.write_text(markdown(study, charts), encoding="utf-8")


def markdown(study: Mapping[str, Any], charts: Mapping[str, Sequence[str]]) -> str:
    """The study as Markdown: a table for each target, metric and budget, overlaps, sources and sentences."""
    scored = study["scored_by"]
    models = f"{study['trained']} trained and measured"
    models += f", rows scored by {scored}." if scored and scored != study["trained"] else "."
    lines = ["# Comparison", "", models, ""]
    before = {(one["target"], one["metric"]): one for one in study["findings"] if not one["budget"]}
    for (target, metric, budget), findings in _grouped(study["findings"], "target", "metric", "budget").items():
        if not budget:
            continue
        references = list(dict.fromkeys(name for one in findings for name in one["against"]))
        head = ["arm", f"{metric}", *(f"minus {name}" for name in references), "seconds", "STR", "bytes a row", STAYS]
        lines += [
            f"## {_cell(target)}, {budget} ({findings[0]['n_rows']:,} rows)",
            "",
            _row(head),
            _row(["---"] * len(head)),
        ]
        for one in [*filter(None, [before.get((target, metric))]), *findings]:
            differences = [one["against"].get(name) for name in references]
            cells = [_interval(one), *map(_difference, differences), *_cost(one["cost"]), _stays(study, one)]
            lines.append(_row([name_of(one), *cells]))
        lines += ["", *(f"- {_cell(sentence)}" for one in findings for sentence in one["verdicts"]), ""]
        lines += _shared(study, target, budget)
    for target, names in charts.items():
        lines += [f"![{_cell(target)}]({name})" for name in names]
    return "\n".join(lines) + "\n"


def _shared(study: Mapping[str, Any], target: str, budget: str) -> list[str]:
    """Overlaps and sources of the selections of a target and budget."""
    lines = []
    pairs = [one for one in study["overlap"] if (one["target"], one["budget"]) == (target, budget)]
    if pairs:
        lines += [*_overlap(pairs), ""]
    for one in study["sources"]:
        if (one["target"], one["budget"]) == (target, budget):
            mix = list(one["sources"].items())[:SHOWN_SOURCES]
            pool = study["pool_sources"]
            told = (f"{_cell(name)} {share:.0%} (pool {pool.get(name, 0):.0%})" for name, share in mix)
            lost = f". {_lost(one['lost'])}" if one.get("lost") else ""
            lines.append(f"- {_cell(one['arm'])}, {one['selector']}: {', '.join(told)}{lost}")
    return [*lines, ""]


def _overlap(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Selections across and down, and what every two share."""
    names = list(dict.fromkeys(name for one in pairs for name in one["selections"]))
    shared = {frozenset(one["selections"]): f"{one['jaccard']:.2f}" for one in pairs}
    head = ["shared rows / rows of either", *(f"({index})" for index in range(1, len(names)))]
    lines = [_row(head), _row(["---"] * len(head))]
    for index, name in enumerate(names, start=1):
        cells = [shared.get(frozenset((name, other)), "") for other in names[: index - 1]]
        lines.append(_row([f"({index}) {name}", *cells, *[""] * (len(names) - index)]))
    return lines


def _lost(lost: Mapping[str, float]) -> str:
    """What a prefilter cost a selection."""
    return (
        f"The prefilter left out about {lost['share']:.1%} ({lost['low']:.1%} to {lost['high']:.1%}) of the pool's "
        f"{lost['of_best_rows']:,} best rows"
    )


def _write_csv(study: Mapping[str, Any], path: Path) -> None:
    references = list(dict.fromkeys(name for one in study["findings"] for name in one["against"]))
    plain = ["target", "budget", "n_rows", "selector", "arm", "metric", "n_runs", "mean", "low", "high"]
    costs = ["selection_seconds", "selection_to_tuning", "bytes_per_row", "full_training_seconds", "full_training_is"]
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        ends = [f"minus {name}{end}" for name in references for end in ("", ", low", ", high")]
        writer.writerow([*plain, *ends, *costs, "stability"])
        for one in study["findings"]:
            of = [one["against"].get(name, {}) for name in references]
            differences = [side.get(key) for side in of for key in ("mean", "low", "high")]
            cost = one["cost"] or {}
            numbers = [*differences, *(cost.get(name) for name in costs), _stability(study, one)]
            writer.writerow([*(one[name] for name in plain), *numbers])


def summary_rows(study: Mapping[str, Any]) -> list[dict[str, str]]:
    """The findings as rows of a table for a terminal."""
    rows = []
    for one in study["findings"]:
        seconds, ratio, stored = _cost(one["cost"])
        against = one["against"].get("random rows") or one["against"].get("before")
        rows.append(
            {
                "target": one["target"],
                "budget": one["budget"],
                "arm": name_of(one),
                "metric": one["metric"],
                "mean and interval": _interval(one),
                "minus random (or before)": _difference(against),
                "seconds": seconds,
                "STR": ratio,
                "bytes a row": stored,
                STAYS: _stays(study, one),
            }
        )
    return rows


def _stability(study: Mapping[str, Any], one: Finding) -> float | None:
    """How often the rows of an arm stay selected; None of a baseline, and where it is not measured."""
    place = [one[name] for name in _PLACE]
    facts = next((chosen.get("stability") for chosen in study["sources"] if [chosen[n] for n in _PLACE] == place), None)
    return (facts or {}).get("mean")


def _stays(study: Mapping[str, Any], one: Finding) -> str:
    share = _stability(study, one)
    return "" if share is None else f"{share:.0%}"


_PLACE = ("target", "budget", "selector", "arm")


def name_of(one: Finding) -> str:
    """The arm, with its selector if it has one."""
    return f"{one['arm']}, {one['selector']}" if one["selector"] else one["arm"]


def _grouped(findings: Sequence[Finding], *names: str) -> dict[tuple[str, ...], list[Finding]]:
    found: dict[tuple[str, ...], list[Finding]] = {}
    for one in findings:
        found.setdefault(tuple(one[name] for name in names), []).append(one)
    return found


def _dot(one: Finding, kind: str, at: float = 0.0) -> Dot:
    return Dot(name=name_of(one), mean=one["mean"], low=one["low"], high=one["high"], kind=kind, at=at)


def _write(path: Path, chart: str) -> str:
    with replacing(path) as part:
        part.write_text(chart, encoding="utf-8")
    return path.name


def _interval(one: Mapping[str, float]) -> str:
    return f"{one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


def _difference(one: Mapping[str, float] | None) -> str:
    return "" if one is None else f"{one['mean']:+.3f} ± {(one['high'] - one['low']) / 2:.3f}"


def _cost(cost: Mapping[str, Any] | None) -> list[str]:
    if cost is None:
        return ["", "", ""]
    ratio = "" if cost["selection_to_tuning"] is None else f"{cost['selection_to_tuning']:.3g}"
    return [f"{cost['selection_seconds']:,.1f}", ratio, f"{cost['bytes_per_row']:,.0f}"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """Text that is no markup: names of sources and targets are anybody's."""
    plain = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\|`*[]<>#!" else letter for letter in plain)
