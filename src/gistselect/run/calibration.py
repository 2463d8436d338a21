"""How fast this machine does each kind of work of a plan: a few batches of the real thing, timed.

Rows are drawn evenly over the order of the pool's lengths, so that their mean cost is the pool's. Nothing is kept but
the rates.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistselect.data.overlap import hashed_blocks
from gistselect.model.config import ModelConfig
from gistselect.run.comparing import Compare
from gistselect.run.ingest import TokenRows
from gistselect.run.losses import model_of
from gistselect.run.pass_groups import Group, fit_rate, groups, pass_rate, takers, text_rate
from gistselect.run.plan import Plan
from gistselect.run.progress import Reporter
from gistselect.run.rates import Clock, Rate, Spent, Timer, stratified, wall_and_cpu
from gistselect.run.sources import Sources, SourceSpec
from gistselect.run.trial import Trial
from gistselect.run.warmup import WarmUp, warmup_positions
from gistselect.run.workload import (
    REPORT,
    Work,
    loss_rate,
    score_rate,
    scores,
    select_rate,
    training_rate,
)
from gistselect.training.recipe import TrainingConfig, epoch_order, padded_lengths, rows_at_once
from gistselect.types import Example

SECONDS = 20.0
"""What a calibration is to take, the loading of models apart; each of its parts does at least what can be timed."""
PILOT_ITEMS, MOST_ITEMS = 16, 512
PILOT_STEPS, MOST_STEPS = 3, 24
"""Optimizer steps of a training; the first is not timed, since much is set up in it."""
OF_TRAINING, OF_LOSS = 0.25, 0.1
"""Shares of the time for the second look at each of these, where there is room for one."""


class Calibration:
    """Measures the rates of a plan."""

    def __init__(
        self, plan: Plan, reporter: Reporter, *, seconds: float = SECONDS, clock: Clock = wall_and_cpu
    ) -> None:
        self._plan, self._reporter, self._seconds, self._clock = plan, reporter, seconds, clock
        self.rates: dict[str, Rate] = {}
        self.checkpoint_bytes: int | None = None
        """Of one checkpoint of the warm-up, with the optimizer's moments."""

    def measure(self, works: Sequence[Work]) -> Mapping[str, Rate]:
        """The rate of every kind of work that is left and can be measured."""
        wanted = {rate for work in works for rate in work.needed}
        with (
            tempfile.TemporaryDirectory(prefix="gistselect-plan-") as scratch,
            self._reporter.step("calibration", total=None, unit="rows") as self._step,
        ):
            self._scratch = Path(scratch)
            here = [group for group in groups(self._plan) if self._keys(group) & wanted]
            needs_adapter = any(group.reads == "gradient" for group in here)
            adapter = self._adapter() if needs_adapter or self._warm_up_rate() in wanted else None
            # Checkpoints are alike; a prefilter reads text for other methods than the pass after it.
            for group in {(group.reads, *takers(group.cells)): group for group in reversed(here)}.values():
                self._group(group, adapter)
            if self._plan.compare is not None:
                self._proof(self._plan.compare, wanted)
            self._selections(wanted)
        return self.rates

    def _keys(self, group: Group) -> set[str]:
        """Keys of all rates that a source serves."""
        own = {fit_rate(self._plan, one) for one in (*group.fits, *group.preparations)}
        scored = {score_rate(one) for one in scores(self._plan) if one.representation.reads == group.reads}
        taken = {text_rate(cells) for cells in takers(group.pending).values()} if group.reads == "text" else set()
        return own | scored | taken | ({pass_rate(self._plan, group)} if group.cells else set())

    # --- trainings --------------------------------------------------------------------------------------------

    def _warm_up_rate(self) -> str | None:
        warmup = self._plan.warmup
        return training_rate(warmup.model, warmup.training) if isinstance(warmup, WarmUp) else None

    def _adapter(self) -> Path | None:
        """Where gradients are timed: at the run's adapter, or at what a few steps of its warm-up make."""
        warmup = self._plan.warmup
        if warmup is None:
            return None
        if not isinstance(warmup, WarmUp):
            return warmup.adapters[0]
        if warmup.artifact.is_complete:
            return warmup.placed()[0].adapter
        table = warmup.tokens.columns(["row", "n_tokens"])
        chosen = warmup_positions(table.num_rows, warmup.share, warmup.seed)
        rows, lengths = table["row"].to_numpy()[chosen], table["n_tokens"].to_numpy()[chosen]
        adapter = self._train(warmup.model, warmup.training, warmup.tokens, rows, lengths)
        self.checkpoint_bytes = sum(path.stat().st_size for path in adapter.rglob("*") if path.is_file())
        return adapter

    def _train(
        self,
        model: ModelConfig,
        training: TrainingConfig,
        tokens: TokenRows,
        rows: NDArray[np.int64],
        lengths: NDArray[np.integer],
    ) -> Path:
        """Time a few steps on some of these pool rows (n,) of these lengths (n,); what they made."""
        from gistselect.model.loading import load_model

        key = training_rate(model, training)
        size = rows_at_once(training, training.global_batch_size)
        # A quarter of the real batch gives several steps, and so a rate, in the same time.
        batch = size * max(1, training.global_batch_size // size // 4)
        few = training.model_copy(update={"epochs": 1, "global_batch_size": batch})
        examples = tokens.select(rows[stratified(lengths, MOST_STEPS * batch)].tolist())
        order = np.random.default_rng(0).permutation(len(examples))
        examples = [examples[index] for index in order]
        loading = Timer(self._clock)
        with loading():
            loaded = load_model(model)
        steps = _Training(loaded, few, self._clock)
        first = steps.few(examples[: PILOT_STEPS * batch], self._scratch / f"{key}-pilot")
        n_more = min(MOST_STEPS, int(OF_TRAINING * self._seconds / max(first.per_step, 1e-3)))
        best = steps.few(examples[: n_more * batch], self._scratch / key) if n_more > 2 * PILOT_STEPS else first
        self._step.advance(len(examples[: max(PILOT_STEPS, n_more) * batch]))
        per_unit = best.steady * (1 / best.steady_read)
        # The first training of a process sets up what later ones find there: the last one tells what each costs.
        fixed = loading.spent + best.spent.beyond(per_unit * best.read)
        self.rates[key] = Rate(per_unit=per_unit, fixed=fixed, measured_on=f"{best.steady_read:,} padded tokens")
        return best.adapter

    # --- passes -----------------------------------------------------------------------------------------------

    def _group(self, group: Group, adapter: Path | None) -> None:
        """Time what one source serves: preparations, fits, a pass, and scores from it."""
        features = self._plan.features
        spec = SourceSpec(
            reads=group.reads,
            model=features.model if group.reads != "text" else None,
            adapter=adapter if group.reads == "gradient" else None,
            engine=features.engine_config,
            records=features.records,
            tokens=features.tokens,
        )
        sources, loading = Sources(), Timer(self._clock)
        try:
            with loading():
                source = sources.open(spec)
            trial = Trial(self._plan, spec, source, clock=self._clock, scratch=self._scratch, seconds=self._seconds)
            self.rates |= trial.measure(group, loading.spent)
            self._step.advance(trial.n_rows)
        finally:
            sources.close()

    # --- the proof and the selection --------------------------------------------------------------------------

    def _proof(self, compare: Compare, wanted: set[str]) -> None:
        """Time trainings of other kinds than the warm-up, and held-out losses."""
        recipe = compare.recipe
        key = training_rate(recipe.model, recipe.training)
        if key in wanted and key not in self.rates:
            table = recipe.tokens.columns(["row", "n_tokens"])
            rows, lengths = table["row"].to_numpy(), table["n_tokens"].to_numpy()
            self._train(recipe.model, recipe.training, recipe.tokens, rows, lengths)
        if (key := loss_rate(compare)) in wanted:
            self._loss(key, compare)

    def _loss(self, key: str, compare: Compare) -> None:
        from gistselect.evaluation.target_loss import target_losses

        items = [example for target in compare.heldout for example in target.queries.examples]
        lengths = np.array([one.n_tokens for one in items])
        loading, timer, n_items = Timer(self._clock), Timer(self._clock), PILOT_ITEMS
        with loading():
            model = model_of(compare.recipe, None)
        while True:
            chosen = [items[index] for index in stratified(lengths, n_items)]
            with timer():
                target_losses(model, chosen, [""] * len(chosen))
            n_more = min(MOST_ITEMS, int(OF_LOSS * self._seconds * len(chosen) / max(timer.spent.wall, 1e-3)))
            if n_items > PILOT_ITEMS or n_more < 2 * len(chosen):
                break
            n_items = n_more
        n_tokens = sum(one.n_tokens for one in chosen)
        self.rates[key] = Rate(
            per_unit=timer.spent * (1 / n_tokens), fixed=loading.spent, measured_on=f"{len(chosen)} held-out items"
        )

    def _selections(self, wanted: set[str]) -> None:
        """Time what follows every selection: its rows are fetched and compared with the targets, the report is made.

        What a selector that compares rows takes is not known before.
        """
        plan, select = self._plan, self._plan.methods[0].select
        reading, fetching, comparing = (Timer(self._clock) for _ in range(3))
        with reading():
            records = plan.records.rows.records(0)
        on = f"{len(records):,} rows"
        self.rates[REPORT] = Rate(per_unit=reading.spent * (1 / len(records)), measured_on=on)
        if (key := select_rate(select.options.selector)) in wanted and not select.options.order.needs_points:
            with fetching():
                select.pool.fetch(plan.records.rows.places([record.row for record in records]))
            with comparing():
                for _, hashed in hashed_blocks(records):
                    plan.overlaps.judged.passages.shared(hashed)
            spent = fetching.spent + comparing.spent
            self.rates[key] = Rate(per_unit=spent * (1 / len(records)), measured_on=on)


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """A training of a few steps."""

    adapter: Path
    spent: Spent
    read: int
    """Padded tokens of all steps."""
    steady: Spent
    steady_read: int
    """Time and padded tokens after the first step, where there are several."""
    per_step: float


class _Training:
    """Trains a loaded model for a few steps."""

    def __init__(self, model: Any, training: TrainingConfig, clock: Clock) -> None:
        self._model, self._training, self._clock = model, training, clock

    def few(self, examples: Sequence[Example], output: Path) -> _Steps:
        """Time a training on these examples."""
        from gistselect.training.train import train

        training, ticks, timer = self._training, list[Spent](), Timer(self._clock)
        with timer():
            result = train(
                self._model,
                examples,
                training,
                output=output,
                seed=0,
                progress=lambda *_: ticks.append(self._clock()),
            )
        lengths = np.array([one.n_tokens for one in examples])
        order = epoch_order(lengths.tolist(), global_batch_size=training.global_batch_size, seed=0, epoch=0)
        padded = padded_lengths(lengths[order], training)
        read, first = int(padded.sum()), int(padded[: training.global_batch_size].sum())
        if len(ticks) < 2:
            steady, steady_read = timer.spent, read
        else:
            steady, steady_read = ticks[-1].beyond(ticks[0]), read - first
        return _Steps(
            adapter=result.adapter,
            spent=timer.spent,
            read=read,
            steady=steady,
            steady_read=steady_read,
            per_step=steady.wall / max(1, len(ticks) - 1),
        )
