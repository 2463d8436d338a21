"""What a model is worth on a target: the loss of held-out answers, the published protocols, comparisons."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from gistselect.errors import ConfigError, DataError
from gistselect.evaluation_tasks.protocols import MMLU_CATEGORIES, READERS, Item, read_items
from gistselect.linalg.intervals import DRAWS, Interval, bootstrap_mean, difference_of_runs, mean_of_runs
from gistselect.tasks import sample_groups
from gistselect.types import Example, Record, Rejected

if TYPE_CHECKING:
    from gistselect.data.tokens import Template
    from gistselect.model.loading import LanguageModel, ModelConfig

BATCH_TOKENS = 8192
"""Tokens in one forward pass of the target loss, padding included."""
PASSAGE_TOKENS = 512
"""Published length to which TyDiQA's passages are cut."""
CHOICE_TOKENS = 8
"""Room kept in the context for a choice."""
OWN_TARGETS = "target"
"""Name of the lm-eval task that holds the questions of targets of one's own."""
BOOTSTRAP = 7
"""Name of the random stream of the intervals beside the seed."""

Progress = Callable[[int, int, str], None]
"""Called with the items done, the items in all, and what is being measured."""


class EvaluationConfig(BaseModel):
    """How to evaluate; what to evaluate is given beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    limit: int | None = Field(default=None, ge=1)
    """Most items of each group (subject, BBH task, language), a seeded sample; by default the published
    numbers (BBH 40, TyDiQA 200, otherwise all)."""
    template: Literal["tulu", "model"] = "tulu"
    """How prompts become text: tulu (published) or the tokenizer's own chat template."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts in one forward pass or generation."""
    max_length: int = Field(default=2048, ge=16)
    """Most tokens of prompt and answer; demonstrations that do not fit are left out, last first."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Bound on generated tokens; by default each protocol's own (BBH and GSM8K 512, TyDiQA 50)."""
    losses: bool = True
    """Also measure the loss of the reference answers."""
    exact_match: bool = False
    """Also generate answers to your own targets and compare them with the references."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of the intervals."""
    draws: int = Field(default=DRAWS, ge=100)
    """Draws of the bootstrap."""
    seed: int = 0
    """Seed of the samples of items and of the bootstrap."""


@dataclass(frozen=True, kw_only=True)
class ItemLoss:
    """Mean loss of an item's supervised tokens, in nats."""

    id: str
    group: str
    loss: float
    n_supervised: int


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task's metrics with intervals over its items."""

    name: str
    version: str
    prompt_digest: str
    """SHA-256 of every prompt and reference answer, in order."""
    n_items: int
    n_fewer_shots: int = 0
    """Items for which not all demonstrations fitted the context."""
    n_cut: int = 0
    """Items whose question alone did not fit; the start of their prompt is cut."""
    n_without_loss: int = 0
    """Items whose reference does not fit the context; the loss is the mean over the others."""
    max_new_tokens: int | None = None
    metrics: dict[str, Interval]
    higher_is_better: dict[str, bool]
    chance: float | None = None
    """What guessing scores on the first metric, where that is known."""
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metric → group → mean."""
    categories: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metric → category → mean over its items (MMLU)."""
    aggregates: dict[str, float] = field(default_factory=dict)
    """What lm-eval reports for tasks of its own, as it reports it."""

    @property
    def summary(self) -> str:
        """One line: metrics with intervals, and whether they differ from guessing."""
        parts = [f"{name} {one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]" for name, one in self.metrics.items()]
        parts += [f"{name} {value:.3f}" for name, value in self.aggregates.items()]
        line = f"{self.name} ({self.n_items} items): {', '.join(parts)}"
        first = next(iter(self.metrics.values()), None)
        if self.chance is not None and first and first.low <= self.chance <= first.high:
            line += f"; not distinguishable from guessing ({self.chance:g})"
        return line


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """All tasks of one evaluation; per-item results lie in `<output>/items/<task>.jsonl`."""

    tasks: tuple[TaskResult, ...]
    output: Path


