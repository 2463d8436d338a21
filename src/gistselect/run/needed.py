"""What of a plan is still needed: no pass is made whose results would only be read by what is there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gistselect.representations.queries import Apart
from gistselect.run.methods import Method
from gistselect.run.plan import Plan


def needed(plan: Plan) -> Plan:
    """The plan without the fits and cells that nothing still to be made reads.

    So the scores of a cleaned run folder are enough for another selection. A plan that ends with the features, or
    before, keeps them all: they are what was asked for.
    """
    if not plan.goes_to("score"):
        return plan
    idle: set[int] = set()
    for method in plan.methods:
        stability = method.stability
        if not _reads_features(method, plan):
            idle |= {id(column) for column in method.columns}
        # What only a stability reads is made in the pass that makes the scores, never in one of its own.
        if stability and (method.score.artifact.is_complete or stability.artifact.is_complete):
            idle |= {id(column) for column in stability.apart}
    columns = tuple(column for column in plan.features.columns if id(column) not in idle)
    return replace(plan, features=replace(plan.features, columns=columns))


def needed_by(together: Plan, plans: Sequence[Plan]) -> Plan:
    """The plan whose passes serve all others, without what only the stability of selections reads that have scores."""
    wanted = {
        cell.features.key
        for plan in plans
        for method in plan.methods
        if method.stability and not method.score.artifact.is_complete
        for column in method.stability.apart
        for _, cell in column.entries
    }
    columns = tuple(
        column
        for column in together.features.columns
        if not isinstance(column.entries[0][0].queries, Apart) or column.entries[0][1].features.key in wanted
    )
    return replace(together, features=replace(together.features, columns=columns))


def _reads_features(method: Method, plan: Plan) -> bool:
    if not method.score.artifact.is_complete or (method.agreement and not method.agreement.artifact.is_complete):
        return True
    selects = plan.goes_to("select") and not method.select.artifact.is_complete
    return selects and method.select.options.order.needs_points
