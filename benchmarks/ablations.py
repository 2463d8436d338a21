"""One thing at a time: what the choices within GIST and its rivals are worth: `python benchmarks/ablations.py`.

Every variant scores the same part of the pool for GSM8K. Its 64 best rows are then trained on under one recipe,
whatever the variant's own options, and judged by the loss on held-out items, beside random rows and GIST's defaults.
And its scores are put against 80 trainings on random subsets (LDS), which all variants share with `trust_study.py`: a
finer measure, for no further training. No default is chosen by these figures: items that judge are not for choosing.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import cyclopts
import numpy as np
import torch
from numpy.typing import NDArray

from ablation_variants import Variant, variants
from gistselect.evaluation.ranking import spearman
from gistselect.evaluation.results import ItemValues, group_codes
from gistselect.evaluation.verdict import BEFORE
from gistselect.linalg.intervals import Interval, item_weights
from gistselect.run.arms import BASELINES
from gistselect.run.config import RunConfig
from gistselect.run.lock import locked
from gistselect.run.methods import Method
from gistselect.run.pipeline import Clock, prepare, read_pool
from gistselect.run.plan import make_plan
from gistselect.run.progress import Reporter
from gistselect.run.scoring import SCORE, SCORES
from gistselect.run.staffing import opened
from gistselect.run.store import read_names, read_table
from gistselect.run.validating import random_subsets, rows_in_question
from gistselect.selection.baselines import random_rows
from gistselect.streams import Stream, generator
from study_arms import LEVEL, Arms, compared
from study_setup import DEFAULT_PLACE, Place, circumstances, model_title, often
from trust_study import PIECES

app = cyclopts.App(help=__doc__, default_parameter=cyclopts.Parameter(consume_multiple=True))
RANDOM = BASELINES["random"]
LDS = PIECES["lds"]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a variant's scores are, and what they select."""

    variant: Variant
    rows: NDArray[np.int64]
    """(n,) the pool rows that have a score, ascending."""
    values: NDArray[np.float64]
    """(n,) mean score over groups."""
    selected: NDArray[np.int64]
    sources: dict[str, float]
    facts: dict[str, Any]


@app.default
def main(
    *,
    place: Place = DEFAULT_PLACE,
    smollm2: bool = False,
    questions: tuple[str, ...] = (),
    trained: tuple[str, ...] = (),
    subsets: int = LDS["subsets"],
    train_seeds: tuple[int, ...] = (0, 1, 2),
    threads: int = 1,
) -> None:
    """Compute whatever is missing.

    Parameters
    ----------
    smollm2:
        The real model instead of the embedded one: hours on a CPU, in pieces.
    questions:
        Only these (rank, warm-up, …); the file then holds what was asked for alone.
    trained:
        Questions whose selections are trained on (the reference is one), by default all; the others have an LDS alone.
        With "none" nothing is trained on, and there are no random rows beside.
    subsets:
        Of LDS, each one training; the same ones again when asked for more.
    train_seeds:
        Seeds of the trainings.
    threads:
        CPU threads.
    """
    torch.set_num_threads(threads)
    common = often(smollm2, place)
    asked = [
        one
        for one in variants(smollm2, common["warmup"], place.work / "made")
        if not questions or one.question in (*questions, "reference")
    ]
    if trained:
        asked = [replace(one, trained=one.trained and one.question in trained) for one in asked]
    told = f"ablations.py --seed {place.seed}" + " --smollm2" * smollm2
    for option, named in (("questions", questions), ("trained", trained)):
        told += f" --{option} {shlex.join(named)}" * bool(named)
    told += f" --subsets {subsets}" * (subsets != LDS["subsets"])
    recorded = {**common, "train_seeds": train_seeds, "lds": {**LDS, "subsets": subsets}}
    made = circumstances(told, model_title(not smollm2), recorded)
    name = f"ablations-{'smollm2' if smollm2 else 'demo'}"
    reporter = Reporter()
    with locked(common["output"], "wait", reporter.say):
        trial: Trial | None = None
        scored: list[Scored] = []
        for some in _by_options(asked):
            scored += score(common, some, reporter)
            # The first variants have read the pool.
            trial = trial or Trial(common, train_seeds, subsets, reporter)
            place.write(name, {"made": made, "level": LEVEL, **found(trial, scored)})


def found(trial: Trial, scored: Sequence[Scored]) -> dict[str, Any]:
    """Everything that the variants scored so far show."""
    selections = trial.selections(scored) if any(one.variant.trained for one in scored) else {}
    predicted = trial.predictions(scored)
    reference = set(scored[0].selected.tolist())
    findings = [
        {
            "question": one.variant.question,
            "name": one.variant.name,
            "representation": one.variant.representation,
            "loss": selections.get(label(one.variant)),
            "lds": asdict(interval),
            "shared_with_reference": len(reference & set(one.selected.tolist())) / len(reference),
            "sources": one.sources,
            "facts": one.facts,
        }
        for one, interval in zip(scored, predicted, strict=True)
    ]
    references = {name: selections[name] for name in (BEFORE, RANDOM) if name in selections}
    return {"references": references, "findings": findings}


