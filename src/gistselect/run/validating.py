"""`gistselect validate`: how far the scores of each method can be trusted, measured by training.

LDS, the linear datamodeling score (TRAK, arXiv 2303.14186): rank correlation, over random subsets of the pool, of the
summed scores of a subset's rows with the target loss after training on it (its sign turned, so that 1 is perfect).
QLD: how much more the target loss rises when the best rows are left out of a training than when random rows are.
Trainings are kept by rows and seed in the folder's store, so methods, targets and repeated commands share them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistselect.errors import DataError
from gistselect.evaluation.ranking import spearman
from gistselect.evaluation.results import ItemValues, group_codes
from gistselect.files import write_json
from gistselect.linalg.intervals import Interval, difference_of_runs, item_weights
from gistselect.run.arms import Training, train_rows
from gistselect.run.comparing import Compare
from gistselect.run.engine import Engine
from gistselect.run.lock import locked
from gistselect.run.losses import Measured, measured_loss
from gistselect.run.mending import mending
from gistselect.run.methods import METHODS, Method
from gistselect.run.pipeline import Clock, execute, prepare, read_pool
from gistselect.run.plan import Plan, make_plan
from gistselect.run.planting import found_in, plant
from gistselect.run.progress import Reporter
from gistselect.run.remember import remember, remember_first
from gistselect.run.scoring import SCORE, SCORES
from gistselect.run.staffing import opened
from gistselect.run.store import read_names, read_table
from gistselect.run.trainings import measure_together, shares_trainings, train_together
from gistselect.run.validate_config import VALIDATE_YAML, ValidateConfig
from gistselect.run.validation_report import write_validation
from gistselect.shares import rows_of
from gistselect.streams import Stream, generator

VALIDATION = "validation.json"
PLANTED = "planted"


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What one measure says of one method."""

    measure: str
    target: str
    """The target, or the kind of planted rows."""
    method: str
    interval: Interval
    chance: float
    """What scores without signal would give."""
    details: Mapping[str, Any] = field(default_factory=dict)


@mending
def validate(config: ValidateConfig, reporter: Reporter) -> list[Trust]:
    """Compute whatever is missing of a validation, and write validation.json, validation.md and charts.

    Raises `GistSelectError` and its kinds, before any work for all that can be known before it.
    """
    with locked(config.output, config.if_busy, reporter.warn), reporter.recording(config.output):
        # Nothing is selected here.
        plan = make_plan(config.model_copy(update={"stability_draws": 0}), "evaluate", None)
        found: list[Trust] = []
        clock = Clock(reporter)
        with opened(config, None) as (engine, sources):
            read_pool(plan, config, reporter, clock, engine)
            remember_first(config, VALIDATE_YAML)
            # Before any training: too small a pool must not be found out after the last one.
            files = _planted_files(plan, config) if "planted" in config.measures else []
            prepare(plan, config, reporter, clock, sources, engine)
            if {"lds", "qld"} & set(config.measures):
                for method in plan.methods:
                    method.score.run(reporter)
                trial = _Trial(plan, config, reporter, engine)
                found += trial.lds() if "lds" in config.measures else []
                found += trial.qld() if "qld" in config.measures else []
        if files:
            found += _planted(plan, config, files, reporter)
        described = [asdict(one) for one in found]
        write_json(config.output / VALIDATION, described)
        write_validation(described, config.output, config.evaluation.level)
        remember(config, VALIDATE_YAML)
    reporter.say(f"The validation is in {config.output}: validation.md, {VALIDATION} and its charts.")
    return found