def target_losses(
    language_model: LanguageModel,
    examples: Sequence[Example],
    groups: Sequence[str],
    progress: Progress | None = None,
) -> list[ItemLoss]:
    """Mean cross-entropy of the supervised tokens of each example, in the order given.

    Batches are sorted by length, and only supervised positions meet the vocabulary.
    Raises `DataError` for an example without a supervised token or a loss that is not finite.
    """
    import torch

    from gistselect.model.batches import build_batch, plan_batches, trimmed_lengths
    from gistselect.model.loss import OutputHead, label_losses

    model = language_model.model
    head = OutputHead.of(language_model.causal)
    losses = np.empty(len(examples))
    lengths = trimmed_lengths(examples)
    was_training, done = model.training, 0
    model.eval()
    try:
        with torch.no_grad():
            for rows in plan_batches(lengths, BATCH_TOKENS, "padded"):
                batch = build_batch(examples, rows, lengths, "padded", language_model.tokenizer.pad_token_id or 0)
                token_losses = label_losses(language_model.causal, head, batch.to(language_model.device))
                totals = np.bincount(batch.owners.numpy(), weights=token_losses.double().cpu().numpy())
                losses[rows] = totals / batch.n_supervised.numpy()
                done += len(rows)
                if progress:
                    progress(done, len(examples), "target loss")
    finally:
        model.train(was_training)
    if len(bad := np.flatnonzero(~np.isfinite(losses))):
        raise DataError(f"the loss of {len(bad)} items is not finite, e.g. {examples[bad[0]].id!r}; use float32.")
    return [
        ItemLoss(id=example.id, group=group, loss=float(loss), n_supervised=example.n_supervised)
        for example, group, loss in zip(examples, groups, losses, strict=True)
    ]


