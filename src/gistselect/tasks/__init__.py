"""Targets: built-in tasks with the published query formats, and files of one's own."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from gistselect.data.records import READERS
from gistselect.errors import ConfigError
from gistselect.registry import names, resolve
from gistselect.tasks.custom import Custom
from gistselect.types import Task


def load_task(
    name_or_path: str,
    data_dir: Path | None = None,
    group_column: str | None = None,
    heldout: Path | None = None,
) -> Task:
    """A registered task over `data_dir`, or a target of one's own from a path.

    `group_column` and `heldout` belong to targets of one's own. Raises `ConfigError` for a name that is
    neither, and for a registered task without `data_dir`.
    """
    is_file_name = name_or_path.endswith(tuple(READERS)) or name_or_path.startswith("hf:")
    if is_file_name or (name_or_path not in names("task") and Path(name_or_path).exists()):
        stem = Path(name_or_path.removeprefix("hf:")).name.split(".")[0]
        return Custom(name_or_path, group_column, stem, heldout)
    task = resolve("task", name_or_path)
    if data_dir is None:
        raise ConfigError(f"the target {name_or_path!r} needs --data-dir, the folder that holds its eval/ files.")
    return task(data_dir)


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
        rng = np.random.default_rng([seed, zlib.crc32(group.encode())])
        kept += rng.permutation(positions)[:most].tolist()
    return [items[position] for position in sorted(kept)]
