"""What a part of the page is made of."""

from __future__ import annotations

from dataclasses import dataclass

from gistselect.report.alerts import Link

Cell = str | Link


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under a head; the first cell of a row names it."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    lead: str
    charts: tuple[str, ...] = ()
    """SVG documents."""
    tables: tuple[tuple[str, Table], ...] = ()
    """Caption and table."""
