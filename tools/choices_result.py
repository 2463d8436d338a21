"""Selectors and budgets of `benchmarks/quality.py --choices` as tables, one a target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from result_format import BEFORE, NOT_YET, RANDOM, difference, stored, table, title, with_interval


def choices_block() -> str:
    """One row a method and budget: how much less loss than random rows of the same number, under each selector."""
    found = stored("choices-seed0")
    if found is None:
        return NOT_YET
    return "\n".join(_target(found, name) for name in dict.fromkeys(one["target"] for one in found["findings"]))


def _target(found: Mapping[str, Any], name: str) -> str:
    arms = [one for one in found["findings"] if one["target"] == name]
    random = {one["budget"]: one for one in arms if one["arm"] == RANDOM}
    selected = {(one["arm"], one["budget"], one["selector"]): one for one in arms if one["selector"]}
    # With one target and one group, targets that take turns are the best rows: the same rows, trained on once.
    selectors = [one for one in dict.fromkeys(key[2] for key in selected) if one != "round_robin"]
    rows = [[BEFORE, "", with_interval(next(one for one in arms if one["arm"] == BEFORE)), *[""] * len(selectors)]]
    for budget, one in random.items():
        label = f"{budget}, {one['n_rows']} rows"
        rows.append([RANDOM, label, with_interval(one), *[""] * len(selectors)])
        for method in dict.fromkeys(key[0] for key in selected):
            cells = [
                difference(cell["against"].get(RANDOM)) if (cell := selected.get((method, budget, selector))) else ""
                for selector in selectors
            ]
            rows.append([title(method), label, "", *cells])
    head = ["arm", "budget", "loss", *(f"`{one}` minus random" for one in selectors)]
    return f"{name.removesuffix('.queries')}:\n\n{table(head, rows)}"
