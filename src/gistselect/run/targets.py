"""The run's targets: queries to be taught, and held-out items to judge by, as records and as tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gistselect.data.config import ReadOptions
from gistselect.data.stored import record_json
from gistselect.errors import ConfigError, DataError
from gistselect.representations.queries import Queries
from gistselect.tasks import heldout_records, load_task, sample_groups
from gistselect.tasks.custom import Custom
from gistselect.types import Record, Rejected, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gistselect.data.templates import Template


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """How records become tokens in this run."""

    template: Template
    tokenizer: PreTrainedTokenizerBase
    max_length: int


@dataclass(frozen=True, kw_only=True)
class Target:
    """One task's usable queries or held-out items, and those that cannot be used."""

    queries: Queries
    rejected: tuple[Rejected, ...]

    @property
    def n_truncated(self) -> int:
        """Examples that lost tokens to the maximal length."""
        return sum(example.n_cut > 0 for example in self.queries.examples)

    @property
    def digest(self) -> str:
        """SHA-256 of ids and groups, and of tokens and labels, or of the text where there are no tokens."""
        content = hashlib.sha256()
        for index, (record, group) in enumerate(zip(self.queries.records, self.queries.groups, strict=True)):
            content.update(repr((record.id, group)).encode())
            if self.queries.examples:
                example = self.queries.examples[index]
                content.update(repr(example.n_tokens).encode())
                content.update(example.input_ids.tobytes() + example.supervised.tobytes())
            else:
                content.update(record_json(record).encode())
        return content.hexdigest()


def load_tasks(
    names: Sequence[str],
    data_dir: Path | None,
    group_column: str | None,
    heldout: Sequence[Path],
    options: ReadOptions | None = None,
) -> list[Task]:
    """The targets in their order; held-out files go to one's own targets, in the same order.

    What the options say of names and answers holds for one's own targets too. The shape and the revision are the
    pool's alone: a target may be another kind of file.
    Raises `ConfigError` for a held-out file that belongs to none, or two targets of one name.
    """
    files = iter(heldout)
    options = options and options.reading.model_copy(update={"format": "auto", "pool_revision": None})
    tasks: list[Task] = []
    for name in names:
        task = load_task(name, data_dir, group_column, options=options)
        if isinstance(task, Custom):
            task.heldout = next(files, None)
        tasks.append(task)
    if (unused := next(files, None)) is not None:
        raise ConfigError(f"--heldout {unused} belongs to no target; only targets of your own take held-out files.")
    if len({task.name for task in tasks}) < len(tasks):
        name = next(task.name for index, task in enumerate(tasks) if task.name in {one.name for one in tasks[:index]})
        raise ConfigError(f"two targets are called {name!r}; rename one of the files.")
    return tasks


def queries(tasks: Sequence[Task], most: int | None, seed: int, encoder: Encoder | None) -> list[Target]:
    """The queries of every target, at most `most` of each group (a seeded sample).

    Raises `DataError` if a whole group has no query left.
    """
    found = []
    for task in tasks:
        records = task.queries()
        if most:
            records = sample_groups(records, most, seed)
        target = _target(task.name, records, encoder)
        if lost := {record.group for record in records} - set(target.queries.groups):
            raise DataError(
                f"target {task.name!r}: no query of group {min(lost)!r} can be used. {target.rejected[0].reason}"
            )
        found.append(target)
    return found


def heldout_items(tasks: Sequence[Task], most: int, seed: int, encoder: Encoder) -> list[Target]:
    """At most `most` held-out items of each group of every target (a seeded sample).

    Raises `ConfigError` if a target has none, `DataError` if none of them fits the context.
    """
    found = [_target(task.name, sample_groups(heldout_records(task), most, seed), encoder) for task in tasks]
    for one in found:
        if not one.queries.examples:
            raise DataError(
                f"target {one.queries.target!r}: none of its {len(one.rejected)} held-out items has a loss; the first: "
                f"{one.rejected[0].reason}"
            )
    return found


def _target(name: str, records: Sequence[Record], encoder: Encoder | None) -> Target:
    if encoder is None:
        kept, examples, rejected = list(records), [], []
    else:
        from gistselect.data.tokens import encode

        outcomes = encode(records, encoder.template, encoder.tokenizer, encoder.max_length)
        pairs = list(zip(records, outcomes, strict=True))
        kept = [record for record, outcome in pairs if not isinstance(outcome, Rejected)]
        examples = [outcome for outcome in outcomes if not isinstance(outcome, Rejected)]
        rejected = [outcome for outcome in outcomes if isinstance(outcome, Rejected)]
    return Target(
        queries=Queries(
            target=name,
            records=tuple(kept),
            examples=tuple(examples),
            groups=tuple(record.group for record in kept),
        ),
        rejected=tuple(rejected),
    )
