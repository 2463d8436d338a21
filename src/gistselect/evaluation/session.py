"""One evaluation: a model, with or without an adapter, on protocols, own targets and tasks of lm-eval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gistselect.data.chat_templates import JinjaTemplate
from gistselect.data.templates import Template, load_template
from gistselect.errors import DataError
from gistselect.evaluation.catalog import choose, require_lm_eval
from gistselect.evaluation.prompts import Prompt, Questions, context_length, context_of, prompt_digest, read_questions
from gistselect.evaluation.results import (
    LOSS,
    NO_LOSS,
    EvaluationResult,
    TaskResult,
    prompts_path,
    summarise,
    write_items,
    write_results,
)
from gistselect.evaluation.target_loss import Progress, target_losses
from gistselect.files import write_json_lines

if TYPE_CHECKING:
    from gistselect.evaluation.config import EvaluationConfig
    from gistselect.model.config import ModelConfig
    from gistselect.model.loading import LanguageModel


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

    A task is one of ours (mmlu, bbh, tydiqa, xqa_proxy, gsm8k), a file of your own, or any name that
    lm-eval knows. What can be wrong with files, tasks and adapter is checked before the model does any work: raises
    `ConfigError`, `DataError`, `ModelError` or `MissingDependencyError`.
    """
    from gistselect.evaluation.harness import load_other_tasks
    from gistselect.model.config import ModelConfig
    from gistselect.model.loading import load_tokenizer

    require_lm_eval()
    config = config.resolved()
    others = choose(tasks).others
    if isinstance(model, ModelConfig):
        tokenizer, context = load_tokenizer(model), context_length(model)
    else:
        tokenizer, context = model.tokenizer, context_of(model.causal.config)
    questions = read_questions(tasks, data_dir, config=config, tokenizer=tokenizer, context=context)
    harness_tasks = load_other_tasks(others, config.seed or 0) if others else {}
    language_model = _loaded(model, adapter)
    session = _Session(
        language_model=language_model,
        template=load_template(str(config.template), tokenizer),
        config=config,
        output=output,
        max_length=min(config.max_length, context or config.max_length),
        progress=progress or (lambda *_: None),
    )
    results = [session.ask(one) for one in questions]
    results += session.harness(harness_tasks) if harness_tasks else []
    result = EvaluationResult(tasks=tuple(results), output=output)
    facts = {
        "model": language_model.causal.config.name_or_path,
        "adapter": str(adapter) if adapter else None,
        "config": config.model_dump(mode="json"),
        "versions": {name: version(name) for name in ("gistselect", "lm_eval", "transformers", "torch")},
    }
    write_results(result, facts)
    return result


def _loaded(model: ModelConfig | LanguageModel, adapter: Path | None) -> LanguageModel:
    from gistselect.model.adapters import load_adapter
    from gistselect.model.config import ModelConfig
    from gistselect.model.loading import load_model

    language_model = load_model(model) if isinstance(model, ModelConfig) else model
    return load_adapter(language_model, adapter) if adapter else language_model


