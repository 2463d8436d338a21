"""Stages `train` and `evaluate`: fine-tune on the selection and on its baselines, and say honestly which is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gistselect.data.templates import load_template
from gistselect.evaluation.catalog import tasks_digest
from gistselect.evaluation.config import EvaluationConfig
from gistselect.evaluation.cost import SelectionCost
from gistselect.evaluation.prompts import check_tasks, context_length, read_questions
from gistselect.evaluation.results import ItemValues, read_values
from gistselect.evaluation.verdict import BEFORE, Comparison, ComparisonRow, compare_values
from gistselect.files import write_json
from gistselect.run.arms import BASELINES, Arm, Recipe
from gistselect.run.choosing import Select
from gistselect.run.config import RunConfig
from gistselect.run.costs import full_training, selection_cost
from gistselect.run.engine import Engine
from gistselect.run.ingest import TokenRows
from gistselect.run.losses import Measured, measured_loss
from gistselect.run.models import RunModel
from gistselect.run.progress import Reporter
from gistselect.run.store import Artifact, Store, verify
from gistselect.run.targets import Target, heldout_items
from gistselect.run.trainings import measure_together, shares_trainings, train_together
from gistselect.streams import Stream, generator
from gistselect.types import Task

COMPARISON = "comparison.json"
EVALUATION_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Compare:
    """All arms of a run, and what they are measured on."""

    recipe: Recipe
    arms: tuple[Arm, ...]
    candidate: str
    """Name of the arm that the verdicts are about."""
    references: tuple[str, ...]
    """Names of the arms from which every other one's difference is told."""
    scored_by: str | None
    """Name of the model that scores; None if only text is read."""
    trained: str
    """Name of the model that is trained and measured."""
    heldout: tuple[Target, ...]
    """Empty if the run only trains."""
    tasks: tuple[str, ...]
    data_dir: Path | None
    tasks_key: str | None
    """Digest of all that the evaluation of `tasks` reads."""
    evaluation: EvaluationConfig
    seed: int

    @property
    def artifacts(self) -> list[Artifact]:
        """The arms, whose keys are known before anything is selected."""
        return [arm.artifact for arm in self.arms]

    def run(self, reporter: Reporter, output: Path, engine: Engine) -> list[Comparison]:
        """Train every arm, and measure all if that was asked for; writes comparison.json into `output`.

        Several workers train and measure losses at a time; the result is the same. Returns a comparison for each
        held-out target and task, none if the run only trains.
        """
        for target in self.heldout:
            if target.rejected:
                first = target.rejected[0]
                reporter.say(
                    f"{len(target.rejected)} held-out items of {target.queries.target} are left out of every arm, "
                    f"e.g. {first.id!r}: {first.reason}"
                )
        if shares_trainings(engine):
            self._ahead(reporter, engine)
        trained: list[tuple[str, str, Path | None, str | None]] = [(BEFORE, BEFORE, None, None)]
        for arm in self.arms:
            adapter = arm.trained(self.recipe, reporter)
            trained.append((arm.name, arm.title, adapter, arm.artifact.facts["training"]))
        if not self.heldout:
            return []
        measured: dict[str, list[list[ItemValues]]] = {}
        for arm_name, name, adapter, training in trained:
            values = [measured_loss(self.recipe, target, name, adapter, training, reporter) for target in self.heldout]
            values += self._protocols(name, adapter, training, reporter)
            measured.setdefault(arm_name, []).append(values)
        costs = self.costs()
        comparisons = [self._compared(measured, index, costs) for index in range(len(measured[BEFORE][0]))]
        write_json(output / COMPARISON, [asdict(one) for one in comparisons])
        for comparison in comparisons:
            reporter.say(table(comparison))
        return comparisons

    def _ahead(self, reporter: Reporter, engine: Engine) -> None:
        """Trainings and losses on the engine's workers: what follows finds them done."""
        trainings = [arm.planned_training(self.recipe) for arm in self.arms]
        train_together(trainings, engine, reporter)
        before = Measured(recipe=self.recipe, name=BEFORE, adapter=None, training=None, targets=self.heldout)
        measure_together([before, *(Measured.after(one, self.heldout) for one in trainings)], engine, reporter)
        engine.close()  # what comes next wants the memory of the devices

    def costs(self) -> dict[str, SelectionCost]:
        """What each method's selection took; every arm must be trained."""
        full = full_training(self.recipe, self.arms)
        return {arm.name: selection_cost(arm.select, full) for arm in self.arms if arm.baseline is None}

    def _compared(
        self,
        measured: Mapping[str, Sequence[Sequence[ItemValues]]],
        index: int,
        costs: Mapping[str, SelectionCost],
    ) -> Comparison:
        comparison = compare_values(
            [(name, [run[index] for run in runs]) for name, runs in measured.items()],
            rng=generator(self.seed, Stream.BOOTSTRAP, index),
            candidate=self.candidate,
            untrained=BEFORE,
            references=self.references,
            costs=costs,
            draws=self.evaluation.draws,
            level=self.evaluation.level,
        )
        return replace(comparison, scored_by=self.scored_by, trained=self.trained)

    def _protocols(self, name: str, adapter: Path | None, training: str | None, reporter: Reporter) -> list[ItemValues]:
        """The first metric of each task that was asked for."""
        if not self.tasks:
            return []
        artifact = self.recipe.store.artifact(
            "evaluation",
            EVALUATION_VERSION,
            **self.recipe.model_inputs,
            training=training,
            tasks=self.tasks_key,
            evaluation=self.evaluation.model_dump(mode="json"),
        )
        if not artifact.is_complete:
            from gistselect.evaluation.session import evaluate

            artifact.begin()
            reporter.say(f"Evaluating {name}.")
            with reporter.steps("items") as progress:
                evaluate(
                    *self.recipe.measured(adapter),
                    self.tasks,
                    self.data_dir,
                    artifact / "results",
                    self.evaluation,
                    progress,
                )
            artifact.complete(tasks=list(self.tasks))
        verify(artifact / "results")
        found = read_values(artifact / "results")
        if training is None and (without := [task for task, values in found.items() if not values]):
            reporter.say(f"No comparison on {', '.join(without)}: lm-eval gives no number for single items there.")
        return [values[0] for values in found.values() if values]


