"""What an evaluation found: each item's values, their means and intervals, written to files and read again."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from gistselect.errors import DataError
from gistselect.files import read_json, read_json_lines, write_json, write_json_lines
from gistselect.linalg.intervals import Interval, bootstrap_mean
from gistselect.streams import Stream, generator
from gistselect.tasks.mmlu import CATEGORIES

if TYPE_CHECKING:
    from gistselect.evaluation.catalog import Average
    from gistselect.evaluation.config import EvaluationConfig

LOSS = "loss"
NO_LOSS = "no_loss"
"""Key of an item's line that says why it has no loss."""


@dataclass(frozen=True, kw_only=True)
class ItemValues:
    """One metric of one task for one model, item by item, with what its mean is."""

    task: str
    metric: str
    higher_is_better: bool
    ids: tuple[str, ...]
    values: NDArray[np.float64]
    """(n_item,) finite."""
    groups: tuple[str, ...] | None
    """Group of each item if the mean is one of group means; None if it is one of items."""

    def interval(self, *, draws: int, level: float, rng: np.random.Generator) -> Interval:
        """The mean with its bootstrap interval over items."""
        codes = group_codes(self.groups)
        return bootstrap_mean(self.values, groups=codes, draws=draws, level=level, rng=rng)


def group_codes(groups: Sequence[str] | None) -> NDArray[np.intp] | None:
    """(n_item,) groups as numbers from 0, in the order of their names."""
    return None if groups is None else np.unique(groups, return_inverse=True)[1]


def item_values(
    task: str, metric: str, items: Sequence[Mapping[str, Any]], *, average: Average, higher_is_better: bool
) -> ItemValues:
    """A metric of every item; of the losses, those of the items whose answer fits the context.

    Raises `DataError` naming an item that has no finite value.
    """
    kept = [item for item in items if not (metric == LOSS and NO_LOSS in item)]
    for item in kept:
        if metric not in item or not math.isfinite(item[metric]):
            raise DataError(
                f"{task}: the item {item['id']!r} has no finite {metric!r} (found {item.get(metric)!r}), so there is "
                "no mean over the items; evaluate in float32, or leave the task out."
            )
    return ItemValues(
        task=task,
        metric=metric,
        higher_is_better=higher_is_better,
        ids=tuple(str(item["id"]) for item in kept),
        values=np.asarray([item[metric] for item in kept], dtype=np.float64),
        groups=tuple(str(item["group"]) for item in kept) if average == "groups" else None,
    )


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task's metrics with intervals over its items."""

    name: str
    version: str
    prompt_digest: str
    """SHA-256 of every prompt and reference answer, in order."""
    average: Average
    """Whether means are over items or over the means of groups."""
    n_items: int
    n_fewer_shots: int = 0
    """Items for which not all demonstrations fitted the context."""
    n_cut: int = 0
    """Items whose question alone did not fit; the start of their prompt is cut."""
    without_loss: tuple[str, ...] = ()
    """Items whose reference does not fit the context; the loss is the mean over the others."""
    n_cut_references: int = 0
    """Items of which only the start fits; their loss is that of the start."""
    max_new_tokens: int | None = None
    metrics: dict[str, Interval]
    higher_is_better: dict[str, bool]
    chance: float | None = None
    """What guessing scores on the first metric, where that is known."""
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metric → group → mean."""
    categories: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metric → category → mean over its items (MMLU)."""
    aggregates: dict[str, float | None] = field(default_factory=dict)
    """What lm-eval reports for tasks of its own, as it reports it; None for what is not a number."""

    @property
    def summary(self) -> str:
        """One line: metrics with intervals, whether they differ from guessing, and what was left out."""
        parts = [f"{name} {one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]" for name, one in self.metrics.items()]
        parts += [f"{name} {'nan' if one is None else f'{one:.3f}'}" for name, one in self.aggregates.items()]
        line = f"{self.name} ({self.n_items} items): {', '.join(parts)}"
        first = next(iter(self.metrics.values()), None)
        if self.chance is not None and first and first.low <= self.chance <= first.high:
            line += f"; not distinguishable from guessing ({self.chance:g})"
        if self.without_loss:
            line += (
                f"; no loss for {len(self.without_loss)} items whose answer does not fit the context, "
                f"e.g. {self.without_loss[0]!r}"
            )
        if self.n_cut_references:
            line += f"; the loss of {self.n_cut_references} items is that of the part that fits the context"
        return line


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """All tasks of one evaluation; per-item results lie in `<output>/items/<task>.jsonl`."""

    tasks: tuple[TaskResult, ...]
    output: Path


def summarise(
    result: TaskResult, items: Sequence[Mapping[str, Any]], metrics: Mapping[str, bool], config: EvaluationConfig
) -> TaskResult:
    """The result with intervals and group means of these metrics (by name, whether more is better)."""
    intervals, groups = {}, {}
    for metric, higher in metrics.items():
        values = item_values(result.name, metric, items, average=result.average, higher_is_better=higher)
        number = zlib.crc32(f"{result.name}/{metric}".encode())
        rng = generator(config.seed or 0, Stream.BOOTSTRAP, number)
        intervals[metric] = values.interval(draws=config.draws, level=config.level, rng=rng)
        groups[metric] = _means(items, metric, lambda item: str(item["group"]))
    if result.name == "mmlu":
        category_of = {subject: category for category, names in CATEGORIES.items() for subject in names}
        means = _means(items, "accuracy", lambda item: category_of.get(item["group"], "uncategorised"))
        result = replace(result, categories={"accuracy": dict(sorted(means.items()))})
    return replace(result, metrics=intervals, groups=groups, higher_is_better=dict(metrics))


def _means(items: Sequence[Mapping[str, Any]], metric: str, group_of: Any) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for item in items:
        if metric in item:
            values[group_of(item)].append(item[metric])
    return {group: float(np.mean(one)) for group, one in sorted(values.items())}


def items_path(output: Path, task: str) -> Path:
    """The file of a task's per-item results; a name of lm-eval's is never a path of its own."""
    return output / "items" / f"{_file_name(task)}.jsonl"


def prompts_path(output: Path, task: str) -> Path:
    """The file of a task's prompts."""
    return output / "prompts" / f"{_file_name(task)}.jsonl"


def _file_name(task: str) -> str:
    return quote(task, safe=" ") if "/" in task or "\\" in task else task


def write_items(output: Path, task: str, items: Sequence[Mapping[str, Any]]) -> None:
    """One line an item."""
    write_json_lines(items_path(output, task), items)


def write_results(result: EvaluationResult, facts: Mapping[str, Any]) -> None:
    """`results.json`: the facts, and every task with its summary."""
    tasks = [asdict(task) | {"summary": task.summary} for task in result.tasks]
    write_json(result.output / "results.json", {**facts, "tasks": tasks})


def read_values(output: Path) -> dict[str, list[ItemValues]]:
    """Every metric of every task of a finished evaluation, item by item, as `results.json` names and averages them.

    A task of lm-eval that gives no number for an item has an empty list. Raises `ArtifactMismatchError` if a file is
    missing or damaged, `DataError` for an item without a value.
    """
    found = {}
    for task in read_json(output / "results.json")["tasks"]:
        items = read_json_lines(items_path(output, task["name"]))
        found[task["name"]] = [
            item_values(
                task["name"],
                metric,
                items,
                average=task["average"],
                higher_is_better=task["higher_is_better"][metric],
            )
            for metric in task["metrics"]
        ]
    return found
