"""What a run has to do and what of it is left, stage by stage, from the plan's keys: the one account that the forecast
multiplies by measured rates (`run/calibration.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistselect.evaluation.verdict import BEFORE
from gistselect.model.config import ModelConfig
from gistselect.representations.queries import Apart
from gistselect.run import ingest
from gistselect.run.agreement import SAMPLE
from gistselect.run.arms import FULL, Arm
from gistselect.run.cells import Fit, Preparation
from gistselect.run.comparing import Compare
from gistselect.run.config import RunConfig
from gistselect.run.features import pass_name
from gistselect.run.ingest import Rows, TokenRows
from gistselect.run.losses import Measured
from gistselect.run.methods import Method
from gistselect.run.pass_groups import Group, fit_rate, groups, missing, pass_rate, short
from gistselect.run.plan import Plan
from gistselect.run.reporting import MANY_SHARDS
from gistselect.run.scoring import Score
from gistselect.run.store import Artifact
from gistselect.run.warmup import WarmUp, warmup_positions
from gistselect.selection.baselines import random_rows
from gistselect.selection.budget import rows_for_budget
from gistselect.streams import Stream, generator
from gistselect.training.recipe import TrainingConfig, padded_tokens

REPORT = "report"
"""Rate of the page, which reads the text of the rows that it shows, shard by shard; every run makes it at its end."""
PROTOCOL = "protocol"
"""Rate of evaluations on tasks, which nothing measures: an answer may be long or short."""
Amount = float | Callable[[], float]
Lengths = Callable[[TokenRows], NDArray[np.int64]]
"""See `lengths_of`; those of a pool are read once, when the first asks."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One piece of a run, done or not."""

    stage: str
    name: str
    rate: str
    """Key of the rate at which it is done."""
    unit: str
    amount: Amount
    """In all, in `unit`; a function counts it once somebody asks, where that means to read lengths of the pool."""
    missing: float | None = None
    """What is not yet done, if that is neither all nor nothing."""
    beside: Mapping[str, float] = field(default_factory=dict)
    """Amounts of what is done on the way, by the keys of their own rates."""
    parts: tuple[int, int] = (0, 1)
    """Shards (or whole pieces) that are done, and all of them."""
    parallel: bool = False
    """Whether several workers share it."""

    @cached_property
    def total(self) -> float:
        """The whole amount."""
        return self.amount() if callable(self.amount) else self.amount

    @property
    def left(self) -> float:
        """What of it is not yet done."""
        if self.state == "done":
            return 0
        return self.total if self.missing is None else self.missing

    @property
    def needed(self) -> dict[str, float]:
        """What is not yet done, with what is done on the way, by the keys of rates."""
        return {rate: left for rate, left in {self.rate: self.left, **self.beside}.items() if left}

    @property
    def state(self) -> str:
        """`done`, `to do` or `3 of 20 shards`."""
        done, parts = self.parts
        if done == parts:
            return "done"
        return f"{done} of {parts} shards" if done else "to do"


def workload(plan: Plan, config: RunConfig) -> list[Work]:
    """Every piece up to the plan's last stage, in its order. The pool must have been read and tokenised.

    Raises `ConfigError` if the budget is over the pool.
    """
    facts, lengths = plan.candidates.facts, cache(lengths_of)
    found = [_whole("ingest", "read the pool", "read", plan.records.artifact, facts["n_rows"], "rows")]
    for tokens in plan.tokenisings:
        found.append(_whole("ingest", "tokenise", "tokenise", tokens.artifact, facts["n_rows"], "rows"))
    if plan.goes_to("warmup") and isinstance(plan.warmup, WarmUp) and plan.features.reads_gradients:
        found.append(_warm_up(plan.warmup, lengths))
    if plan.goes_to("features"):
        found += _features(plan, lengths)
        if plan.prefilter is not None:
            cheap = plan.prefilter.score
            found.append(_score(cheap, f"score of the prefilter ({cheap.representation.title})"))
    for method in plan.methods:
        if plan.goes_to("score"):
            found += _scores(plan, method)
    n_selected = rows_for_budget(config.budget, facts, facts["n_usable"])
    if plan.goes_to("select"):
        rate = select_rate(config.selector)
        for method in plan.methods:
            name = f"select ({method.representation.title})"
            found.append(_whole("select", name, rate, method.select.artifact, n_selected, "rows"))
        read = min(facts["n_rows"], MANY_SHARDS * ingest.SHARD_ROWS)
        found.append(Work(stage="select", name="report.html", rate=REPORT, unit="rows", amount=read))
    if plan.compare is not None:
        found += [*_trainings(plan.compare, n_selected, lengths), *_evaluations(plan.compare)]
    return found