class _Trial:
    """Scores of the rows in question, and trainings on parts of them."""

    def __init__(self, plan: Plan, config: ValidateConfig, reporter: Reporter, engine: Engine) -> None:
        assert plan.compare is not None
        self.config, self.reporter, self.engine = config, reporter, engine
        self.compare: Compare = plan.compare
        self.methods = plan.methods
        self.targets = [target.queries.target for target in plan.targets]
        tables = [_scores(method) for method in plan.methods]
        usable = self.compare.recipe.tokens.columns(["row"])["row"].to_numpy()
        rows = usable
        for _, numbers in tables:
            rows = np.intersect1d(rows, numbers)
        rows = rows_in_question(rows, config.validation_rows, config.seed)
        if len(rows) * config.subset_share < 1:
            raise DataError(f"{len(rows)} rows have a score from every method; too few to validate.")
        self.rows: NDArray[np.int64] = rows
        self.columns = [
            {name: values[np.searchsorted(numbers, rows)] for name, values in columns.items()}
            for columns, numbers in tables
        ]

    def score(self, index: int, target: str) -> NDArray[np.float64]:
        """(n, n_group) scores of the rows in question."""
        own = self.columns[index]
        names = [name for name in own if name == f"{SCORE}{target}" or name.startswith(f"{SCORE}{target}/")]
        return np.stack([own[name] for name in names], axis=1)

    def ahead(self, wanted: Sequence[tuple[NDArray[np.int64], int, str]]) -> None:
        """Train on these rows (n,) with these seeds and measure, on workers where there are several."""
        if not shares_trainings(self.engine):
            return
        recipe = self.compare.recipe
        trainings = [Training.planned(recipe, *one) for one in wanted]
        train_together(trainings, self.engine, self.reporter)
        measured = [Measured.after(one, self.compare.heldout) for one in trainings]
        measure_together(measured, self.engine, self.reporter)

    def losses(self, rows: NDArray[np.int64], seed: int, name: str) -> list[ItemValues]:
        """Losses on every target's held-out items after training on pool rows (n,)."""
        recipe = self.compare.recipe
        training = train_rows(recipe, rows, seed, name, self.reporter)
        adapter = training / training.facts["adapter"]
        measure = partial(measured_loss, recipe)
        return [measure(target, name, adapter, training.folder.name, self.reporter) for target in self.compare.heldout]

    def lds(self) -> list[Trust]:
        """Rank correlation of predicted and real target loss over random subsets."""
        config, seed = self.config, self.config.train_seeds[0]
        size = max(1, round(config.subset_share * len(self.rows)))
        positions = random_subsets(len(self.rows), size, config.subsets, config.seed)
        self.ahead([(self.rows[chosen], seed, f"subset {n}") for n, chosen in enumerate(positions, start=1)])
        real = [
            [_mean(one) for one in self.losses(self.rows[chosen], seed, f"subset {number}")]
            for number, chosen in enumerate(positions, start=1)
        ]
        found = []
        for column, target in enumerate(self.targets):
            loss = np.array([one[column] for one in real])
            for index, method in enumerate(self.methods):
                of_row = self.score(index, target).mean(axis=1)
                predicted = np.array([of_row[chosen].sum() for chosen in positions])
                points = {"predicted": predicted.tolist(), "loss": loss.tolist(), "rows": size}
                try:
                    interval = spearman(predicted, -loss, level=config.evaluation.level)
                except ValueError:
                    # Scores that are the same for every row predict nothing.
                    interval = Interval(mean=0.0, low=-1.0, high=1.0)
                found.append(_trust("LDS", target, method, interval, 0.0, points))
        return found

    def qld(self) -> list[Trust]:
        """Rise of the target loss without the best rows, minus the rise without random ones."""
        config = self.config
        size = max(1, rows_of(config.removed_share, len(self.rows)))

        def without(removed: NDArray[np.intp], seed: int, name: str) -> tuple[NDArray[np.int64], int, str]:
            return np.delete(self.rows, removed), seed, f"{name}, seed {seed}"

        drawn = {
            seed: generator(config.seed, Stream.VALIDATION_REMOVAL, seed).choice(len(self.rows), size, replace=False)
            for seed in config.train_seeds
        }
        random_rows = [without(rows, seed, f"all but {size} random rows") for seed, rows in drawn.items()]
        best_rows: dict[tuple[int, str], list[tuple[NDArray[np.int64], int, str]]] = {}
        for index, method in enumerate(self.methods):
            for target in self.targets:
                top = np.argsort(-self.score(index, target).max(axis=1), kind="stable")[:size]
                name = f"all but the best {size} of {method.label} for {target}"
                best_rows[index, target] = [without(top, seed, name) for seed in config.train_seeds]
        self.ahead([*random_rows, *(one for several in best_rows.values() for one in several)])
        random = [self.losses(*one) for one in random_rows]
        found = []
        for index, method in enumerate(self.methods):
            for column, target in enumerate(self.targets):
                runs = [self.losses(*one)[column] for one in best_rows[index, target]]
                interval = difference_of_runs(
                    np.stack([one.values for one in runs]),
                    np.stack([one[column].values for one in random]),
                    groups=group_codes(runs[0].groups),
                    draws=config.evaluation.draws,
                    level=config.evaluation.level,
                    rng=generator(config.seed, Stream.BOOTSTRAP, column),
                )
                found.append(_trust("QLD", target, method, interval, 0.0, {"removed": size, "of": len(self.rows)}))
        return found


