"""The forecast: what a run will read, compute and store, said before the work starts."""

from __future__ import annotations

import json
from pathlib import Path

from gistselect.run.context import Run
from gistselect.run.ingest import TokenizedPool
from gistselect.run.targets import Target
from gistselect.selection.budget import rows_for_budget


def forecast(run: Run, pool: TokenizedPool, targets: dict[str, Target]) -> str:
    """Counts and costs in a few lines. Raises `ConfigError` if the budget is over the pool."""
    facts = pool.facts
    n_rows = rows_for_budget(run.config.budget, facts["n_rows"], facts["n_examples"])
    n_queries = sum(len(target.examples) for target in targets.values())
    lines = [
        f"Pool: {facts['n_rows']:,} rows, {facts['n_examples']:,} usable, {facts['n_rejected']:,} quarantined; "
        f"{facts['n_tokens']:,} tokens, {facts['n_supervised']:,} supervised; longest row {facts['longest']:,}.",
        f"Targets: {', '.join(targets)}; {n_queries:,} queries. To select: {n_rows:,} rows ({run.config.budget}).",
    ]
    stored = n_queries * 4 * facts["n_examples"] * max(1, len(run.config.warmup_checkpoints))
    cost = f"at most {stored / 1e6:,.0f} MB of features"
    if (n_parameters := _parameters(run)) is not None:
        flops = 4 * n_parameters * facts["n_tokens"]
        cost = f"{flops / 1e12:,.1f} TFLOP for one pass over the pool ({n_parameters / 1e6:,.1f} M parameters), " + cost
    return "\n".join([*lines, f"Forecast: {cost}; the time left is shown as soon as a rate is measured."])


def _parameters(run: Run) -> int | None:
    """Number of base-model parameters, from the weight files of a local folder; unknown for a hub id."""
    if run.live is not None:
        return sum(parameter.numel() for parameter in run.live.model.parameters())
    count = 0
    for path in Path(run.config.model).glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for extent in tensor["shape"]:
                    size *= extent
                count += size
    return count or None
