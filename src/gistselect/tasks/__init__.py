"""Targets: built-in tasks with the published query formats, and files of one's own."""

from __future__ import annotations

import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from gistselect.data.config import ReadOptions
from gistselect.errors import ConfigError
from gistselect.registry import names, resolve
from gistselect.streams import Stream, generator
from gistselect.tasks.bbh import BBH
from gistselect.tasks.custom import Custom, is_file_name
from gistselect.tasks.files import Cut, Item
from gistselect.tasks.gsm8k import GSM8K
from gistselect.tasks.mmlu import MMLU
from gistselect.tasks.tydiqa import TyDiQA, XQAProxy
from gistselect.types import Record, Task


class EvaluationProtocol(Protocol):
    """A published evaluation: what it asks, and the files that it reads."""

    name: str

    def items(self, cut: Cut) -> list[Item]:
        """All items, passages shortened by `cut`. Raises `DataError` naming the missing or damaged file."""
        ...

    def files(self) -> list[Path]:
        """Every file that `items` reads; empty for the hub."""
        ...


PROTOCOLS: dict[str, Callable[[Path | None], EvaluationProtocol]] = {
    "mmlu": MMLU,
    "bbh": BBH,
    "tydiqa": TyDiQA,
    "xqa_proxy": XQAProxy,
    "gsm8k": GSM8K,
}
"""By name; each takes the data folder, or None for the hub."""


def load_task(
    name_or_path: str,
    data_dir: Path | None = None,
    group_column: str | None = None,
    heldout: Path | None = None,
    options: ReadOptions | None = None,
) -> Task:
    """A registered task over `data_dir`, or a target of one's own from a path.

    `group_column`, `heldout` and `options` belong to targets of one's own. Raises `ConfigError` for a name that is
    neither, and for a registered task without `data_dir`.
    """
    if is_file_name(name_or_path) or (name_or_path not in names("task") and os.path.exists(name_or_path)):
        return own_target(name_or_path, group_column, heldout, options)
    if os.sep in name_or_path:
        raise ConfigError(
            f"there is no file {name_or_path!r}, and tasks have no such names: {', '.join(names('task'))}."
        )
    task = resolve("task", name_or_path)
    if data_dir is None:
        raise ConfigError(f"the target {name_or_path!r} needs --data-dir, the folder that holds its eval/ files.")
    return task(data_dir)


def own_target(
    path: str, group_column: str | None = None, heldout: Path | None = None, options: ReadOptions | None = None
) -> Custom:
    """A target of one's own, called by its file's name; by the name's first part unless that means a task of ours."""
    file_name = Path(path.removeprefix("hf:")).name
    stem = file_name.split(".")[0]
    taken = not stem or stem in PROTOCOLS or stem in names("task")
    return Custom(path, group_column, file_name if taken else stem, heldout, options)


def heldout_records(task: Task) -> list[Record]:
    """The items that a target is evaluated on. Raises `ConfigError` if it has none."""
    records = list(task.evaluation())
    if not records:
        raise ConfigError(f"target {task.name!r} has no held-out items to evaluate on; give them with --heldout FILE.")
    return records


class Grouped(Protocol):
    """Anything that belongs to a group of its task: a query, a held-out item."""

    @property
    def group(self) -> str: ...


InGroup = TypeVar("InGroup", bound=Grouped)


def sample_groups(items: Sequence[InGroup], most: int | None, seed: int) -> list[InGroup]:
    """At most `most` items of each group, in the order given; None keeps all.

    The draw of a group depends on the seed and on that group alone. Raises `ConfigError` if nothing would be left.
    """
    if most is None:
        return list(items)
    if most < 1:
        raise ConfigError(f"{most} items of each group leave nothing; use at least 1, or none for all.")
    members: dict[str, list[int]] = defaultdict(list)
    for position, item in enumerate(items):
        members[item.group].append(position)
    kept: list[int] = []
    for group, positions in members.items():
        rng = generator(seed, Stream.GROUP_SAMPLE, zlib.crc32(group.encode()))
        kept += rng.permutation(positions)[:most].tolist()
    return [items[position] for position in sorted(kept)]
