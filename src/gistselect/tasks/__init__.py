"""Targets: built-in tasks with the published query formats, and files of one's own."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gistselect.data.records import READERS
from gistselect.errors import ConfigError
from gistselect.registry import names, resolve
from gistselect.tasks.custom import Custom
from gistselect.types import Record, Task


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


def sample_queries(records: Sequence[Record], max_per_group: int | None, seed: int) -> list[Record]:
    """At most `max_per_group` records of each group, in the order given; None keeps all.

    The draw of a group depends on the seed and on that group alone.
    """
    if max_per_group is None:
        return list(records)
    if max_per_group < 1:
        raise ConfigError(f"max_queries={max_per_group} leaves no query; use at least 1, or none for all.")
    groups: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        groups[record.group].append(i)
    kept: list[int] = []
    for group, members in groups.items():
        rng = np.random.default_rng([seed, zlib.crc32(group.encode())])
        kept.extend(rng.permutation(members)[:max_per_group].tolist())
    return [records[i] for i in sorted(kept)]
