"""Charts as self-contained SVG: no script, no fonts to fetch, every text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 40, 48
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
) -> str:
    """An SVG document with the curves, axes with five ticks each, and a legend."""
    x_low, x_high = _extent([value for line in lines for value in line.x])
    y_low, y_high = y_range or _extent([value for line in lines for value in line.y])

    def at(x: float, y: float) -> str:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f},{down:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="600" fill="#1a1a1a">{escape(title)}</text>',
    ]
    for step in range(5):
        x, y = x_low + (x_high - x_low) * step / 4, y_low + (y_high - y_low) * step / 4
        across, down = at(x, y).split(",")
        parts += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}" stroke="#e3e3e3"/>',
            f'<text x="{LEFT - 8}" y="{float(down) + 4:.1f}" text-anchor="end" fill="#555555">{y:.3g}</text>',
            f'<text x="{across}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#555555">{x:.3g}</text>',
        ]
    for index, line in enumerate(lines):
        colour = PALETTE[index % len(PALETTE)]
        points = " ".join(at(x, y) for x, y in zip(line.x, line.y, strict=True))
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        legend = TOP + 16 * index + 6
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>',
            f'<line x1="{WIDTH - 200}" x2="{WIDTH - 176}" y1="{legend}" y2="{legend}" stroke="{colour}" '
            f'stroke-width="2"{dash}/>',
            f'<text x="{WIDTH - 170}" y="{legend + 4}" fill="#1a1a1a">{escape(line.name)}</text>',
        ]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts += [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle" fill="#333333">'
        f"{escape(x_label)}</text>",
        f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle" fill="#333333">'
        f"{escape(y_label)}</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _extent(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
