"""The reasons of a row as plain lines for a terminal. Text of the data stands as it is, but for hidden characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gistselect.report.facts import Query, Reasons, Turn
from gistselect.report.inert import visible

MOST_CHARACTERS, MOST_SCORES = 600, 8
SAID = {
    "selected": "selected",
    "borderline": "not selected, but among the next in line",
    "rejected": "not selected",
    "prefiltered": "not scored: the prefilter left it out",
    "quarantined": "quarantined: it has no score",
}


def reason_lines(
    row: Reasons, queries: Sequence[Query], *, n_scored: int, n_selected: int, threshold: float, whole: bool = False
) -> Iterator[str]:
    """Why the row was selected, or was not; with `whole` no text is shortened."""
    yield f"Row {row.row} ({visible(row.id)}) of {visible(row.source)}: {SAID[row.status]}."
    if row.reason:
        yield f"  reason: {visible(row.reason)}"
    if row.score is not None:
        cut = f"{n_selected:,} were selected, down to {threshold:.4f}"
        yield f"  score {row.score:.4f}, rank {row.rank:,} of {n_scored:,}; {cut}"
        yield f"  best target: {visible(row.best_target)}"
        best = sorted(row.scores.items(), key=lambda one: -one[1])
        if len(best) > 1:
            told = ", ".join(f"{visible(name)} {value:.4f}" for name, value in best[:MOST_SCORES])
            yield f"  by target: {told}{', …' if len(best) > MOST_SCORES else ''}"
        measured = dict(row.measured)
        if (stability := measured.pop("stability", None)) is not None:
            yield f"  stability: it is selected in {stability:.0%} of the draws of the queries"
        if measured:
            yield "  " + ", ".join(f"{name} {value:,.4g}" for name, value in measured.items())
        for name, rank in row.other_ranks.items():
            yield f"  rank {rank:,} by {name}"
    yield from _conversation("The row", row.turns, whole)
    if row.nearest is not None:
        query = queries[row.nearest.query]
        title = f"Its nearest query, {visible(query.id)} of {visible(query.group or query.target)}"
        yield from _conversation(f"{title} ({row.nearest.how}: {row.nearest.value:.4f})", query.turns, whole)


def _conversation(title: str, turns: Sequence[Turn], whole: bool) -> Iterator[str]:
    yield f"{title}:"
    if not turns:
        yield "  (no readable conversation is stored)"
    for role, text in turns:
        cut = text if whole else text[:MOST_CHARACTERS]
        more = f" […{len(text) - len(cut):,} more characters]" if len(cut) < len(text) else ""
        first, *rest = (visible(cut) + more).split("\n")
        yield f"  {visible(role)}: {first}"
        yield from (f"    {line}" for line in rest)