def evaluate(
    model: ModelConfig | LanguageModel,
    adapter: Path | None,
    tasks: Sequence[str],
    data_dir: Path | None,
    output: Path,
    config: EvaluationConfig,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Measure a model, with an adapter if one is given, and write `results.json`, prompts and per-item results.

    A task is one of ours (mmlu, bbh, tydiqa, xqa_proxy, gsm8k), a .jsonl file of your own, or any name that
    lm-eval knows. What can be wrong with files, tasks and adapter is checked before the model does any work: raises
    `ConfigError`, `DataError`, `ModelError` or `MissingDependencyError`.
    """
    from gistselect.data.tokens import load_template
    from gistselect.evaluation_tasks.harness import load_other_tasks, require_lm_eval, task_facts
    from gistselect.model.loading import ModelConfig, load_tokenizer

    require_lm_eval()
    ours, files, others = _sorted_tasks(tasks)
    tokenizer = load_tokenizer(model) if isinstance(model, ModelConfig) else model.tokenizer
    template = load_template(config.template, tokenizer)
    items: dict[str, list[Item]] = {}
    for name in ours:
        most = config.limit or task_facts(name).get("limit")
        items[name] = sample_groups(read_items(name, data_dir, _passage_cut(tokenizer)), most, config.seed)
    own = {path.stem: _own_records(path, config) for path in files}
    harness_tasks = load_other_tasks(others, config.seed) if others else {}
    language_model = _loaded(model, adapter)
    session = _Session(language_model, template, config, output, progress or (lambda *_: None))
    results = [session.protocol(name, items[name]) for name in ours]
    results += [session.own_target(name, records) for name, records in own.items()]
    results += session.harness(harness_tasks) if harness_tasks else []
    result = EvaluationResult(tasks=tuple(results), output=output)
    _write_results(result, language_model, adapter, config)
    return result


def _sorted_tasks(tasks: Sequence[str]) -> tuple[list[str], list[Path], list[str]]:
    """Our protocols, files of one's own, and names for lm-eval."""
    if not tasks or len(set(tasks)) != len(tasks):
        raise ConfigError(f"tasks={list(tasks)}: name at least one task, and each once.")
    ours = [name for name in tasks if name in READERS]
    files = [Path(name) for name in tasks if name.endswith(".jsonl")]
    if missing := [str(path) for path in files if not path.is_file()]:
        raise DataError(f"there is no file {missing[0]!r} to evaluate.")
    if len({path.stem for path in files} | set(ours)) != len(files) + len(ours):
        raise ConfigError("two targets have the same name; rename one of the files.")
    return ours, files, [name for name in tasks if name not in READERS and not name.endswith(".jsonl")]


def _loaded(model: ModelConfig | LanguageModel, adapter: Path | None) -> LanguageModel:
    from gistselect.model.adapters import load_adapter
    from gistselect.model.loading import ModelConfig, load_model

    language_model = load_model(model) if isinstance(model, ModelConfig) else model
    return load_adapter(language_model, adapter) if adapter else language_model


def _passage_cut(tokenizer: Any) -> Callable[[str], str]:
    def cut(text: str) -> str:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoding["offset_mapping"]
        return text if len(offsets) <= PASSAGE_TOKENS else text[: offsets[PASSAGE_TOKENS - 1][1]]

    return cut


def _own_records(path: Path, config: EvaluationConfig) -> list[Record]:
    from gistselect.data.records import read_records

    records = []
    for one in read_records(path):
        if isinstance(one, Rejected):
            raise DataError(f"{path}, row {one.row}: {one.reason}. An evaluation file must be whole.")
        records.append(one)
    if not records:
        raise DataError(f"{path} has no row to evaluate.")
    return sample_groups(records, config.limit, config.seed)


class _Session:
    """One model, one template, one output folder: the tasks of one evaluation."""

    def __init__(
        self,
        language_model: LanguageModel,
        template: Template,
        config: EvaluationConfig,
        output: Path,
        progress: Progress,
    ) -> None:
        self.language_model, self.template, self.config = language_model, template, config
        self.output, self.progress = output, progress
        context = getattr(language_model.model.config, "max_position_embeddings", None)
        self.max_length = min(config.max_length, context or config.max_length)
        for name in ("prompts", "items"):
            (output / name).mkdir(parents=True, exist_ok=True)

    def protocol(self, name: str, items: Sequence[Item]) -> TaskResult:
        """Evaluate one of our protocols on its items."""
        from gistselect.evaluation_tasks.harness import task_facts

        facts = task_facts(name)
        new_tokens = self._bound(facts["generation"])
        rows = [self._fitted(item, number, new_tokens or CHOICE_TOKENS) for number, item in enumerate(items)]
        scored = self._run(name, rows, new_tokens)
        records = [item.record(row["n_shots"], row["row"]) for item, row in zip(items, rows, strict=True)]
        losses = self._losses(name, records) if self.config.losses else {}
        result = self._result(name, str(facts["version"]), rows, scored, losses, facts)
        if name == "mmlu":
            result = _with_categories(result, rows, scored)
        return result

    def own_target(self, name: str, records: Sequence[Record]) -> TaskResult:
        """The loss of a target of one's own, and exact match if that is asked for."""
        from gistselect.evaluation_tasks.harness import task_facts

        facts = task_facts(OWN_TARGETS)
        new_tokens = self._bound(facts["generation"])
        rows = []
        for number, record in enumerate(records):
            prompt, reference = self._split(record)
            rows.append(self._row(record.id, record.group, number, prompt, reference, (reference,)))
        scored = self._run(OWN_TARGETS, rows, new_tokens) if self.config.exact_match else [{} for _ in rows]
        losses = self._losses(name, records)
        return self._result(name, str(facts["version"]), rows, scored, losses, facts)

    def harness(self, tasks: dict[str, Any]) -> list[TaskResult]:
        """Tasks that lm-eval defines: in the tokenizer's chat template, or as bare text under `tulu`."""
        from gistselect.evaluation_tasks.harness import bound_generation, run_tasks

        for task in tasks.values():
            bound_generation(task, self.config.max_new_tokens or self.max_length // 2)
        results = run_tasks(
            self.language_model,
            tasks,
            batch_size=self.config.batch_size,
            max_length=self.max_length,
            count=self._counter("lm-eval tasks", sum(len(task.eval_docs) for task in tasks.values())),
            limit=self.config.limit,
            chat=self.config.template == "model",
        )
        return [self._harness_result(name, results) for name in tasks]

    def _bound(self, generation: dict[str, Any] | None) -> int | None:
        """Most tokens to generate: the protocol's, the user's, and never more than half the context."""
        if generation is None:
            return None
        return min(generation["max_gen_toks"], self.config.max_new_tokens or self.max_length, self.max_length // 2)

    def _split(self, record: Record) -> tuple[str, str]:
        """The text before the last supervised span, and the span."""
        rendered = self.template.render(record)
        start, end = rendered.supervised[-1]
        return rendered.text[:start], rendered.text[start:end]

    def _fitted(self, item: Item, row: int, room: int) -> dict[str, Any]:
        """The prompt of an item with as many demonstrations as leave `room` tokens of the context."""
        tokenizer = self.language_model.tokenizer
        n_shots, fits = len(item.shots), False
        prompt = reference = ""
        while not fits and n_shots >= 0:
            prompt, reference = self._split(item.record(n_shots, row))
            prompt = prompt.removesuffix(item.lead)
            fits = len(tokenizer(prompt, verbose=False)["input_ids"]) + room <= self.max_length
            n_shots -= 1
        shown = {"n_shots": n_shots + 1, "fewer": n_shots + 1 < len(item.shots), "cut": not fits}
        return self._row(item.id, item.group, row, prompt, reference, item.answers, item.choices) | shown

    def _row(
        self,
        id: str,
        group: str,
        row: int,
        prompt: str,
        reference: str,
        answers: Iterable[str],
        choices: Iterable[str] = (),
    ) -> dict[str, Any]:
        asked = {"id": id, "group": group, "row": row, "prompt": prompt, "reference": reference}
        return asked | {
            "answers": list(answers),
            "choices": list(choices),
            "n_shots": 0,
            "fewer": False,
            "cut": False,
        }

    def _run(self, name: str, rows: list[dict[str, Any]], new_tokens: int | None) -> list[dict[str, Any]]:
        """Each row's output and metrics, in the order of the rows."""
        from gistselect.evaluation_tasks.harness import PREFIX, bound_generation, load_own_tasks, run_tasks

        _write_lines(self.output / "prompts" / f"{name}.jsonl", rows)
        tasks = load_own_tasks([name], self.output / "prompts")
        if new_tokens:
            bound_generation(tasks[name], new_tokens)
        results = run_tasks(
            self.language_model,
            {PREFIX + name: tasks[name]},
            batch_size=self.config.batch_size,
            max_length=self.max_length,
            count=self._counter(name, len(rows)),
        )
        samples = {sample["doc"]["id"]: sample for sample in results["samples"][PREFIX + name]}
        return [
            {"output": _plain(samples[row["id"]]["filtered_resps"])}
            | {metric: samples[row["id"]][metric] for metric in samples[row["id"]]["metrics"]}
            for row in rows
        ]

    def _losses(self, name: str, records: Sequence[Record]) -> dict[str, float]:
        """Loss of the reference by item id. Items whose answer does not fit the context have none."""
        from gistselect.data.tokens import encode

        encoded = encode(records, self.template, self.language_model.tokenizer, self.max_length)
        kept = [(one, record.group) for one, record in zip(encoded, records, strict=True) if isinstance(one, Example)]
        if not kept:
            return {}
        examples, groups = zip(*kept, strict=True)

        def report(done: int, total: int, _: str) -> None:
            self.progress(done, total, f"{name} loss")

        return {one.id: one.loss for one in target_losses(self.language_model, examples, groups, report)}

    def _result(
        self,
        name: str,
        task_version: str,
        rows: list[dict[str, Any]],
        scored: list[dict[str, Any]],
        losses: dict[str, float],
        facts: dict[str, Any],
    ) -> TaskResult:
        per_item = [
            {key: row[key] for key in ("id", "group", "n_shots")}
            | scores
            | ({"loss": losses[row["id"]]} if row["id"] in losses else {})
            for row, scores in zip(rows, scored, strict=True)
        ]
        _write_lines(self.output / "items" / f"{name}.jsonl", per_item)
        by_group = facts["average"] == "groups"
        metrics, groups = {}, {}
        for metric in [key for key in per_item[0] if key not in ("id", "group", "n_shots", "output", "loss")] + [
            "loss"
        ]:
            kept = [item for item in per_item if metric in item]
            if kept:
                metrics[metric], groups[metric] = self._interval(name, metric, kept, by_group)
        return TaskResult(
            name=name,
            version=task_version,
            prompt_digest=_digest(rows),
            n_items=len(rows),
            n_fewer_shots=sum(row["fewer"] for row in rows),
            n_cut=sum(row["cut"] for row in rows),
            n_without_loss=len(rows) - len(losses) if losses else 0,
            max_new_tokens=self._bound(facts["generation"]),
            metrics=metrics,
            higher_is_better={metric: metric != "loss" for metric in metrics},
            chance=facts.get("chance"),
            groups=groups,
        )

    def _interval(
        self, name: str, metric: str, items: list[dict[str, Any]], by_group: bool
    ) -> tuple[Interval, dict[str, float]]:
        values = np.array([item[metric] for item in items], dtype=np.float64)
        names, groups = np.unique([item["group"] for item in items], return_inverse=True)
        rng = np.random.default_rng([self.config.seed, BOOTSTRAP, zlib.crc32(f"{name}/{metric}".encode())])
        interval = bootstrap_mean(
            values,
            groups=groups if by_group else None,
            draws=self.config.draws,
            level=self.config.level,
            rng=rng,
        )
        means = {str(group): float(values[groups == number].mean()) for number, group in enumerate(names)}
        return interval, means

    def _harness_result(self, name: str, results: dict[str, Any]) -> TaskResult:
        samples = results["samples"][name]
        facts = {"average": "items", "generation": None}
        rows, scored = [], []
        for sample in samples:
            row = self._row(
                str(sample["doc_id"]),
                "",
                sample["doc_id"],
                str(sample["arguments"]),
                str(sample["target"]),
                (),
            )
            rows.append(row | {"id": f"{sample['doc_id']}/{sample['filter']}", "group": sample["filter"]})
            numbers = {
                key: sample[key] for key in sample["metrics"] if isinstance(sample[key], int | float | np.number)
            }
            scored.append(
                {"output": _plain(sample["filtered_resps"])} | {key: float(one) for key, one in numbers.items()}
            )
        result = self._result(name, str(results["versions"].get(name)), rows, scored, {}, facts)
        better = {key: bool(one) for key, one in results["higher_is_better"].get(name, {}).items() if one is not None}
        reported = {
            key: float(value)
            for key, value in results["results"][name].items()
            if isinstance(value, int | float) and "," in key and "stderr" not in key
        }
        return replace(result, higher_is_better=better, aggregates=reported)

    def _counter(self, name: str, total: int) -> Callable[[int], None]:
        done = 0

        def count(rows: int) -> None:
            nonlocal done
            done += rows
            self.progress(min(done, total), total, name)

        return count


def _with_categories(result: TaskResult, rows: list[dict[str, Any]], scored: list[dict[str, Any]]) -> TaskResult:
    """MMLU's four category averages, over items as published."""
    category_of = {subject: category for category, names in MMLU_CATEGORIES.items() for subject in names}
    values: dict[str, list[float]] = defaultdict(list)
    for row, scores in zip(rows, scored, strict=True):
        values[category_of.get(row["group"], "uncategorised")].append(scores["accuracy"])
    return replace(result, categories={"accuracy": {name: float(np.mean(one)) for name, one in sorted(values.items())}})


def _plain(responses: Any) -> Any:
    """Model outputs as JSON: a generated text, or the log-likelihood of each choice."""
    texts = [one[0] if isinstance(one, tuple | list) else one for one in responses]
    return texts[0] if len(texts) == 1 else texts


def _digest(rows: Sequence[dict[str, Any]]) -> str:
    content = hashlib.sha256()
    for row in rows:
        content.update(json.dumps([row["prompt"], row["reference"], row["choices"]]).encode())
    return content.hexdigest()


def _write_results(
    result: EvaluationResult, language_model: LanguageModel, adapter: Path | None, config: EvaluationConfig
) -> None:
    facts = {
        "model": language_model.model.config.name_or_path,
        "adapter": str(adapter) if adapter else None,
        "config": config.model_dump(mode="json"),
        "versions": {name: version(name) for name in ("gistselect", "lm_eval", "transformers", "torch")},
        "tasks": [asdict(task) | {"summary": task.summary} for task in result.tasks],
    }
    (result.output / "results.json").write_text(
        json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of choosing the training rows, evaluated on the same items after each of its trainings."""

    name: str
    """`before`, `random`, `length`, `gist`, `full`, …"""
    runs: NDArray[np.float64]
    """(n_run, n_item) per-item values, one row for each training seed."""
    trained: bool = True
    """False for the model before any training, which no seed can change."""


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """An arm's mean over items and seeds."""

    arm: str
    n_runs: int
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The arms of an experiment on one metric of one task, and what can be concluded."""

    task: str
    metric: str
    rows: tuple[ComparisonRow, ...]
    verdicts: tuple[str, ...]


def compare(
    task: str,
    metric: str,
    arms: Sequence[Arm],
    *,
    higher_is_better: bool,
    candidate: str = "gist",
    groups: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """A row for each arm, and a verdict on the candidate against each other arm.

    Intervals cover items and training seeds; `groups` (n_item,) makes every mean one of group means. Raises
    `DataError` if the arms were not evaluated on the same number of items, `ConfigError` without the candidate.
    """
    if len({arm.runs.shape[1] for arm in arms}) != 1:
        raise DataError(f"{task}: the arms were evaluated on different items; evaluate them again with one seed.")
    by_name = {arm.name: arm for arm in arms}
    if candidate not in by_name:
        raise ConfigError(f"there is no arm {candidate!r}; arms: {', '.join(by_name)}.")
    codes = None if groups is None else np.unique(groups, return_inverse=True)[1]
    rng = np.random.default_rng([seed, BOOTSTRAP])
    rows = tuple(
        ComparisonRow(
            arm=one.name, n_runs=len(one.runs), interval=mean_of_runs(one.runs, groups=codes, draws=draws, rng=rng)
        )
        for one in arms
    )
    verdicts = tuple(
        verdict(
            difference_of_runs(_seeds(by_name[candidate]), _seeds(other), groups=codes, draws=draws, rng=rng),
            task=task,
            metric=metric,
            candidate=candidate,
            baseline=other.name,
            higher_is_better=higher_is_better,
            n_runs=(len(by_name[candidate].runs), len(other.runs)),
        )
        for other in arms
        if other.name != candidate
    )
    return Comparison(task=task, metric=metric, rows=rows, verdicts=verdicts)


def _seeds(arm: Arm) -> NDArray[np.float64]:
    """The arm's runs; an untrained model's single run counts as known not to vary."""
    return arm.runs if arm.trained else np.repeat(arm.runs[:1], 2, axis=0)


def verdict(
    difference: Interval,
    *,
    task: str,
    metric: str,
    candidate: str,
    baseline: str,
    higher_is_better: bool,
    n_runs: tuple[int, int],
) -> str:
    """One sentence on candidate minus baseline: better or worse only if the interval leaves out zero.

    With one training of each, nothing is known about the variation between seeds, and the sentence says so.
    """
    half = (difference.high - difference.low) / 2
    amount = f"{metric} {difference.mean:+.3f} ± {half:.3f}, seeds {n_runs[0]} against {n_runs[1]}"
    if max(n_runs) < 2:
        return f"{candidate}: not judged against {baseline} on {task}, one seed each ({amount}); use more seeds"
    if difference.low <= 0 <= difference.high:
        return f"{candidate}: not distinguishable from {baseline} on {task} ({amount})"
    better = (difference.mean > 0) == higher_is_better
    return f"{candidate}: {'better' if better else 'worse'} than {baseline} on {task} ({amount})"


def averages_groups(task: str) -> bool:
    """Whether the mean of a task of ours is one of group means (languages, BBH tasks); lm-eval's own go by items."""
    from gistselect.evaluation_tasks.harness import task_facts

    return task in READERS and task_facts(task)["average"] == "groups"
