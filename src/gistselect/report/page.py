"""One page for a run: a single HTML file that opens from disk, offline, and in which text of the data is inert.

The template escapes everything; rows are gzip JSON that a plain script puts into the page as text, never as markup;
a content-security policy allows that script alone, and no connection.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader
from markupsafe import Markup

from gistselect.report.alerts import Link, alerts
from gistselect.report.facts import Reasons, RunFacts, Turn
from gistselect.report.inert import visible
from gistselect.report.sections import sections

MOST_BYTES = 1_500_000
EXCERPT, LEAST_EXCERPT = 1200, 60
"""Characters shown of a row at first, and at least: fewer are shown until the page is small enough."""
MOST_TURNS = 8
MOST_SCORES = 6
"""Targets whose scores are told for one row, the best ones."""


def render(run: RunFacts, others: Sequence[RunFacts] = (), shared: Sequence[float] = ()) -> str:
    """The page as text, at most 1.5 MB.

    `others` are runs to compare with, and `shared` is of each the share of rows that both selected.
    """
    excerpt = EXCERPT
    while True:
        page = _render(run, others, shared, excerpt)
        if len(page.encode()) <= MOST_BYTES or excerpt <= LEAST_EXCERPT:
            return page
        excerpt //= 2


def _render(run: RunFacts, others: Sequence[RunFacts], shared: Sequence[float], excerpt: int) -> str:
    links: list[Link] = []

    def register(link: Link) -> int:
        links.append(link)
        return len(links) - 1

    def data() -> str:
        return packed({**_data(run, excerpt), "links": [_link(one) for one in links]})

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_own_file), auto_reload=False
    )
    script, style = _own_file("page.js"), _own_file("page.css")
    return environment.get_template("page.html.jinja").render(
        run=run,
        alerts=alerts(run),
        sections=sections(run, others, shared),
        svg=Markup,
        register=register,
        data=data,
        # Known to nobody who wrote the rows: it depends on all of them.
        nonce=hashlib.sha256((script + run.options + repr(run.rows)).encode("utf-8", "replace")).hexdigest()[:32],
        script=Markup(script),
        style=Markup(style),
        excerpt=excerpt,
        shown=_shown(run),
        visible=visible,
    )


def _link(link: Link) -> list[Any]:
    """Conditions on rows as the script has them."""
    shown = [(name, how, visible(value) if isinstance(value, str) else value) for name, how, value in link.conditions]
    return [shown, visible(link.where)]


def _own_file(name: str) -> str:
    return (files("gistselect.report") / name).read_text(encoding="utf-8")


def packed(value: Any) -> str:
    """JSON as base64 of gzip; the same bytes for the same value."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode()


def shortened(turns: Sequence[Turn], limit: int) -> list[list[str]]:
    """Role and text of the first turns, with at most `limit` characters together and a word on what is left out."""
    shown = []
    each = max(20, limit // max(1, min(len(turns), MOST_TURNS)))
    for role, text in turns[:MOST_TURNS]:
        rest = f" […{len(text) - each:,} more characters]" if len(text) > each else ""
        shown.append([visible(role[:40]), visible(text[:each]) + rest])
    if len(turns) > MOST_TURNS:
        shown.append(["", f"[{len(turns) - MOST_TURNS} more turns]"])
    return shown


def _data(run: RunFacts, excerpt: int) -> dict[str, Any]:
    used = sorted({row.nearest.query for row in run.rows if row.nearest})
    place = {query: index for index, query in enumerate(used)}
    return {
        "rows": [_row(row, place, excerpt) for row in run.rows],
        "queries": [
            {
                "id": visible(run.queries[one].id),
                "group": visible(run.queries[one].group or run.queries[one].target),
                "turns": shortened(run.queries[one].turns, excerpt),
            }
            for one in used
        ],
        "n_scored": len(run.main.scores),
    }


def _row(row: Reasons, place: Mapping[int, int], excerpt: int) -> dict[str, Any]:
    """A row as the script shows it; numbers in the few digits that are read."""
    best = sorted(row.scores.items(), key=lambda one: -one[1])[:MOST_SCORES]
    told: dict[str, Any] = {
        "id": visible(row.id[:200]),
        "source": visible(row.source),
        "row": row.row,
        "status": row.status,
        "turns": shortened(row.turns, excerpt),
    }
    if row.reason:
        told["reason"] = visible(row.reason[:600])
    if row.score is not None:
        told |= {
            "rank": row.rank,
            "score": _digits(row.score),
            "best_target": visible(row.best_target),
            **{name: _digits(value) for name, value in row.measured.items() if math.isfinite(value)},
        }
        if len(best) > 1:
            told["scores"] = [[visible(name), _digits(value)] for name, value in best]
    if row.nearest:
        told["nearest"] = [place[row.nearest.query], _digits(row.nearest.value), row.nearest.how]
    if row.other_ranks:
        told["others"] = list(row.other_ranks.items())
    return told


def _digits(value: float) -> float:
    return float(f"{value:.5g}")


def _shown(run: RunFacts) -> list[tuple[str, int, int]]:
    """Of each kind of row its name, how many the page holds, and how many there are."""
    n_selected = int(run.main.selected.sum())
    held = {status: sum(row.status == status for row in run.rows) for status in ("selected", "borderline", "rejected")}
    n_rejected = len(run.main.scores) - n_selected - held["borderline"]
    n_left_out, n_lost = (sum(row.status == one for row in run.rows) for one in ("prefiltered", "quarantined"))
    return [
        ("selected", held["selected"], n_selected),
        ("borderline", held["borderline"], held["borderline"]),
        ("rejected", held["rejected"], n_rejected),
        *([("prefiltered", n_left_out, run.n_left_out)] if run.n_left_out else []),
        ("quarantined", n_lost, run.n_quarantined),
    ]