@dataclass(frozen=True, kw_only=True)
class _Session:
    """One model, one template, one output folder: the tasks of one evaluation."""

    language_model: LanguageModel
    template: Template
    config: EvaluationConfig
    output: Path
    max_length: int
    progress: Progress

    def ask(self, questions: Questions) -> TaskResult:
        """Put one of our tasks to the model: answers and losses as far as they are asked for."""
        name, facts = questions.name, questions.facts
        write_json_lines(prompts_path(self.output, name), map(asdict, questions.prompts))
        items: list[dict[str, Any]] = [
            {"id": one.id, "group": one.group, "n_shots": one.n_shots} for one in questions.prompts
        ]
        metrics: dict[str, bool] = {}
        if questions.answered:
            answers, metrics = self._answers(questions)
            for item, answer in zip(items, answers, strict=True):
                item.update(answer)
        if questions.fitting:
            for item, loss in zip(items, self._losses(questions), strict=True):
                item.update(loss)
            metrics |= {LOSS: False}
        write_items(self.output, name, items)
        result = TaskResult(
            name=name,
            version=facts.version,
            prompt_digest=questions.digest,
            average=facts.average,
            n_items=len(items),
            n_fewer_shots=sum(one.fewer for one in questions.prompts),
            n_cut=sum(one.cut for one in questions.prompts),
            without_loss=tuple(item["id"] for item in items if NO_LOSS in item),
            n_cut_references=questions.fitting.n_cut if questions.fitting else 0,
            max_new_tokens=questions.max_new_tokens,
            metrics={},
            higher_is_better={},
            chance=facts.chance,
        )
        return summarise(result, items, metrics, self.config)

    def _answers(self, questions: Questions) -> tuple[list[dict[str, Any]], dict[str, bool]]:
        """Each prompt's output and metrics, in the order of the prompts; and whether more is better, by metric."""
        from gistselect.evaluation.harness import bound_generation, load_own_task, run_tasks

        task = load_own_task(questions.name, prompts_path(self.output, questions.name))
        if questions.max_new_tokens:
            bound_generation(task, questions.max_new_tokens)
        results = run_tasks(
            self.language_model,
            {task.task_name: task},
            batch_size=self.config.batch_size,
            max_length=self.max_length,
            count=self._counter(questions.name, len(questions.prompts)),
        )
        samples = {sample["doc"]["row"]: sample for sample in results["samples"][task.task_name]}
        answers = []
        for one in questions.prompts:
            sample = samples[one.row]
            output = _plain(sample["filtered_resps"], f"{questions.name}, item {one.id!r}")
            answers.append({"output": output} | {metric: float(sample[metric]) for metric in sample["metrics"]})
        better = results["higher_is_better"][task.task_name]
        return answers, {metric: bool(better[metric]) for metric in answers[0] if metric != "output"}

    def _losses(self, questions: Questions) -> list[dict[str, Any]]:
        """Of each item the loss of its reference, or why it has none."""
        fitting = questions.fitting
        assert fitting is not None

        def report(done: int, total: int, _: str) -> None:
            self.progress(done, total, f"{questions.name} loss")

        losses = target_losses(self.language_model, fitting.examples, fitting.groups, report)
        by_row: dict[int, dict[str, Any]] = {row: {NO_LOSS: reason} for row, reason in fitting.excluded.items()}
        by_row |= {row: {LOSS: one.loss} for row, one in zip(fitting.rows, losses, strict=True)}
        return [by_row[row] for row in range(len(questions.prompts))]

    def harness(self, tasks: dict[str, Any]) -> list[TaskResult]:
        """Tasks that lm-eval defines: in the chat template, or as bare text under `tulu`."""
        from gistselect.evaluation.harness import bound_generation, run_tasks

        for task in tasks.values():
            bound_generation(task, self.config.max_new_tokens or self.max_length // 2)
        results = run_tasks(
            self.language_model,
            tasks,
            batch_size=self.config.batch_size,
            max_length=self.max_length,
            count=self._counter("lm-eval tasks", sum(len(task.eval_docs) for task in tasks.values())),
            limit=self.config.limit,
            chat_template=self.template.source if isinstance(self.template, JinjaTemplate) else None,
        )
        return [self._harness_result(name, results) for name in tasks]

    def _harness_result(self, name: str, results: Mapping[str, Any]) -> TaskResult:
        prompts, items = _harness_items(name, results["samples"][name], n_shots=int(results["n-shot"][name]))
        reported = {
            key: float(value) if math.isfinite(value) else None
            for key, value in results["results"][name].items()
            if isinstance(value, int | float) and "," in key and "stderr" not in key
        }
        better = results["higher_is_better"].get(name) or {}
        metrics, renamed = _item_metrics(name, items, reported, better)
        items = [{renamed.get(key, key): value for key, value in item.items()} for item in items]
        write_json_lines(prompts_path(self.output, name), map(asdict, prompts))
        write_items(self.output, name, items)
        result = TaskResult(
            name=name,
            version=str(results["versions"].get(name)),
            prompt_digest=prompt_digest(prompts),
            average="items",
            n_items=len(items),
            metrics={},
            higher_is_better={},
            aggregates=reported,
        )
        return summarise(result, items, metrics, self.config)

    def _counter(self, name: str, total: int) -> Callable[[int], None]:
        done = 0

        def count(rows: int) -> None:
            nonlocal done
            done += rows
            self.progress(min(done, total), total, name)

        return count


def _harness_items(
    name: str, samples: Sequence[Mapping[str, Any]], n_shots: int
) -> tuple[list[Prompt], list[dict[str, Any]]]:
    """Prompts and items, each document once; the metrics of its filters under `metric,filter`."""
    by_document: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for sample in samples:
        by_document[sample["doc_id"]].append(sample)
    prompts, items = [], []
    for row, (document, filtered) in enumerate(by_document.items()):
        first = filtered[0]
        prompts.append(
            Prompt(
                id=str(document),
                group="",
                row=row,
                prompt=str(first["arguments"]),
                reference=str(first["target"]),
                answers=(),
                n_shots=n_shots,
            )
        )
        item: dict[str, Any] = {"id": str(document), "group": "", "n_shots": n_shots}
        item["output"] = {one["filter"]: _plain(one["filtered_resps"], f"{name}, item {document}") for one in filtered}
        for one in filtered:
            item |= {
                f"{metric},{one['filter']}": float(one[metric])
                for metric in one["metrics"]
                if isinstance(one[metric], int | float | np.number)
            }
        items.append(item)
    return prompts, items


def _item_metrics(
    name: str, items: Sequence[Mapping[str, Any]], reported: Mapping[str, float | None], better: Mapping[str, Any]
) -> tuple[dict[str, bool], dict[str, str]]:
    """Metrics whose mean over items is what lm-eval reports, and the names they go by: the filter only if several.

    lm-eval makes another number than the mean of some metrics' items (a perplexity, a corpus score): these are no
    values of an item, and stay among what it reports. Raises `DataError` for a metric that an item lacks.
    """
    found: dict[str, bool] = {}
    renamed: dict[str, str] = {}
    keys = list(dict.fromkeys(key for item in items for key in item if "," in key))
    for key in keys:
        if missing := [item["id"] for item in items if key not in item]:
            raise DataError(
                f"{name}: {len(missing)} items have no {key!r}, e.g. {missing[0]!r}, so there is no mean "
                "over the items; leave the task out."
            )
        metric = key.partition(",")[0]
        value = reported.get(key)
        mean = float(np.mean([item[key] for item in items]))
        if value is None or not math.isclose(mean, value, rel_tol=1e-6, abs_tol=1e-9) or better.get(metric) is None:
            continue
        several = len({one for one in keys if one.partition(",")[0] == metric}) > 1
        renamed[key] = key if several else metric
        found[renamed[key]] = bool(better[metric])
    return found, renamed


def _plain(responses: Any, place: str) -> Any:
    """Model outputs as JSON: a generated text, or the log-likelihood of each choice (None for a certain zero).

    Raises `DataError` for one that is not a number: what is chosen by it would be chance.
    """
    plain = []
    for one in responses:
        value = one[0] if isinstance(one, tuple | list) else one
        if isinstance(value, float) and math.isnan(value):
            raise DataError(f"{place}: the likelihood of an answer is not a number; evaluate in float32.")
        plain.append(None if isinstance(value, float) and math.isinf(value) else value)
    return plain[0] if len(plain) == 1 else plain
