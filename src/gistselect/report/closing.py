"""The end of a run in a few lines: what was selected, why one may believe it, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gistselect.report.alerts import Alert, alerts, share
from gistselect.report.facts import RunFacts

SIGNS = {"bad": "✗", "look": "!", "good": "✓"}
SHOWN_SOURCES = 4
TRAINERS = {
    "trl": "trl sft --config sft_config.yaml",
    "axolotl": "axolotl train axolotl.yml",
    "llamafactory": "llamafactory-cli train train.yaml",
}
"""What trains in the folder that an export writes."""


def closing_lines(run: RunFacts, *, has_model: bool) -> Iterator[str]:
    """The summary of a finished run; an export needs the name of a model (`has_model`)."""
    yield _selected(run)
    yield "Why one may believe it:"
    yield from (f"  {SIGNS[one.level]} {_checked(one)}" for one in alerts(run))
    yield from _agreement(run)
    for comparison in run.comparison:
        yield from (f"  · {verdict}" for verdict in comparison["verdicts"])
    yield from _next(run, has_model)


def _selected(run: RunFacts) -> str:
    method = run.main
    n_selected, n_scored = int(method.selected.sum()), len(method.scores)
    counts = np.bincount(method.sources[method.selected], minlength=len(method.source_names))
    order = sorted(np.flatnonzero(counts), key=lambda source: -counts[source])
    named = ", ".join(f"{method.source_names[one]} {share(counts[one], n_selected)}" for one in order[:SHOWN_SOURCES])
    more = f" and {len(order) - SHOWN_SOURCES} more" if len(order) > SHOWN_SOURCES else ""
    return f"Selected {n_selected:,} of {n_scored:,} scored rows with {method.title}: {named}{more}."


def _checked(one: Alert) -> str:
    return f"{one.title}: {one.number.text}{one.follows}"


def _agreement(run: RunFacts) -> Iterator[str]:
    """How much of the selection every other method takes too; the pairs of the others stand in the report."""
    ours = [one for one in run.agreements if one.first == run.agreements[0].first]
    if ours:
        others = ", ".join(f"{one.second} {one.overlap:.0%}" for one in sorted(ours, key=lambda one: -one.overlap))
        yield f"  · Of the selection others would take too: {others}"


def _next(run: RunFacts, has_model: bool) -> Iterator[str]:
    folder = shlex.quote(run.output)
    yield "Next:"
    yield f"  look at {Path(run.output) / 'report.html'}, or: gistselect explain {folder} --row N"
    if not run.comparison and has_model:
        yield f"  measure it against random rows: gistselect evaluate --run {folder}"
    if not has_model:
        file = Path(run.output) / "selected.jsonl"
        yield f"  train on {file}, or: {_export(run, 'trl')[0]} --model MODEL"
        return
    for tool, command in TRAINERS.items():
        export, target = _export(run, tool)
        yield f"  {export} && cd {target} && {command}"


def _export(run: RunFacts, tool: str) -> tuple[str, str]:
    """The command that hands a selection on, and the folder that it writes."""
    target = shlex.quote(f"{run.output.rstrip('/')}-{tool}")
    return f"gistselect export {shlex.quote(run.output)} --to {tool} --output {target}", target
