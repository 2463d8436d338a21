"""The forecast: what a run will read, compute and store, and what is there already, said before the work starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from gistselect.errors import ModelError
from gistselect.run.config import RunConfig
from gistselect.run.pass_groups import groups
from gistselect.run.plan import Plan
from gistselect.run.workload import Work
from gistselect.selection.budget import parse_budget, rows_for_budget

SHOWN_FOUND, SHOWN_REASONS = 6, 5
WITH_SCORER, TOKENS = ("warmup", "features"), ("tokens", "padded tokens")
"""Stages in which the scoring model reads, and what it reads."""
FLOP_PER_TOKEN = 4
"""Times the parameters: 2 forward and 2 for the gradients of the activations (weights are frozen)."""


def forecast(plan: Plan, config: RunConfig, works: Sequence[Work]) -> str:
    """Counts and costs in a few lines. Raises `ConfigError` if the budget is over the pool."""
    facts = plan.candidates.facts
    n_rows = rows_for_budget(config.budget, facts, facts["n_usable"])
    n_queries = sum(len(target.queries.records) for target in plan.targets)
    names = ", ".join(target.queries.target for target in plan.targets)
    pool = f"Pool: {facts['n_rows']:,} rows, {facts['n_usable']:,} usable, {facts['n_rejected']:,} quarantined"
    if plan.tokens:
        pool += (
            f"; {facts['n_tokens']:,} tokens, {facts['n_supervised']:,} supervised; longest row {facts['longest']:,}, "
            f"{facts['n_truncated']:,} rows cut at {config.max_length:,}"
        )
    lines = [
        *_found(plan),
        f"{pool}.",
        *(f"  {count:,} rows: {reason}" for reason, count in list(facts.get("reasons", {}).items())[:SHOWN_REASONS]),
        *(
            f"  {count:,} rows are used without their {what}, which the chat template does not show"
            for what, count in facts.get("unshown", {}).items()
        ),
        f"Targets: {names}; {n_queries:,} queries{_cut_queries(plan)}. To select: {_to_select(config, n_rows)}.",
        f"Methods: {', '.join(method.representation.title for method in plan.methods)}.",
        *_prefilter(plan),
        f"Forecast: {_work(plan, config, works)}.",
    ]
    return "\n".join(lines)


def _to_select(config: RunConfig, n_rows: int) -> str:
    amount = parse_budget(config.budget)
    if amount.unit != "rows":
        return f"{amount.number:,} {amount.unit}, about {n_rows:,} rows of mean length"
    return f"{n_rows:,} rows" + (f" ({config.budget})" if amount.is_share else "")


def _found(plan: Plan) -> list[str]:
    """What was found in the files of the pool; in many files together, and in each in manifest.json."""
    facts = plan.records.rows.facts
    return facts["found"] if len(facts["found"]) <= SHOWN_FOUND else facts["found_together"]


def _prefilter(plan: Plan) -> list[str]:
    """What is spared, if anything is."""
    if plan.prefilter is None:
        return []
    cheap, names = plan.prefilter.narrowing, ", ".join(plan.prefilter.narrowed)
    return [
        f"Prefilter: {cheap.representation.title} reads all rows, {names} the best {100 * cheap.share:g} % of the pool "
        f"by it and a sample of the rest, {100 * plan.prefilter.part:.0f} % of the usable rows together."
    ]


def _cut_queries(plan: Plan) -> str:
    cut, lost = (
        sum(counts) for counts in zip(*((one.n_truncated, len(one.rejected)) for one in plan.targets), strict=True)
    )
    notes = [f"{cut:,} cut"] * (cut > 0) + [f"{lost:,} unusable, see rejected_queries.jsonl"] * (lost > 0)
    return f" ({', '.join(notes)})" if notes else ""


def _work(plan: Plan, config: RunConfig, works: Sequence[Work]) -> str:
    """What is computed: passes, FLOP, bytes; and how much of it is there already."""
    n_passes = sum(group.reads != "text" and bool(group.pending) for group in groups(plan))
    parts = []
    if n_passes and plan.goes_to("features"):
        parts.append(f"{n_passes} pass{'es' * (n_passes > 1)} of the model over the pool")
    if (n_parameters := _parameters(config)) is not None and plan.tokens:
        tokens = sum(work.left for work in works if work.stage in WITH_SCORER and work.unit in TOKENS)
        flop = FLOP_PER_TOKEN * n_parameters * tokens
        parts.append(f"{flop / 1e12:,.1f} TFLOP with queries and warm-up ({n_parameters / 1e6:,.1f} M parameters)")
    if stored := _stored(plan):
        parts.append(stored)
    done = sum(work.state == "done" for work in works)
    parts.append(f"{done} of {len(works)} pieces of work are done already")
    return ", ".join(parts) + "; the time left is shown as soon as a rate is measured"


def feature_bytes(plan: Plan) -> tuple[int, bool]:
    """Bytes of the features still to be made, and whether there are more whose width is not known."""
    total, unknown = 0.0, False
    n_rows = plan.candidates.facts["n_usable"]
    for stage in plan.passes:
        queries = {fit.artifact.key: len(fit.queries.records) for fit in stage.fits}
        for cell in stage.cells:
            if cell.features.is_complete:
                continue
            width = cell.representation.width(queries[cell.fit.key] if cell.fit else 0)
            unknown |= width is None
            total += 4 * n_rows * plan.share_read(cell.representation.reads) * (width or 0)
    return round(total), unknown


def _stored(plan: Plan) -> str:
    total, unknown = feature_bytes(plan)
    if not total and not unknown:
        return ""
    return f"at most {max(total / 1e6, 0.1):,.1f} MB of features" + " and the sketches of the pool" * unknown


def _parameters(config: RunConfig) -> int | None:
    """Number of base-model parameters, from the weight files of a local folder; unknown for a hub id.

    Raises `ModelError` that names a damaged file.
    """
    if config.model is None:
        return None
    from safetensors import SafetensorError, safe_open

    count = 0
    for path in Path(config.model).glob("*.safetensors"):
        try:
            with safe_open(path, framework="numpy") as file:
                count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} is missing or damaged ({error}); fetch the model again.") from None
    return count or None
