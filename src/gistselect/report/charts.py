"""Charts as self-contained SVG: no script, no fonts to fetch, every text escaped.

Each element has a colour of its own, for the file, and a class, by which a page sets another in its dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gistselect.report.inert import inert

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 40, 48
LEGEND_LINE = 18
PALETTE = ("#2457a6", "#c8511b", "#2f855a", "#8a3ffc", "#a56a00", "#117a8b")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One named curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    marks: Sequence[tuple[str, float]] = (),
) -> str:
    """An SVG document with the curves, axes with round ticks, vertical `marks` (name, x) and a legend."""
    plot = Plot(
        title=title,
        x_label=x_label,
        y_label=y_label,
        x=extent([value for line in lines for value in line.x]),
        y=y_range or extent([value for line in lines for value in line.y]),
        legend=[line.name for line in lines],
        counts=all(float(value).is_integer() for line in lines for value in line.x),
    )
    for index, line in enumerate(lines):
        points = " ".join(f"{plot.across(x):.1f},{plot.down(y):.1f}" for x, y in zip(line.x, line.y, strict=True))
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        plot.add(f'<polyline {stroke(index)} points="{points}" fill="none" stroke-width="2"{dash}/>')
    for name, x in marks:
        plot.mark(name, x)
    return plot.svg()


@dataclass(kw_only=True)
class Plot:
    """An SVG in the making: a title, two axes, what is drawn between them, and a legend below."""

    title: str
    x_label: str
    y_label: str
    x: tuple[float, float]
    y: tuple[float, float]
    legend: Sequence[str] = ()
    x_text: Callable[[float], str] = field(default_factory=lambda: number)
    """What is written at a tick of the horizontal axis."""
    counts: bool = False
    """Whether the horizontal axis counts something: no tick stands between two steps."""
    parts: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """Of marked lines; over everything else, so that no other line crosses them."""

    def across(self, x: float) -> float:
        """Horizontal place of a value; what lies outside the axis is drawn at its end."""
        return LEFT + _share(x, self.x) * (WIDTH - LEFT - RIGHT)

    def down(self, y: float) -> float:
        """Vertical place of a value, as `across`."""
        return HEIGHT - BOTTOM - _share(y, self.y) * (HEIGHT - TOP - BOTTOM)

    def add(self, element: str) -> None:
        """An element over those before it."""
        self.parts.append(element)

    def mark(self, name: str, x: float) -> None:
        """A named vertical line."""
        at, height = self.across(x), TOP + 12 + 15 * len(self.names)
        end = at > (WIDTH + LEFT) / 2
        self.add(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#1a1a1a" '
            'stroke-dasharray="3 3"/>'
        )
        self.names.append(
            f'<text class="ink" x="{at - 5 if end else at + 5:.1f}" y="{height}" '
            f'text-anchor="{"end" if end else "start"}" fill="#1a1a1a">{inert(name)}</text>'
        )

    def svg(self) -> str:
        """The document."""
        opening = frame(self.title, HEIGHT + LEGEND_LINE * len(self.legend), left=LEFT)
        middle = (TOP + HEIGHT - BOTTOM) / 2
        closing = [
            f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle" '
            f'fill="#333333">{inert(self.x_label)}</text>',
            f'<text class="label" transform="translate(16 {middle}) rotate(-90)" text-anchor="middle" fill="#333333">'
            f"{inert(self.y_label)}</text>",
        ]
        for index, name in enumerate(self.legend):
            line = HEIGHT + LEGEND_LINE * index + 4
            closing += [
                f'<rect {fill(index)} x="{LEFT}" y="{line - 5}" width="18" height="6"/>',
                f'<text class="ink" x="{LEFT + 26}" y="{line + 3}" fill="#1a1a1a">{inert(name)}</text>',
            ]
        return "\n".join([*opening, *self._ticks(), *self.parts, *self.names, *closing, "</svg>"]) + "\n"

    def _ticks(self) -> list[str]:
        parts = []
        for y in ticks(*self.y):
            down = self.down(y)
            parts += [
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down:.1f}" y2="{down:.1f}" '
                'stroke="#e3e3e3"/>',
                f'<text class="tick" x="{LEFT - 8}" y="{down + 4:.1f}" text-anchor="end" fill="#555555">'
                f"{number(y)}</text>",
            ]
        for x in ticks(*self.x):
            if self.counts and not float(x).is_integer():
                continue
            parts.append(
                f'<text class="tick" x="{self.across(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" '
                f'fill="#555555">{self.x_text(x)}</text>'
            )
        return parts


def frame(title: str, height: float, left: float = 16) -> list[str]:
    """The first elements of every chart: the document, its ground and its title."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{inert(title)}</title>",
        f'<rect class="ground" width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text class="ink" x="{left}" y="22" font-size="15" font-weight="600" fill="#1a1a1a">{inert(title)}</text>',
    ]


def stroke(index: int) -> str:
    """Class and colour of the outline of a series."""
    return f'class="line-{index % len(PALETTE)}" stroke="{PALETTE[index % len(PALETTE)]}"'


def fill(index: int) -> str:
    """Class and colour of the area of a series."""
    return f'class="area-{index % len(PALETTE)}" fill="{PALETTE[index % len(PALETTE)]}"'


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values within an interval, at most `most`."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's text."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def extent(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest value, apart from each other."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _share(value: float, ends: tuple[float, float]) -> float:
    return min(max((value - ends[0]) / (ends[1] - ends[0]), 0.0), 1.0)