def label(variant: Variant) -> str:
    """Question and name."""
    return f"{variant.question}: {variant.name}"


def _by_options(asked: Sequence[Variant]) -> list[list[Variant]]:
    """Variants that one pass serves: those that differ from the reference in their representation alone."""
    apart = [[one] for one in asked if one.options]
    return [[one for one in asked if not one.options], *apart]


def score(common: dict[str, Any], some: Sequence[Variant], reporter: Reporter) -> list[Scored]:
    """Scores and selections of variants with the same options."""
    reporter.say(f"== {'; '.join(label(one) for one in some)}")
    own = {name: value() if callable(value) else value for name, value in some[0].options.items()}
    config = RunConfig.from_values({**common, **own, "representation": [one.representation for one in some]})
    plan = make_plan(config, "select", None)
    with opened(config, None) as (engine, sources):
        clock = Clock(reporter)
        read_pool(plan, config, reporter, clock, engine)
        prepare(plan, config, reporter, clock, sources, engine)
    found = []
    for variant, method in zip(some, plan.methods, strict=True):
        method.score.run(reporter)
        method.select.run(reporter)
        found.append(_scored(variant, method))
    return found


def _scored(variant: Variant, method: Method) -> Scored:
    path = method.score.artifact / SCORES
    names = read_names(path)
    columns = [name for name in names if name.startswith(SCORE)]
    energy = ["captured_energy"] if "captured_energy" in names else []
    table = read_table(path, ["row", *columns, *energy])
    rows, selected = table["row"].to_numpy(), method.select.table
    chosen = selected["row"].to_numpy()
    facts: dict[str, Any] = {"null": method.score.artifact.facts["null_score_quantiles"]}
    facts["fit"] = [dict(fit.artifact.facts) for column in method.columns for fit, _ in column.entries]
    values = np.mean([table[name].to_numpy() for name in columns], axis=0)
    facts["score_quantiles"] = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
    if energy:
        captured = table["captured_energy"].to_numpy()
        facts["captured_energy"] = {
            "pool": float(captured.mean()),
            "selected": float(captured[np.isin(rows, chosen)].mean()),
        }
    counts = Counter(selected["source"].to_pylist())
    return Scored(
        variant=variant,
        rows=rows,
        values=values,
        selected=chosen,
        sources={name: count / counts.total() for name, count in counts.most_common()},
        facts=facts,
    )


class Trial:
    """The variants under the reference's recipe."""

    def __init__(self, common: dict[str, Any], seeds: Sequence[int], subsets: int, reporter: Reporter) -> None:
        self.config = RunConfig.from_values({**common, "representation": ["gist"], "evaluate": True})
        plan = make_plan(self.config, "evaluate", None)
        assert plan.compare is not None
        self.arms, self.seeds, self.subsets = Arms(plan.compare, reporter), seeds, subsets

    def selections(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """Every variant's loss after training, with its differences, and the arms that it is compared with."""
        seed, usable = self.config.seed, self.arms.usable
        n_rows = len(scored[0].selected)
        random = [
            usable[random_rows(n_rows, len(usable), generator(seed, Stream.BASELINE_RANDOM, one))] for one in self.seeds
        ]
        arms = [
            (BEFORE, [self.arms.before()]),
            (RANDOM, [self.arms.after(rows, one, RANDOM) for rows, one in zip(random, self.seeds, strict=True)]),
        ]
        for one in (one for one in scored if one.variant.trained):
            name = label(one.variant)
            arms.append((name, [self.arms.after(one.selected, seed, f"{name}, seed {seed}") for seed in self.seeds]))
        reference = label(scored[0].variant)
        references = (BEFORE, RANDOM, reference)
        return compared(arms, candidate=reference, references=references, seed=seed, named={reference: "reference"})

    def predictions(self, scored: Sequence[Scored]) -> list[Interval]:
        """LDS of each variant over the same random subsets. A row without a score counts as one with the mean."""
        config = self.config
        rows = rows_in_question(self.arms.usable, LDS["validation_rows"], config.seed)
        subsets = random_subsets(len(rows), round(0.1 * len(rows)), self.subsets, config.seed)
        loss = np.array(
            [
                _mean(self.arms.after(rows[chosen], LDS["train_seeds"][0], f"subset {number}"))
                for number, chosen in enumerate(subsets, start=1)
            ]
        )
        found = []
        for one in scored:
            of_row = np.full(len(rows), one.values.mean())
            known = np.isin(rows, one.rows)
            of_row[known] = one.values[np.searchsorted(one.rows, rows[known])]
            found.append(spearman([of_row[chosen].sum() for chosen in subsets], -loss, level=LEVEL))
        return found


def _mean(values: ItemValues) -> float:
    return float(values.values @ item_weights(group_codes(values.groups), len(values.values)))


if __name__ == "__main__":
    app()
