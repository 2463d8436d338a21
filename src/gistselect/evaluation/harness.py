"""The bridge to lm-eval: its task files, its model wrapper, its evaluation loop, and silence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistselect.errors import ConfigError, DataError
from gistselect.evaluation.catalog import OWN_TARGETS, TASK_FILES
from gistselect.files import read_json_lines
from gistselect.tasks import PROTOCOLS

if TYPE_CHECKING:
    from datasets import DatasetDict

    from gistselect.model.loading import LanguageModel

PREFIX = "gistselect_"
"""Our task names in lm-eval, so that its own `mmlu` is never meant by mistake."""

Count = Callable[[int], None]
"""Called with the number of rows that the model has just worked off."""


def load_own_task(name: str, prompts: Path) -> Any:
    """The lm-eval task of one of our protocols, or of a target of one's own, over the prompts in a file."""
    from lm_eval.tasks import TaskManager

    full_name = PREFIX + (name if name in PROTOCOLS else OWN_TARGETS)
    with quiet():
        manager = TaskManager(include_path=TASK_FILES, include_defaults=False, metadata={"prompts": str(prompts)})
        return manager.load([full_name])["tasks"][full_name]


def read_prompts(*, prompts: str, **_: Any) -> DatasetDict:
    """The documents of a task of ours, as the split `test`; lm-eval passes the task's other metadata too."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list(read_json_lines(Path(prompts)))})


@cache
def lm_eval_index() -> Any:
    """lm-eval's index of all its tasks. Reading it takes ten seconds, so a process reads it once."""
    from lm_eval.tasks import TaskManager

    with quiet():
        return TaskManager()


def require_other_tasks(names: Sequence[str]) -> Any:
    """lm-eval's index of tasks, which knows all these names. Raises `ConfigError` for one that it does not know."""
    manager = lm_eval_index()
    for name in names:
        if name not in manager.all_tasks:
            close = get_close_matches(name, [*PROTOCOLS, *manager.all_tasks], n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"neither gistselect nor lm-eval has a task {name!r}.{hint}")
    return manager


def load_other_tasks(names: Sequence[str], seed: int) -> dict[str, Any]:
    """Tasks of lm-eval by its own names; groups and tags are expanded.

    Raises `ConfigError` for a name that it does not know, `DataError` if their data cannot be had.
    """
    manager = require_other_tasks(names)
    with quiet():
        try:
            tasks = manager.load(list(names))["tasks"]
        except OSError as error:
            raise DataError(f"cannot load the data of lm-eval's {', '.join(names)}: {error}") from error
        for task in tasks.values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=seed)
    return tasks


def bound_generation(task: Any, most: int) -> None:
    """Let a generating task produce at most `most` tokens for an item."""
    settings = task.get_config("generation_kwargs")
    if settings is not None:
        settings["max_gen_toks"] = min(most, settings.get("max_gen_toks", most))


def run_tasks(
    language_model: LanguageModel,
    tasks: dict[str, Any],
    *,
    batch_size: int,
    max_length: int,
    count: Count,
    limit: int | None = None,
    chat_template: str | None = None,
) -> dict[str, Any]:
    """lm-eval's results of the tasks, with the samples of every item; a chat template asks in turns."""
    # lm-eval exports its loop lazily and decorates its classes, which hides both from the type checker.
    evaluator: Any = import_module("lm_eval.evaluator")
    with quiet():
        tokenizer = copy(language_model.tokenizer)
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        wrapped = _wrapper(language_model.model, tokenizer, batch_size, max_length, count)
        results = evaluator.evaluate(
            lm=wrapped,
            task_dict={"tasks": tasks},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=chat_template is not None,
        )
    if results is None:
        raise ConfigError("only the first process of a distributed evaluation has the results; run one process.")
    return dict(results)


def _wrapper(model: Any, tokenizer: Any, batch_size: int, max_length: int, count: Count) -> Any:
    wrapper: Any = import_module("lm_eval.models.huggingface").HFLM

    class CountingModel(wrapper):
        """Reports the rows that went through the model, in place of lm-eval's progress bars."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            logits = super()._model_call(inps, *args, **kwargs)
            count(len(inps))
            return logits

        def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
            output = super()._model_generate(context, *args, **kwargs)
            count(len(context))
            return output

    return CountingModel(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        max_length=max_length,
        backend="causal",
    )


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval warns about what is meant here and draws a bar for each task: errors only, no bars."""
    task_module: Any = import_module("lm_eval.api.task")
    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, task_module.tqdm
    logger.setLevel(logging.ERROR)
    task_module.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        logger.setLevel(level)
        task_module.tqdm = bar
