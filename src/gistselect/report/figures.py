"""The charts of a run's page: distributions, shares, densities, intervals; each an SVG as `charts` makes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gistselect.report.charts import RIGHT, WIDTH, Plot, extent, fill, frame, number, stroke, ticks
from gistselect.report.inert import inert

BINS = 40
BAR_TOP = 58
NAME_WIDTH, NAME_LENGTH = 230, 34


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of two sets of values in the same bins."""

    edges: NDArray[np.float64]
    """(n_bin + 1,)"""
    pool: NDArray[np.intp]
    """(n_bin,)"""
    selected: NDArray[np.intp]


def histogram(values: NDArray[np.floating], selected: NDArray[np.bool_], bins: int = BINS) -> Histogram:
    """Values (n,) and those of the selection, in equal bins."""
    edges = np.histogram_bin_edges(values, bins=bins, range=extent([float(values.min()), float(values.max())]))
    return Histogram(
        edges=edges, pool=np.histogram(values, edges)[0], selected=np.histogram(values[selected], edges)[0]
    )


def histogram_chart(counts: Histogram, *, title: str, x_label: str, marks: Sequence[tuple[str, float]] = ()) -> str:
    """All rows, and those of the selection before them."""
    high = [float(counts.edges[0]), float(counts.edges[-1]), *(x for _, x in marks)]
    plot = Plot(
        title=title,
        x_label=x_label,
        y_label="rows",
        x=extent(high),
        y=(0.0, max(1.0, float(counts.pool.max()))),
        legend=["scored rows", "of these selected"],
    )
    for series, heights in ((0, counts.pool), (1, counts.selected)):
        for index, count in enumerate(heights.tolist()):
            if count:
                left, right = plot.across(float(counts.edges[index])), plot.across(float(counts.edges[index + 1]))
                top = plot.down(count)
                plot.add(
                    f'<rect {fill(series)} x="{left:.1f}" y="{top:.1f}" width="{max(right - left - 1, 0.8):.1f}" '
                    f'height="{plot.down(0) - top:.1f}"/>'
                )
    for name, x in marks:
        plot.mark(name, x)
    return plot.svg()


def bar_chart(names: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], *, title: str) -> str:
    """Shares (0 to 1) of each name, one bar below the other for each series."""
    group = 8 + 14 * len(series)
    height = BAR_TOP + group * len(names) + 8
    most = max([share for _, shares in series for share in shares], default=1.0) or 1.0
    span = WIDTH - NAME_WIDTH - RIGHT - 60
    parts = frame(title, height)
    for index, (name, _) in enumerate(series):
        parts.append(
            f'<rect {fill(index)} x="{NAME_WIDTH + 150 * index}" y="34" width="12" height="10"/>'
            f'<text class="ink" x="{NAME_WIDTH + 150 * index + 18}" y="43" fill="#1a1a1a">{inert(name)}</text>'
        )
    for place, name in enumerate(names):
        top = BAR_TOP + group * place
        parts.append(
            f'<text class="ink" x="{NAME_WIDTH - 10}" y="{top + 7 * len(series) + 4}" text-anchor="end" '
            f'fill="#1a1a1a">{inert(shortened(name))}</text>'
        )
        for index, (_, shares) in enumerate(series):
            width, at = max(shares[place] / most * span, 0.5), top + 14 * index
            parts.append(
                f'<rect {fill(index)} x="{NAME_WIDTH}" y="{at}" width="{width:.1f}" height="12"/>'
                f'<text class="tick" x="{NAME_WIDTH + width + 6:.1f}" y="{at + 10}" fill="#555555">'
                f"{shares[place]:.1%}</text>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def density_chart(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    selected: NDArray[np.bool_],
    *,
    title: str,
    x_label: str,
    y_label: str,
    most: int = 400,
) -> str:
    """Where the rows lie: squares as dark as they are full, and the selected ones as points (evenly thinned out)."""
    plot = Plot(
        title=title,
        x_label=x_label,
        y_label=y_label,
        x=extent([0.0, float(np.quantile(x, 0.995))]),
        y=extent([float(y.min()), float(y.max())]),
        legend=["scored rows (stronger: more)", "selected rows"],
    )
    counts, x_edges, y_edges = np.histogram2d(np.minimum(x, plot.x[1]), y, bins=(48, 30), range=(plot.x, plot.y))
    for column, row in zip(*np.nonzero(counts), strict=True):
        left, right = plot.across(float(x_edges[column])), plot.across(float(x_edges[column + 1]))
        bottom, top = plot.down(float(y_edges[row])), plot.down(float(y_edges[row + 1]))
        shade = 0.12 + 0.68 * float(np.log1p(counts[column, row]) / np.log1p(counts.max()))
        plot.add(
            f'<rect {fill(0)} fill-opacity="{shade:.2f}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{bottom - top:.1f}"/>'
        )
    shown = np.flatnonzero(selected)
    shown = shown[np.unique(np.linspace(0, len(shown) - 1, min(most, len(shown))).astype(int))] if len(shown) else shown
    for one in shown.tolist():
        plot.add(
            f'<circle {fill(1)} stroke="#ffffff" cx="{plot.across(min(float(x[one]), plot.x[1])):.1f}" '
            f'cy="{plot.down(float(y[one])):.1f}" r="4"/>'
        )
    return plot.svg()


