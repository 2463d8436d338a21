"""How far scores can be trusted, as a table and charts: LDS, QLD and planted rows."""

from __future__ import annotations

from typing import Any

from result_format import dot_of, plot, table, title, with_interval


def _cell(one: dict[str, Any]) -> str:
    """QLD is in nats, and thousandths of them."""
    return with_interval(one["interval"], 3 if one["measure"] == "QLD" else 2)


def trusted(stored_result: dict[str, Any], name: str, model: str) -> str:
    """Methods down, measures across, what random orders reach, and a chart of each measure that is trained for."""
    found = stored_result["found"]
    cells = {(one["measure"], one["target"], one["method"]): one for one in found}
    measures = list(dict.fromkeys((measure, of) for measure, of, _ in cells))
    rows = []
    for method in dict.fromkeys(method for _, _, method in cells):
        own = [cells.get((*measure, method)) for measure in measures]
        rows.append([title(method), *(_cell(one) if one else "" for one in own)])
    chances = {(one["measure"], one["target"]): f"{one['chance']:.2f}" for one in found}
    head = ["method", *(f"{measure}, {of}" for measure, of in measures)]
    text = table(head, [*rows, ["by chance", *(chances[measure] for measure in measures)]])
    if control := stored_result.get("random_orders"):
        subsets = next(len(one["details"]["loss"]) for one in found if one["measure"] == "LDS")
        text += (
            f"\nOf {control['orders']:,} random orders 95 % reach an LDS between {control['low']:.2f} and "
            f"{control['high']:.2f} with these {subsets} subsets, the luckiest {control['highest']:.2f}.\n"
        )
    for measure in ("LDS", "QLD"):
        own = [one for one in found if one["measure"] == measure]
        if own:
            dots = [dot_of(title(one["method"]), one["interval"], measure) for one in own]
            text += plot(f"{name}-{measure.lower()}", dots, f"{measure} on {model}", "dashed: chance", 0.0)
    return text