def plan_comparison(
    config: RunConfig,
    *,
    store: Store,
    tasks: Sequence[Task],
    scorer: str | None,
    trained: RunModel,
    tokens: TokenRows,
    selections: Mapping[str, Select],
    rivals: Sequence[str],
    evaluate: bool,
) -> Compare:
    """The comparison with its keys; the first selection is the candidate, `rivals` are those that it has to beat.

    Raises `ConfigError` or `DataError` for a target without held-out items, or a task that cannot be evaluated.
    """
    recipe = Recipe(
        model=config.finetuned,
        model_inputs=trained.identity.weights,
        training=config.finetune,
        tokens=tokens,
        store=store,
    )
    encoder = trained.encoder
    drawn = {BASELINES[one]: one for one in config.baselines if one in BASELINES}
    first = next(iter(selections))
    evaluated = config.evaluate_tasks if evaluate else ()
    evaluation = config.evaluation.resolved(template=config.template, seed=config.seed)
    tasks_key = None
    if evaluated:
        # Before any training: an item that cannot be asked must not be found out after the last one.
        check_tasks(evaluated, config.data_dir)
        read_questions(
            evaluated,
            config.data_dir,
            config=evaluation,
            tokenizer=encoder.tokenizer,
            context=context_length(recipe.model),
        )
        template = load_template(str(evaluation.template), encoder.tokenizer)
        tasks_key = tasks_digest(evaluated, config.data_dir, template=template.digest)
    return Compare(
        recipe=recipe,
        arms=tuple(
            Arm.planned(recipe, name, seed, baseline, select, config.seed)
            for seed in config.train_seeds
            for name, baseline, select in (
                *((name, None, select) for name, select in selections.items()),
                *((name, one, selections[first]) for name, one in drawn.items()),
            )
        ),
        candidate=first,
        references=(BEFORE, *drawn, *rivals),
        scored_by=scorer,
        trained=trained.name,
        heldout=tuple(heldout_items(tasks, config.heldout_items, config.seed, encoder)) if evaluate else (),
        tasks=tuple(evaluated),
        data_dir=config.data_dir,
        tasks_key=tasks_key,
        evaluation=evaluation,
        seed=config.seed,
    )


def table(comparison: Comparison) -> str:
    """The arms as aligned text, with the verdicts."""
    share = f"{comparison.level:.0%}".replace("%", " %")
    judged = f", {comparison.trained} trained" if comparison.trained else ""
    if comparison.scored_by and comparison.scored_by != comparison.trained:
        judged += f" on what {comparison.scored_by} selected"
    lines = [f"{comparison.task}, held-out {comparison.metric}{judged} (mean, {share} interval over items and seeds):"]
    width = max(len(row.arm) for row in comparison.rows)
    for row in comparison.rows:
        one = row.interval
        runs = f"  {row.n_runs} trainings" if row.arm != BEFORE else ""
        lines.append(f"  {row.arm:<{width}} {one.mean:.3f}  [{one.low:.3f}, {one.high:.3f}]{runs}{_cost(row)}")
    return "\n".join([*lines, *comparison.verdicts])


def _cost(row: ComparisonRow) -> str:
    if row.cost is None:
        return ""
    ratio = row.cost["selection_to_tuning"]
    told = f"; selected in {row.cost['selection_seconds']:,.1f} s, {row.cost['bytes_per_row']:,.0f} bytes a row"
    return told if ratio is None else f"{told}, STR {ratio:.3g} ({row.cost['full_training_is']})"