@dataclass(frozen=True, kw_only=True)
class Dot:
    """An estimate with its interval."""

    name: str
    mean: float
    low: float
    high: float
    kind: str = ""
    """What shares a colour: a budget, a method."""
    at: float = 0.0
    """Where it stands on the other axis, if there is one."""


def interval_chart(dots: Sequence[Dot], *, title: str, x_label: str, reference: float | None = None) -> str:
    """Means with their intervals, one below the other; a dashed line at `reference`, a legend of several kinds."""
    low, high = _with_margin(dots)
    kinds = _kinds(dots)
    top = BAR_TOP - 8 + 14 * (len(kinds) > 1)
    height = top + 28 * len(dots) + 38
    right, foot = WIDTH - RIGHT - 50, height - 38

    def across(value: float) -> float:
        return NAME_WIDTH + (value - low) / (high - low) * (right - NAME_WIDTH)

    parts = [
        *frame(title, height),
        f'<text class="label" x="{(NAME_WIDTH + WIDTH) / 2}" y="{height - 8}" text-anchor="middle" fill="#333333">'
        f"{inert(x_label)}</text>",
    ]
    for value in ticks(low, high):
        parts.append(
            f'<text class="tick" x="{across(value):.1f}" y="{height - 22}" text-anchor="middle" fill="#555555">'
            f"{number(value)}</text>"
        )
    if reference is not None and low <= reference <= high:
        at = across(reference)
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 12}" y2="{foot}" stroke="#1a1a1a" '
            'stroke-dasharray="3 3"/>'
        )
    for index, one in enumerate(dots):
        line, series = top + 28 * index, kinds.index(one.kind)
        parts.append(
            f'<text class="ink" x="{NAME_WIDTH - 10}" y="{line + 4}" text-anchor="end" fill="#1a1a1a">'
            f"{inert(shortened(one.name))}</text>"
            f'<line class="grid" x1="{NAME_WIDTH}" x2="{right}" y1="{line}" y2="{line}" stroke="#e3e3e3"/>'
            f'<line {stroke(series)} x1="{across(one.low):.1f}" x2="{across(one.high):.1f}" y1="{line}" y2="{line}" '
            'stroke-width="3"/>'
            f'<circle {fill(series)} cx="{across(one.mean):.1f}" cy="{line}" r="5"/>'
            f'<text class="tick" x="{right + 8}" y="{line + 4}" fill="#555555">{number(one.mean)}</text>'
        )
    if len(kinds) > 1:
        for index, kind in enumerate(kinds):
            x = 16 + 150 * index
            parts.append(
                f'<rect {fill(index)} x="{x}" y="31" width="12" height="8"/>'
                f'<text class="ink" x="{x + 18}" y="39" fill="#1a1a1a">{inert(kind)}</text>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def cost_chart(dots: Sequence[Dot], *, title: str, x_label: str, y_label: str) -> str:
    """Estimates with intervals over what they cost, on a logarithmic axis; `at` must be positive."""
    costs = [math.log10(one.at) for one in dots]
    kinds = _kinds(dots)
    plot = Plot(
        title=title,
        x_label=x_label,
        y_label=y_label,
        x=(min(costs) - 0.1, max(costs) + 0.1),
        y=_with_margin(dots),
        legend=kinds if len(kinds) > 1 else (),
        x_text=lambda power: number(10**power),
    )
    for one, cost in zip(dots, costs, strict=True):
        x, series = plot.across(cost), kinds.index(one.kind)
        side, anchor = (8, "start") if x < 0.7 * WIDTH else (-8, "end")
        plot.add(
            f'<line {stroke(series)} x1="{x:.1f}" x2="{x:.1f}" y1="{plot.down(one.low):.1f}" '
            f'y2="{plot.down(one.high):.1f}" stroke-width="2"/>'
            f'<circle {fill(series)} cx="{x:.1f}" cy="{plot.down(one.mean):.1f}" r="4.5"/>'
            f'<text class="ink" x="{x + side:.1f}" y="{plot.down(one.mean) - 6:.1f}" text-anchor="{anchor}" '
            f'fill="#1a1a1a">{inert(one.name)}</text>'
        )
    return plot.svg()


def _kinds(dots: Sequence[Dot]) -> list[str]:
    return list(dict.fromkeys(one.kind for one in dots))


def _with_margin(dots: Sequence[Dot]) -> tuple[float, float]:
    """Lowest and highest value of all intervals, with some room."""
    low, high = extent([value for one in dots for value in (one.low, one.mean, one.high)])
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def shortened(name: str) -> str:
    """A name that fits beside its bar."""
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
