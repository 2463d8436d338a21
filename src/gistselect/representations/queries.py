"""The queries of a target as a representation gets them, and the same in other groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gistselect.linalg.hashing import fingerprints
from gistselect.types import Example, Record


@dataclass(frozen=True, kw_only=True)
class Queries:
    """The examples of one target, row by row."""

    target: str
    records: tuple[Record, ...]
    examples: tuple[Example, ...]
    """The records as tokens; empty in a run without a tokenizer."""
    groups: tuple[str, ...]
    """Group of each query."""

    @property
    def group_names(self) -> tuple[str, ...]:
        """The groups in the order in which they are first seen: the columns of a score matrix."""
        return tuple(dict.fromkeys(self.groups))

    @property
    def group_of(self) -> NDArray[np.intp]:
        """(n_query,) column of each query's group."""
        column = {name: index for index, name in enumerate(self.group_names)}
        return np.array([column[group] for group in self.groups], dtype=np.intp)

    @property
    def column_numbers(self) -> NDArray[np.int64]:
        """(n_group,) numbers of target and group, which tell the random draws of score columns apart."""
        return fingerprints(f"{self.target}\0{group}" for group in self.group_names).view(np.int64)


@dataclass(frozen=True, kw_only=True)
class Apart(Queries):
    """Queries of a target in other groups, `number/group` each: what a single query, or one draw of them, says for a
    group of the target. A fit takes them as any others, but judges no group: a draw may hold what no target would."""

    @property
    def column_numbers(self) -> NDArray[np.int64]:
        """Those of the groups that they speak for, so that every draw has the noise of the target itself."""
        own = (name.partition("/")[2] for name in self.group_names)
        return fingerprints(f"{self.target}\0{name}" for name in own).view(np.int64)
