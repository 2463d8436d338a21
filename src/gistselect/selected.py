"""What a selection is to the person who holds it: rows, scores, a table to look at, and the reasons of each row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistselect.errors import ArtifactMismatchError
from gistselect.report.inert import inert

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy import float64
    from numpy.typing import NDArray
    from pandas import DataFrame

    from gistselect.report.facts import Reasons
    from gistselect.run.reasons import Explainer

SHOWN = 8
"""Sources and targets that a notebook shows."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Selection:
    """What was selected, best first, with everything needed to use it or to question it."""

    ids: tuple[str, ...]
    scores: NDArray[float64]
    """(k,) score of each selected row for its best target."""
    best_targets: tuple[str, ...]
    sources: tuple[str, ...]
    """Data set of each selected row."""
    rows: tuple[dict[str, Any], ...] = field(repr=False)
    """The selected rows as they stand in the pool."""
    output: str
    """The run folder, with every file behind the selection."""

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"Selection({', '.join(f'{name}: {told}' for name, told in self._told().items())})"

    def _repr_html_(self) -> str:
        """A short table for notebooks. Names come from the data, and are shown as text whatever they hold."""
        told = {**self._told(), "sources": _counted(self.sources), "best targets": _counted(self.best_targets)}
        lines = (f"<tr><th>{inert(name)}</th><td>{inert(said)}</td></tr>" for name, said in told.items())
        return f"<table>{''.join(lines)}</table>"

    def _told(self) -> dict[str, str]:
        told = {"rows": f"{len(self):,}"}
        if len(self):
            told["scores"] = f"{self.scores.max():.4g} to {self.scores.min():.4g}"
        told["sources"] = f"{len(set(self.sources)):,}"
        return {**told, "best targets": f"{len(set(self.best_targets)):,}", "output": self.output}

    @property
    def dataset(self) -> Dataset:
        """The selected rows as a `datasets.Dataset`, in rank order, with the columns of all of them.

        A column whose values have no common type (rows of several sources may differ) holds each as JSON text.
        """
        from datasets import Dataset

        names = dict.fromkeys(name for row in self.rows for name in row)
        return Dataset.from_dict({name: _column([row.get(name) for row in self.rows]) for name in names})

    def to_pandas(self) -> DataFrame:
        """A data frame in rank order: rank, id, source, score, best_target, and the columns of the rows.

        A column of the rows that has one of the first names stands under `row.` and its name.
        """
        from pandas import DataFrame

        own: dict[str, Any] = {
            "rank": range(1, len(self) + 1),
            "id": list(self.ids),
            "source": list(self.sources),
            "score": self.scores,
            "best_target": list(self.best_targets),
        }
        names = dict.fromkeys(name for row in self.rows for name in row)
        columns = {f"row.{name}" if name in own else name: [row.get(name) for row in self.rows] for name in names}
        return DataFrame({**own, **columns})

    def why(self, id: str) -> Why:
        """Why the pool row with this id was selected, or was not; as `gistselect explain` says it.

        Any row of the pool has reasons, also a rejected or quarantined one. Raises `ConfigError` if there is no row
        with this id, `ArtifactMismatchError` if the run folder holds another selection by now.
        """
        found = self._explainer.find(id=id)
        return Why(reasons=found, text="\n".join(self._explainer.lines(found)))

    @cached_property
    def _explainer(self) -> Explainer:
        from gistselect.run.finished import FinishedRun
        from gistselect.run.reasons import Explainer
        from gistselect.run.store import read_table

        explainer = Explainer(FinishedRun.open(Path(self.output)))
        if tuple(read_table(explainer.main.selection_file, ["id"])["id"].to_pylist()) != self.ids:
            raise ArtifactMismatchError(
                f"{self.output} holds another selection than this one; load_selection({self.output!r}) gives it."
            )
        return explainer


@dataclass(frozen=True, kw_only=True, repr=False)
class Why:
    """The reasons of a row: as fields to compute with, and as text, which is what a notebook shows."""

    reasons: Reasons
    """Status, rank, scores, nearest query, ranks by other methods, …"""
    text: str

    def __repr__(self) -> str:
        return self.text


def _counted(names: Sequence[str]) -> str:
    """Names with how often they occur, the most common first."""
    counts = Counter(names).most_common()
    told: Iterable[str] = (f"{name} {count:,}" for name, count in counts[:SHOWN])
    return ", ".join([*told, *([f"and {len(counts) - SHOWN:,} more"] if len(counts) > SHOWN else [])])


def _column(values: list[Any]) -> list[Any]:
    import pyarrow as pa

    try:
        pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return values
