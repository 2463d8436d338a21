"""What each method of a run cost, from the seconds and bytes that its artifacts noted."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from gistselect.evaluation.cost import FullTraining, SelectionCost
from gistselect.run.arms import FULL, Arm, Recipe
from gistselect.run.cells import Cell
from gistselect.run.choosing import Select
from gistselect.run.ingest import TokenRows
from gistselect.run.scoring import Score
from gistselect.run.store import STORED, Artifact
from gistselect.run.warmup import WarmUp
from gistselect.training.recipe import steps_per_epoch


def selection_cost(select: Select, full: FullTraining | None) -> SelectionCost:
    """The cost of one method, as if it had run alone.

    Stages that several methods share are charged to each in full: reading, tokenising, the warm-up. Of a pass, each is
    charged what all share (reading, forward, backward) and its own arithmetic. A prefilter is part of what it serves.
    Adapters that were given cost nothing.
    """
    score = select.score
    reads_model = score.representation.reads != "text"
    seconds = {"read": _seconds([select.records.artifact])}
    if reads_model and isinstance(score.rows, TokenRows):
        seconds["tokenise"] = _seconds([score.rows.artifact])
    if isinstance(score.warmup, WarmUp):
        seconds["warm-up"] = _seconds([score.warmup.artifact])
    scores = [score]
    if score.prefilter is not None:
        scores.append(score.prefilter.score)
        own = _scoring(score.prefilter.score)
        seconds["prefilter"] = sum(own.values()) + _seconds([score.prefilter.artifact])
    seconds |= {**_scoring(score), "select": _seconds([select.artifact])}
    cells = itertools.chain.from_iterable(_cells(one) for one in scores)
    stored = sum(_stored(cell.features) for cell in cells)
    n_usable = max(score.rows.facts["n_usable"], 1)
    return SelectionCost(seconds=seconds, bytes_per_row=stored / n_usable, full_training=full)


def _stored(features: Artifact) -> float:
    """Bytes of the shards, also of those that were cleaned away."""
    return features.shard_bytes or features.spent.get(STORED, 0.0)


def _scoring(score: Score) -> dict[str, float]:
    """Seconds from the pool's rows to their scores, by stage."""
    fits = [fit for column in score.columns for fit, _ in column.entries]
    of_queries = {one.artifact.key: one.artifact for fit in fits for one in (fit, fit.preparation) if one is not None}
    return {
        "queries": _seconds(of_queries.values()),
        "pool": _pass_seconds(_cells(score)),
        "score": _seconds([score.artifact]),
    }


def _cells(score: Score) -> list[Cell]:
    """Every cell of a method once."""
    return list({cell.features.key: cell for column in score.columns for _, cell in column.entries}.values())


def _pass_seconds(cells: Sequence[Cell]) -> float:
    """Seconds of the passes over the pool: one at each checkpoint, however many cells of the method it filled."""
    total = 0.0
    for place in dict.fromkeys(cell.checkpoint for cell in cells):
        spent = [cell.features.spent for cell in cells if cell.checkpoint == place]
        total += max(one.get("shared", 0.0) for one in spent) + sum(one.get("own", 0.0) for one in spent)
    return total


def _seconds(artifacts: Iterable[Artifact]) -> float:
    return sum(artifact.spent.get("seconds", 0.0) for artifact in artifacts)


def full_training(recipe: Recipe, arms: Sequence[Arm]) -> FullTraining | None:
    """One fine-tuning on the full pool: measured if there was one, else forecast from the rate of the others.

    None if no training has noted its time.
    """
    measured = [arm.training(recipe).spent.get("seconds", 0.0) for arm in arms if arm.baseline == FULL]
    if measured and all(measured):
        return FullTraining(seconds=sum(measured) / len(measured), measured=True)
    lengths = recipe.tokens.columns(["row", "n_tokens"])
    of_row = dict(zip(lengths["row"].to_pylist(), lengths["n_tokens"].to_pylist(), strict=True))
    done = {arm.training(recipe).key: arm for arm in arms}
    tokens = seconds = 0.0
    for arm in done.values():
        rows, spent = arm.rows(recipe.tokens), arm.training(recipe).spent
        steps = recipe.training.epochs * steps_per_epoch(len(rows), recipe.training.global_batch_size)
        read = recipe.training.epochs * sum(of_row[row] for row in rows.tolist())
        if spent.get("steady_steps"):
            tokens, seconds = tokens + read * spent["steady_steps"] / steps, seconds + spent["steady_seconds"]
        elif spent.get("seconds"):
            tokens, seconds = tokens + read, seconds + spent["seconds"]
    if not seconds:
        return None
    return FullTraining.forecast(
        tokens=sum(of_row.values()), epochs=recipe.training.epochs, tokens_per_second=tokens / seconds
    )
