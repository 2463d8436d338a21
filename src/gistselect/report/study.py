"""Charts of a study: every arm with its interval, and what it cost, as self-contained SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gistselect.report.charts import PALETTE as COLOURS

INK, QUIET, RULE = "#1a1a1a", "#555555", "#e3e3e3"
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 250, 28, 48, 46
ROW = 24
TICKS = 5


@dataclass(frozen=True, kw_only=True)
class Dot:
    """An estimate with its interval."""

    name: str
    mean: float
    low: float
    high: float
    kind: str
    """What shares a colour: a budget, a method."""
    at: float = 0.0
    """Where it stands on the other axis, if there is one."""


def interval_chart(dots: Sequence[Dot], *, title: str, x_label: str, reference: float | None = None) -> str:
    """A row for each dot, with its interval; a dashed line at `reference`."""
    height = TOP + ROW * len(dots) + BOTTOM
    low, high = _padded([one.low for one in dots], [one.high for one in dots])
    kinds = list(dict.fromkeys(one.kind for one in dots))

    def across(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = _frame(title, height)
    for step in range(TICKS):
        value = low + (high - low) * step / (TICKS - 1)
        parts.append(_line(across(value), TOP, across(value), height - BOTTOM, RULE))
        parts.append(_text(across(value), height - BOTTOM + 16, f"{value:.3f}", QUIET, "middle"))
    if reference is not None and low <= reference <= high:
        parts.append(_line(across(reference), TOP, across(reference), height - BOTTOM, INK, ' stroke-dasharray="5 4"'))
    for index, one in enumerate(dots):
        down, colour = TOP + ROW * (index + 0.5), COLOURS[kinds.index(one.kind) % len(COLOURS)]
        parts.append(_text(LEFT - 10, down + 4, one.name, INK, "end"))
        parts.append(_line(across(one.low), down, across(one.high), down, colour, ' stroke-width="2"'))
        parts.append(f'<circle cx="{across(one.mean):.1f}" cy="{down:.1f}" r="4.5" fill="{colour}"/>')
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 8, x_label, QUIET, "middle"))
    return _closed(parts, kinds)


def cost_chart(dots: Sequence[Dot], *, title: str, x_label: str, y_label: str) -> str:
    """Estimates with intervals over what they cost, on a logarithmic axis; `at` must be positive."""
    height, left = 420, 70
    low, high = _padded([one.low for one in dots], [one.high for one in dots])
    first, last = (math.log10(edge([one.at for one in dots])) for edge in (min, max))
    first, last = first - 0.1, last + 0.35
    kinds = list(dict.fromkeys(one.kind for one in dots))

    def across(value: float) -> float:
        return left + (math.log10(value) - first) / (last - first) * (WIDTH - left - RIGHT)

    def down(value: float) -> float:
        return height - BOTTOM - (value - low) / (high - low) * (height - TOP - BOTTOM)

    parts = _frame(title, height)
    for step in range(TICKS):
        value, cost = low + (high - low) * step / (TICKS - 1), 10 ** (first + (last - first) * step / (TICKS - 1))
        parts.append(_line(left, down(value), WIDTH - RIGHT, down(value), RULE))
        parts.append(_text(left - 8, down(value) + 4, f"{value:.3f}", QUIET, "end"))
        parts.append(_text(across(cost), height - BOTTOM + 16, f"{cost:,.3g}", QUIET, "middle"))
    for one in dots:
        colour = COLOURS[kinds.index(one.kind) % len(COLOURS)]
        parts.append(_line(across(one.at), down(one.low), across(one.at), down(one.high), colour, ' stroke-width="2"'))
        parts.append(f'<circle cx="{across(one.at):.1f}" cy="{down(one.mean):.1f}" r="4.5" fill="{colour}"/>')
        parts.append(_text(across(one.at) + 8, down(one.mean) - 6, one.name, INK, "start"))
    parts.append(_text((left + WIDTH - RIGHT) / 2, height - 8, x_label, QUIET, "middle"))
    middle = (TOP + height - BOTTOM) / 2
    parts.append(
        f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle" fill="{QUIET}">'
        f"{escape(y_label)}</text>"
    )
    return _closed(parts, kinds)


def _frame(title: str, height: float) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="22" font-size="15" font-weight="600" fill="{INK}">{escape(title)}</text>',
    ]


def _closed(parts: list[str], kinds: Sequence[str]) -> str:
    """With a legend, if there is more than one kind."""
    if len(kinds) > 1:
        for index, kind in enumerate(kinds):
            x = 16 + 150 * index
            parts.append(f'<circle cx="{x + 4}" cy="36" r="4" fill="{COLOURS[index % len(COLOURS)]}"/>')
            parts.append(_text(x + 12, 40, kind, QUIET, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{more}/>'


def _text(x: float, y: float, text: str, colour: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _padded(lows: Sequence[float], highs: Sequence[float]) -> tuple[float, float]:
    low, high = min(lows), max(highs)
    room = (high - low) * 0.05 or 0.5
    return low - room, high + room
