"""The charts of a run's page: distributions, shares, densities, intervals; each an SVG as `charts` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gistselect.report.charts import RIGHT, WIDTH, Plot, extent, fill, number, stroke
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
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{inert(title)}</title>",
        f'<rect class="ground" width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text class="ink" x="16" y="22" font-size="15" font-weight="600" fill="#1a1a1a">{inert(title)}</text>',
    ]
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
            f'<circle {fill(1)} fill-opacity="0.8" cx="{plot.across(float(x[one])):.1f}" '
            f'cy="{plot.down(float(y[one])):.1f}" r="2.5"/>'
        )
    return plot.svg()


def interval_chart(rows: Sequence[tuple[str, float, float, float]], *, title: str, x_label: str) -> str:
    """Means with their intervals (name, mean, low, high), one below the other."""
    low, high = extent([value for _, *values in rows for value in values])
    margin = 0.06 * (high - low)
    low, high = low - margin, high + margin
    height = BAR_TOP + 28 * len(rows) + 30

    def at(value: float) -> float:
        return NAME_WIDTH + (value - low) / (high - low) * (WIDTH - NAME_WIDTH - RIGHT - 50)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{inert(title)}</title>",
        f'<rect class="ground" width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text class="ink" x="16" y="22" font-size="15" font-weight="600" fill="#1a1a1a">{inert(title)}</text>',
        f'<text class="label" x="{(NAME_WIDTH + WIDTH) / 2}" y="{height - 8}" text-anchor="middle" fill="#333333">'
        f"{inert(x_label)}</text>",
    ]
    for index, (name, mean, lower, upper) in enumerate(rows):
        line = BAR_TOP - 8 + 28 * index
        parts.append(
            f'<text class="ink" x="{NAME_WIDTH - 10}" y="{line + 4}" text-anchor="end" fill="#1a1a1a">'
            f"{inert(shortened(name))}</text>"
            f'<line class="grid" x1="{NAME_WIDTH}" x2="{WIDTH - RIGHT - 50}" y1="{line}" y2="{line}" stroke="#e3e3e3"/>'
            f'<line {stroke(0)} x1="{at(lower):.1f}" x2="{at(upper):.1f}" y1="{line}" y2="{line}" stroke-width="3"/>'
            f'<circle {fill(1)} cx="{at(mean):.1f}" cy="{line}" r="5"/>'
            f'<text class="tick" x="{WIDTH - RIGHT - 42}" y="{line + 4}" fill="#555555">{number(mean)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def shortened(name: str) -> str:
    """A name that fits beside its bar."""
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