def _whole(stage: str, name: str, rate: str, artifact: Artifact, amount: Amount, unit: str, **more: Any) -> Work:
    """Work that is done or not."""
    parts = (int(artifact.is_complete), 1)
    return Work(stage=stage, name=name, rate=rate, unit=unit, amount=amount, parts=parts, **more)


def _warm_up(warmup: WarmUp, lengths_of: Lengths) -> Work:
    chosen = warmup_positions(warmup.tokens.facts["n_usable"], warmup.share, warmup.seed)

    def amount() -> float:
        lengths = lengths_of(warmup.tokens)[chosen]
        return padded_tokens(lengths, warmup.training, seed=warmup.seed, epochs=warmup.epochs[-1])

    rate = training_rate(warmup.model, warmup.training)
    return _whole("warmup", f"warm-up of {len(chosen):,} rows", rate, warmup.artifact, amount, "padded tokens")


def lengths_of(tokens: TokenRows) -> NDArray[np.int64]:
    """(n,) tokens of each usable row, in pool order."""
    return tokens.columns(["n_tokens"])["n_tokens"].to_numpy().astype(np.int64)


def training_rate(model: ModelConfig, training: TrainingConfig) -> str:
    """Key of the rate of a training: what a forward and backward pass costs, not how many there are."""
    of_time = {"adapter", "device_batch_size", "full", "fsdp", "gradient_checkpointing", "optimizer"}
    return f"train-{short([model.model_dump(mode='json'), training.model_dump(mode='json', include=of_time)])}"


# --- passes -----------------------------------------------------------------------------------------------


def _features(plan: Plan, lengths_of: Lengths) -> Iterator[Work]:
    for group in groups(plan):
        rows = plan.records.rows if group.reads == "text" else plan.tokens and plan.tokens.rows
        assert rows is not None
        where = f" at {group.checkpoint.name}" if group.checkpoint else ""
        for one in group.preparations:
            amount = partial(_sampled, one, rows, lengths_of)
            name = f"what all targets share ({one.representation.title}{where})"
            yield _whole("features", name, fit_rate(plan, one), one.artifact, amount, rows.unit, parallel=True)
        for one in group.fits:
            aim = ", for the stability" if isinstance(one.queries, Apart) else ""
            name = f"queries of {one.queries.target} ({one.representation.title}{where}{aim})"
            total, unit = amount_of(one, rows)
            yield _whole("features", name, fit_rate(plan, one), one.artifact, total, unit, parallel=True)
        if group.cells:
            yield _pass(plan, group, rows)


def _sampled(one: Preparation, rows: Rows, lengths_of: Lengths) -> float:
    """What a preparation reads: a sample of the tokens, or the text of the whole pool."""
    if not isinstance(rows, TokenRows):
        return rows.facts["n_usable"]
    lengths = lengths_of(rows)
    return float(lengths[one.representation.sample(len(lengths))].sum())


def amount_of(fit: Fit, rows: Rows) -> tuple[float, str]:
    """What a fit reads: its queries, or the text of the whole pool."""
    if fit.representation.reads == "text":
        return rows.facts["n_usable"], "rows"
    return sum(example.n_tokens for example in fit.queries.examples), "tokens"


def _pass(plan: Plan, group: Group, rows: Rows) -> Work:
    left, n_shards = missing(plan, group, rows), len(rows.amounts)
    # Which rows a prefilter keeps is not known yet: every shard counts for its share.
    share = plan.share_read(group.reads)
    return Work(
        stage="features",
        name=pass_name(group.reads, group.checkpoint, group.pending or group.cells),
        rate=pass_rate(plan, group),
        unit=rows.unit,
        amount=share * sum(rows.amounts),
        missing=share * left.read,
        beside={rate: share * amount for rate, amount in left.taken.items()},
        parts=(n_shards - left.shards, n_shards),
        parallel=True,
    )


# --- scores and the proof -----------------------------------------------------------------------------------