def rows_in_question(rows: NDArray[np.int64], most: int | None, seed: int) -> NDArray[np.int64]:
    """At most so many of the rows (n,), ascending: those that subsets are drawn from."""
    if not most or most >= len(rows):
        return rows
    return np.sort(generator(seed, Stream.VALIDATION_SUBSET).choice(rows, most, replace=False))


def random_subsets(n: int, size: int, subsets: int, seed: int) -> list[NDArray[np.int64]]:
    """Positions (size,), ascending, of each random subset of n rows."""
    streams = (generator(seed, Stream.VALIDATION_SUBSET, number) for number in range(1, 1 + subsets))
    return [np.sort(stream.choice(n, size, replace=False)) for stream in streams]


def _planted_files(plan: Plan, config: ValidateConfig) -> list[str]:
    """Write the pool with planted rows and its targets; names of the targets' files.

    Only rows that can be used are spoilt: what is too long for the model would be a query that nobody can ask.
    """
    records = [record for shard in plan.records.rows.shards() for record in shard]
    if plan.tokens is not None:
        usable = set(plan.tokens.rows.columns(["row"])["row"].to_pylist())
        records = [record for record in records if record.row in usable]
    folder = config.output / PLANTED / "inputs"
    return plant(records, folder, among=config.planted_among, planted=config.planted_rows, seed=config.seed)


def _planted(plan: Plan, config: ValidateConfig, files: Sequence[str], reporter: Reporter) -> list[Trust]:
    """What every method finds of rows planted into a part of the pool, at the same checkpoints."""
    folder = config.output / PLANTED
    run = config.planted(folder, files, plan.warmup.placed() if plan.warmup else ())
    execute(run, reporter, last="score")
    found = []
    for index, method in enumerate(plan.methods):
        place = folder if index == 0 else folder / METHODS / method.label
        for one in found_in(
            place / SCORES,
            method.label,
            recall_rows=config.recall_at,
            draws=min(config.evaluation.draws, 500),
            level=config.evaluation.level,
            seed=config.seed,
        ):
            found.append(_trust(one.measure, one.kind, method, one.interval, one.chance, {}))
    return found


def _scores(method: Method) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """Score columns (n,) of a method by name, and the pool rows (n,), ascending."""
    path = method.score.artifact / SCORES
    names = [name for name in read_names(path) if name.startswith(SCORE)]
    table = read_table(path, ["row", *names])
    return {name: table[name].to_numpy() for name in names}, table["row"].to_numpy()


def _mean(values: ItemValues) -> float:
    return float(values.values @ item_weights(group_codes(values.groups), len(values.values)))


def _trust(
    measure: str, target: str, method: Method, interval: Interval, chance: float, details: Mapping[str, Any]
) -> Trust:
    return Trust(
        measure=measure, target=target, method=method.label, interval=interval, chance=chance, details=dict(details)
    )


def trust_rows(found: Sequence[Trust]) -> list[dict[str, str]]:
    """As rows of a table for a terminal."""
    return [
        {
            "measure": one.measure,
            "of": one.target,
            "method": one.method,
            "value and interval": f"{one.interval.mean:.3f} [{one.interval.low:.3f}, {one.interval.high:.3f}]",
            "by chance": f"{one.chance:.3f}",
        }
        for one in found
    ]
