"""What one change at a time is worth: a row for each variant, by the loss after training and by LDS."""

from __future__ import annotations

from typing import Any

from result_format import RANDOM, difference, dot_of, mathematics, plot, table, with_interval


def varied(found: dict[str, Any], name: str, model: str) -> str:
    """Losses stand there if any selection was trained on; a null level where the representation has one."""
    trained = bool(found["references"])
    rows, dots = [], []
    if trained:
        random = found["references"][RANDOM]
        rows.append([RANDOM, f"{random['mean']:.3f}", *[""] * 6])
    for one in found["findings"]:
        loss = one["loss"] or {}
        against = loss.get("against", {})
        null = next(iter(one["facts"]["null"].values()), None)
        label = f"{one['question']}: {one['name']}"
        losses = [
            f"{loss['mean']:.3f}" if loss else "",
            difference(against.get(RANDOM)),
            difference(against.get("reference")),
        ]
        rows.append(
            [
                label,
                *(losses if trained else ()),
                with_interval(one["lds"], 2),
                f"{one['shared_with_reference']:.0%}",
                mathematics(one["sources"]),
                f"{one['facts']['score_quantiles'][2]:.3g} / {null['0.95']:.3g}" if null and "0.95" in null else "",
            ]
        )
        dots.append(dot_of(label[:44], one["lds"], "LDS"))
    head = ["variant", *(["loss", "minus random", "minus reference"] if trained else ())]
    head += ["LDS", "shared rows", "mathematics", "95 % of rows / of noise"]
    below = "rank correlation; dashed: the reference"
    return table(head, rows) + plot(f"{name}-lds", dots, f"LDS of every variant, {model}", below, dots[0].mean)
