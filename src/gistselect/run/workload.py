"""What a run has to do and what of it is left, stage by stage, from the plan's keys: the one account that the forecast
multiplies by measured rates (`run/calibration.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistselect.evaluation.verdict import BEFORE
from gistselect.files import digest
from gistselect.model.config import ModelConfig
from gistselect.representations.interface import Reads
from gistselect.representations.queries import Apart
from gistselect.run import ingest
from gistselect.run.agreement import SAMPLE
from gistselect.run.arms import FULL, Arm
from gistselect.run.cells import Cell, Checkpoint, Fit, Preparation
from gistselect.run.comparing import Compare
from gistselect.run.config import RunConfig
from gistselect.run.earlier import share_known
from gistselect.run.features import Features, pass_name
from gistselect.run.ingest import Rows, TokenRows
from gistselect.run.losses import Measured
from gistselect.run.methods import Method
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


@dataclass(frozen=True, kw_only=True)
class Work:
    """One piece of a run, done or not."""

    stage: str
    name: str
    rate: str
    """Key of the rate at which it is done."""
    unit: str
    total: float
    left: float
    """Amounts in `unit`: in all, and not yet done."""
    parts: tuple[int, int] = (0, 1)
    """Shards (or whole pieces) that are done, and all of them."""
    parallel: bool = False
    """Whether several workers share it."""

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
    facts = plan.candidates.facts
    found = [_whole("ingest", "read the pool", "read", plan.records.artifact, facts["n_rows"], "rows")]
    for tokens in plan.tokenisings:
        found.append(_whole("ingest", "tokenise", "tokenise", tokens.artifact, facts["n_rows"], "rows"))
    if plan.goes_to("warmup") and isinstance(plan.warmup, WarmUp) and plan.features.reads_gradients:
        found.append(_warm_up(plan.warmup))
    if plan.goes_to("features"):
        found += _features(plan)
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
        found.append(Work(stage="select", name="report.html", rate=REPORT, unit="rows", total=read, left=read))
    if plan.compare is not None:
        found += [*_trainings(plan.compare, n_selected), *_evaluations(plan.compare)]
    return found


def _whole(stage: str, name: str, rate: str, artifact: Artifact, total: float, unit: str, **more: Any) -> Work:
    """Work that is done or not."""
    done = artifact.is_complete
    left = 0 if done else total
    return Work(stage=stage, name=name, rate=rate, unit=unit, total=total, left=left, parts=(int(done), 1), **more)


def _warm_up(warmup: WarmUp) -> Work:
    lengths = lengths_of(warmup.tokens)
    chosen = lengths[warmup_positions(len(lengths), warmup.share, warmup.seed)]
    total = padded_tokens(chosen, warmup.training, seed=warmup.seed, epochs=warmup.epochs[-1])
    rate = training_rate(warmup.model, warmup.training)
    return _whole("warmup", f"warm-up of {len(chosen):,} rows", rate, warmup.artifact, total, "padded tokens")


def lengths_of(tokens: TokenRows) -> NDArray[np.int64]:
    """(n,) tokens of each usable row, in pool order."""
    return tokens.columns(["n_tokens"])["n_tokens"].to_numpy().astype(np.int64)


def training_rate(model: ModelConfig, training: TrainingConfig) -> str:
    """Key of the rate of a training: what a forward and backward pass costs, not how many there are."""
    of_time = {"adapter", "device_batch_size", "full", "fsdp", "gradient_checkpointing", "optimizer"}
    return f"train-{_short([model.model_dump(mode='json'), training.model_dump(mode='json', include=of_time)])}"


# --- passes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Group:
    """Everything that one source serves: preparations, fits and cells, of which some may be done."""

    reads: Reads
    checkpoint: Checkpoint | None
    preparations: tuple[Preparation, ...]
    fits: tuple[Fit, ...]
    cells: tuple[Cell, ...]

    @property
    def pending(self) -> tuple[Cell, ...]:
        """Cells that are not done."""
        return tuple(cell for cell in self.cells if not cell.is_complete)


def groups(plan: Plan) -> list[Group]:
    """The sources of a run, in the order in which they are first needed."""
    return [group for stage in plan.passes for group in _groups(stage)]


def _groups(features: Features) -> list[Group]:
    kinds: dict[tuple[Reads, Checkpoint | None], None] = dict.fromkeys(
        (one.representation.reads, one.checkpoint) for one in (*features.fits, *features.cells)
    )
    return [
        Group(
            reads=reads,
            checkpoint=checkpoint,
            preparations=tuple(one for one in features.preparations if _place(one) == (reads, checkpoint)),
            fits=tuple(one for one in features.fits if _place(one) == (reads, checkpoint)),
            cells=tuple(one for one in features.cells if _place(one) == (reads, checkpoint)),
        )
        for reads, checkpoint in kinds
    ]


def _place(one: Preparation | Fit | Cell) -> tuple[Reads, Checkpoint | None]:
    return one.representation.reads, one.checkpoint


def _features(plan: Plan) -> Iterator[Work]:
    for group in groups(plan):
        rows = plan.records.rows if group.reads == "text" else plan.tokens and plan.tokens.rows
        assert rows is not None
        where = f" at {group.checkpoint.name}" if group.checkpoint else ""
        for one in group.preparations:
            total = float(rows.facts["n_usable"])
            if isinstance(rows, TokenRows):
                lengths = lengths_of(rows)
                total = float(lengths[one.representation.sample(len(lengths))].sum())
            name = f"what all targets share ({one.representation.title}{where})"
            yield _whole("features", name, fit_rate(plan, one), one.artifact, total, rows.unit, parallel=True)
        for one in group.fits:
            aim = ", for the stability" if isinstance(one.queries, Apart) else ""
            name = f"queries of {one.queries.target} ({one.representation.title}{where}{aim})"
            total, unit = amount_of(one, rows)
            yield _whole("features", name, fit_rate(plan, one), one.artifact, total, unit, parallel=True)
        if group.cells:
            yield _pass(plan, group, rows)


def amount_of(fit: Fit, rows: Rows) -> tuple[float, str]:
    """What a fit reads: its queries, or the text of the whole pool."""
    if fit.representation.reads == "text":
        return rows.facts["n_usable"], "rows"
    return sum(example.n_tokens for example in fit.queries.examples), "tokens"


def _pass(plan: Plan, group: Group, rows: Rows) -> Work:
    amounts, pending = rows.amounts, group.pending
    outputs = [cell.features for cell in pending]
    outputs += [cell.measured for cell in pending if cell.measured is not None]
    todo = [not all(one.shard(index).is_file() for one in outputs) for index in range(len(amounts))] if pending else []
    known, n_pool = plan.features.known(pending), plan.records.rows.facts["n_rows"]
    new = 1 - share_known(known, outputs, n_pool, ingest.SHARD_ROWS)
    # Which rows a prefilter keeps is not known yet: every shard counts for its share.
    share = plan.share_read(group.reads)
    return Work(
        stage="features",
        name=pass_name(group.reads, group.checkpoint, pending or group.cells),
        rate=pass_rate(plan, group),
        unit=rows.unit,
        total=share * sum(amounts),
        left=share * sum(amount * part for amount, part, missing in zip(amounts, new, todo, strict=False) if missing),
        parts=(len(amounts) - sum(todo), len(amounts)),
        parallel=True,
    )


def fit_rate(plan: Plan, one: Fit | Preparation) -> str:
    """Key of the rate of a fit or a preparation: the same for all targets and checkpoints."""
    representation = one.representation
    kind = "fit" if isinstance(one, Fit) else "prepare"
    options = representation.fit_inputs if isinstance(one, Fit) else representation.prepare_inputs
    return f"{kind}-{representation.name}-{_short([options, *_model(plan, representation.reads)])}"


def pass_rate(plan: Plan, group: Group) -> str:
    """Key of the rate of a pass: what is read, and what is collected on the way."""
    collected = sorted(repr([cell.representation.name, cell.representation.pool_inputs]) for cell in group.pending)
    return f"pass-{group.reads}-{_short([collected, *_model(plan, group.reads)])}"


def _model(plan: Plan, reads: Reads) -> list[Any]:
    """What the speed of a model depends on."""
    if reads == "text" or plan.features.model is None:
        return []
    return [plan.features.model.model_dump(mode="json"), plan.features.engine_config.model_dump(mode="json")]


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
    return f"score-{one.name}-{_short([one.fit_inputs, one.score_inputs, len(score.columns)])}"


def select_rate(selector: str) -> str:
    """Key of the rate at which rows are chosen and fetched."""
    return f"select-{selector}"


def _trainings(compare: Compare, n_selected: int) -> Iterator[Work]:
    recipe = compare.recipe
    lengths = lengths_of(recipe.tokens)
    rate = training_rate(recipe.model, recipe.training)
    amounts: dict[tuple[str | None, int], int] = {}
    for arm in compare.arms:
        # What is selected is not known: rows of random lengths stand for it.
        key = (FULL if arm.baseline == FULL else None, arm.seed)
        if key not in amounts:
            chosen = lengths if arm.baseline == FULL else lengths[_drawn(arm, n_selected, len(lengths))]
            amounts[key] = padded_tokens(chosen, recipe.training, seed=arm.seed, epochs=recipe.training.epochs)
        name = f"train on {arm.name}, seed {arm.seed}"
        yield _whole("train", name, rate, arm.artifact, amounts[key], "padded tokens", parallel=True)


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
                total=total,
                left=0 if done else total,
                parts=(int(done), 1),
                parallel=True,
            )
        for task in compare.tasks:
            yield Work(stage="evaluate", name=f"{task} protocol, {name}", rate=PROTOCOL, unit="tasks", total=1, left=1)


def loss_rate(compare: Compare) -> str:
    """Key of the rate at which held-out losses are measured."""
    return f"loss-{_short(compare.recipe.model.model_dump(mode='json'))}"


def _short(value: Any) -> str:
    return digest(value)[:12]
