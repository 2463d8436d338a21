"""The run's targets: queries to take gradients of, and held-out items to judge by, tokenised."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gistselect.data.tokens import encode
from gistselect.errors import ConfigError, DataError
from gistselect.run.context import Run
from gistselect.tasks import load_task, sample_groups
from gistselect.tasks.custom import Custom
from gistselect.types import Example, Record, Rejected, Task


@dataclass(frozen=True, kw_only=True)
class Target:
    """One task's examples with the group of each; used as queries or as held-out items."""

    task: str
    examples: tuple[Example, ...]
    groups: tuple[str, ...]
    rejected: tuple[Rejected, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of every id, token, label and group."""
        content = hashlib.sha256()
        for example, group in zip(self.examples, self.groups, strict=True):
            content.update(repr((example.id, group, example.n_tokens)).encode())
            content.update(example.input_ids.tobytes())
            content.update(example.supervised.tobytes())
        return content.hexdigest()


def queries(run: Run) -> dict[str, Target]:
    """The query examples of every target, by task name.

    Raises `DataError` if a whole group has no query left, `ConfigError` if two targets have the same name.
    """
    found: dict[str, Target] = {}
    for task in _tasks(run):
        records = task.queries()
        if run.config.max_queries:
            records = sample_groups(records, run.config.max_queries, run.config.seed)
        if task.name in found:
            raise ConfigError(f"two targets are called {task.name!r}; rename one of the files.")
        found[task.name] = target = _encoded(run, task.name, records)
        if lost := {record.group for record in records} - set(target.groups):
            raise DataError(
                f"target {task.name!r}: no query of group {min(lost)!r} can be used. {target.rejected[0].reason}"
            )
    return found


def heldout_items(run: Run, limit: int) -> dict[str, Target]:
    """At most `limit` held-out items of each group of every target (a seeded sample), by task name.

    Raises `ConfigError` if a target has none.
    """
    found = {}
    for task in _tasks(run):
        records = task.evaluation()
        if not records:
            raise ConfigError(
                f"target {task.name!r} has no held-out items to evaluate on; give them with --heldout FILE."
            )
        found[task.name] = _encoded(run, task.name, sample_groups(records, limit, run.config.seed))
    return found


def _tasks(run: Run) -> Iterator[Task]:
    """The targets in their order; held-out files go to one's own targets, in the same order."""
    heldout = iter(run.config.heldout)
    for name in run.config.target:
        task = load_task(name, run.config.data_dir, run.config.target_group)
        if isinstance(task, Custom):
            task.heldout = next(heldout, None)
        yield task
    if (unused := next(heldout, None)) is not None:
        raise ConfigError(f"--heldout {unused} belongs to no target; only targets of your own take held-out files.")


def _encoded(run: Run, task: str, records: Sequence[Record]) -> Target:
    examples, groups, rejected = [], [], []
    for record, outcome in zip(
        records, encode(records, run.template, run.tokenizer, run.config.max_length), strict=True
    ):
        if isinstance(outcome, Rejected):
            rejected.append(outcome)
        else:
            examples.append(outcome)
            groups.append(record.group)
    return Target(task=task, examples=tuple(examples), groups=tuple(groups), rejected=tuple(rejected))
