"""The bridge to lm-eval: its task files, its model wrapper, its evaluation loop, and silence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistselect.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from gistselect.model.loading import LanguageModel

TASK_FILES = Path(__file__).parent
PREFIX = "gistselect_"
"""Our task names in lm-eval, so that its own `mmlu` is never meant by mistake."""

Count = Callable[[int], None]
"""Called with the number of rows that the model has just worked off."""


def require_lm_eval() -> None:
    """Raises `MissingDependencyError` with the line that installs it."""
    if find_spec("lm_eval") is None:
        raise MissingDependencyError("evaluation needs lm-eval; pip install 'gistselect[eval]'.")


def load_own_tasks(names: Sequence[str], folder: Path) -> dict[str, Any]:
    """Our lm-eval tasks by short name, over the prompts written in `folder`."""
    from lm_eval.tasks import TaskManager

    with quiet():
        manager = TaskManager(include_path=TASK_FILES, include_defaults=False, metadata={"folder": str(folder)})
        loaded = manager.load([PREFIX + name for name in names])["tasks"]
    return {name.removeprefix(PREFIX): task for name, task in loaded.items()}


def task_facts(name: str) -> dict[str, Any]:
    """`version`, `average`, and where there are any `chance` and `limit` of one of our tasks."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(TASK_FILES / f"{name}.yaml", resolve_func=False)
    return {**config["metadata"], "generation": config.get("generation_kwargs")}


def load_other_tasks(names: Sequence[str], seed: int) -> dict[str, Any]:
    """Tasks of lm-eval by its own names; groups and tags are expanded.

    Raises `ConfigError` for a name that it does not know.
    """
    from lm_eval.tasks import TaskManager

    with quiet():
        manager = TaskManager()
        for name in names:
            if name not in manager.all_tasks:
                close = get_close_matches(name, manager.all_tasks, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ConfigError(f"neither gistselect nor lm-eval has a task {name!r}.{hint}")
        tasks = manager.load(list(names))["tasks"]
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
    chat: bool = False,
) -> dict[str, Any]:
    """lm-eval's results of the tasks, with the samples of every item."""
    # lm-eval exports its loop lazily and decorates its classes, which hides both from the type checker.
    evaluator: Any = import_module("lm_eval.evaluator")
    with quiet():
        wrapped = _wrapper(language_model, batch_size, max_length, count)
        results = evaluator.evaluate(
            lm=wrapped,
            task_dict={"tasks": tasks},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=chat,
        )
    if results is None:
        raise ConfigError("only the first process of a distributed evaluation has the results; run one process.")
    return dict(results)


def _wrapper(language_model: LanguageModel, batch_size: int, max_length: int, count: Count) -> Any:
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
        pretrained=language_model.model,
        tokenizer=language_model.tokenizer,
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