def _scores(plan: Plan, method: Method) -> Iterator[Work]:
    title = method.representation.title
    yield _score(method.score, f"score ({title})", plan.share_read(method.representation.reads))
    if method.agreement is not None:
        # Where scores are all that is needed, no pass is left in the plan, and no agreement is to be measured.
        gradients = next((group for group in groups(plan) if group.reads == "gradient"), None)
        rate = pass_rate(plan, gradients) if gradients else "pass-gradient"
        fits = [fit for column in method.columns for fit, _ in column.entries]
        facts = plan.candidates.facts
        mean = facts["n_tokens"] / max(facts["n_usable"], 1)
        total = sum(amount_of(fit, plan.candidates)[0] + SAMPLE * mean for fit in fits)
        name = f"agreement of the sketch ({title})"
        yield _whole("score", name, rate, method.agreement.artifact, total, "tokens")


def _score(score: Score, name: str, share: float = 1.0) -> Work:
    """`share` is that of the usable rows which a prefilter leaves to be scored."""
    return _whole("score", name, score_rate(score), score.artifact, share * score.rows.facts["n_usable"], "rows")


def scores(plan: Plan) -> list[Score]:
    """Every scoring of a run."""
    return [*([plan.prefilter.score] if plan.prefilter else []), *(method.score for method in plan.methods)]


def score_rate(score: Score) -> str:
    """Key of the rate at which a method scores rows."""
    one = score.representation
    return f"score-{one.name}-{short([one.fit_inputs, one.score_inputs, len(score.columns)])}"


def select_rate(selector: str) -> str:
    """Key of the rate at which rows are chosen and fetched."""
    return f"select-{selector}"


def _trainings(compare: Compare, n_selected: int, lengths_of: Lengths) -> Iterator[Work]:
    recipe = compare.recipe
    rate = training_rate(recipe.model, recipe.training)
    amounts: dict[tuple[bool, int], Callable[[], float]] = {}
    for arm in compare.arms:
        key = (arm.baseline == FULL, arm.seed)
        amount = amounts.setdefault(key, cache(partial(_trained, arm, compare, n_selected, lengths_of)))
        name = f"train on {arm.name}, seed {arm.seed}"
        yield _whole("train", name, rate, arm.artifact, amount, "padded tokens", parallel=True)


def _trained(arm: Arm, compare: Compare, n_selected: int, lengths_of: Lengths) -> float:
    """Padded tokens of a training. What is selected is not known: rows of random lengths stand for it."""
    recipe, lengths = compare.recipe, lengths_of(compare.recipe.tokens)
    chosen = lengths if arm.baseline == FULL else lengths[_drawn(arm, n_selected, len(lengths))]
    return padded_tokens(chosen, recipe.training, seed=arm.seed, epochs=recipe.training.epochs)


def _drawn(arm: Arm, n_selected: int, n_rows: int) -> NDArray[np.intp]:
    rng = generator(arm.draw_seed, Stream.BASELINE_RANDOM, arm.seed)
    return random_rows(min(n_selected, n_rows), n_rows, rng)


def _evaluations(compare: Compare) -> Iterator[Work]:
    """Held-out losses of every arm and of the model before any, and the protocols that were asked for."""
    if not compare.heldout:
        return
    trained: list[tuple[str, bool, str | None]] = [(BEFORE, True, None)]
    for arm in compare.arms:
        known = arm.artifact.is_complete
        trained.append((f"{arm.name}, seed {arm.seed}", known, arm.artifact.facts["training"] if known else None))
    for name, is_trained, training in trained:
        one = Measured(recipe=compare.recipe, name=name, adapter=None, training=training, targets=compare.heldout)
        for target in compare.heldout:
            total = sum(example.n_tokens for example in target.queries.examples)
            done = is_trained and one.artifact(target).is_complete
            yield Work(
                stage="evaluate",
                name=f"{target.queries.target} loss, {name}",
                rate=loss_rate(compare),
                unit="tokens",
                amount=total,
                parts=(int(done), 1),
                parallel=True,
            )
        for task in compare.tasks:
            yield Work(stage="evaluate", name=f"{task} protocol, {name}", rate=PROTOCOL, unit="tasks", amount=1)


def loss_rate(compare: Compare) -> str:
    """Key of the rate at which held-out losses are measured."""
    return f"loss-{short(compare.recipe.model.model_dump(mode='json'))}"
