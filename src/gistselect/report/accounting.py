"""The part of a run's page that accounts for its budget: what was taken, and what was refused by which constraint."""

from __future__ import annotations

from collections.abc import Iterator

from gistselect.report.alerts import Link, quoted
from gistselect.report.facts import RunFacts
from gistselect.report.parts import Section, Table


def accounting(run: RunFacts) -> Iterator[Section]:
    """Nothing for a run of a version that did not count."""
    found = run.accounting
    if "budget" not in found:
        return
    unit = found["unit"]
    rows = [
        (f"budget in {unit}", f"{found['budget']:,}"),
        *([(f"{unit} taken", f"{found['used']:,}")] if unit != "rows" else []),
        (
            "rows taken",
            Link(
                text=f"{found['n_selected']:,}",
                conditions=(("status", "=", "selected"),),
                where="every row of selection.parquet",
            ),
        ),
        *(
            (name, f"{found[key]:,}")
            for name, key in (("their tokens", "n_tokens"), ("their supervised tokens", "n_supervised"))
            if key in found
        ),
        ("rows looked at, best first", f"{found['n_looked_at']:,}"),
        *((f"refused: {reason}", f"{count:,}") for reason, count in found["refused"].items()),
    ]
    tables = [("What was taken and refused", Table(head=("count", "number"), rows=tuple(rows)))]
    if limits := found.get("limits"):
        of_sources = tuple(
            (
                source,
                *("" if one[key] is None else f"{one[key]:,}" for key in ("least", "most")),
                Link(
                    text=f"{one['selected']:,}",
                    conditions=(("status", "=", "selected"), ("source", "=", source)),
                    where=f"source = '{quoted(source)}' in selection.parquet",
                ),
            )
            for source, one in limits.items()
        )
        head = ("source", "at least", "at most", f"{unit} taken")
        tables.append(("Limits of sources", Table(head=head, rows=of_sources)))
    yield Section(
        id="accounting",
        title="Budget and constraints",
        lead="Rows are taken in the selector's order; one that a constraint refuses makes room for the next.",
        tables=tuple(tables),
    )
