"""What each pass of a plan serves and has still to read, and the keys of the rates at which that is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistselect.files import digest
from gistselect.representations.interface import Reads, Representation
from gistselect.run import ingest
from gistselect.run.cells import Cell, Checkpoint, Fit, Preparation
from gistselect.run.earlier import share_known
from gistselect.run.features import Features
from gistselect.run.ingest import Rows
from gistselect.run.plan import Plan

READ_TEXT = "pass-text"
"""Rate at which the text of rows is read, once for all that take it."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Everything that one source serves: preparations, fits and cells, of which some may be done."""

    reads: Reads
    checkpoint: Checkpoint | None
    preparations: tuple[Preparation, ...]
    fits: tuple[Fit, ...]
    cells: tuple[Cell, ...]

    @property
    def pending(self) -> tuple[Cell, ...]:
        """Cells that are not done."""
        return tuple(cell for cell in self.cells if not cell.is_complete)


def takers(cells: Sequence[Cell]) -> dict[Representation, list[Cell]]:
    """Those of these cells that belong together, by their representation."""
    found: dict[Representation, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.representation, []).append(cell)
    return found


def groups(plan: Plan) -> list[Group]:
    """The sources of a run, in the order in which they are first needed."""
    return [group for stage in plan.passes for group in _groups(stage)]


def _groups(features: Features) -> list[Group]:
    kinds: dict[tuple[Reads, Checkpoint | None], None] = dict.fromkeys(
        (one.representation.reads, one.checkpoint) for one in (*features.fits, *features.cells)
    )
    return [
        Group(
            reads=reads,
            checkpoint=checkpoint,
            preparations=tuple(one for one in features.preparations if _place(one) == (reads, checkpoint)),
            fits=tuple(one for one in features.fits if _place(one) == (reads, checkpoint)),
            cells=tuple(one for one in features.cells if _place(one) == (reads, checkpoint)),
        )
        for reads, checkpoint in kinds
    ]


def _place(one: Preparation | Fit | Cell) -> tuple[Reads, Checkpoint | None]:
    return one.representation.reads, one.checkpoint


# --- what is left of a pass ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Missing:
    """What a pass has still to do, in the unit of its rows."""

    shards: int
    """Shards of which something is missing."""
    read: float
    """Rows or tokens that some cell needs."""
    taken: dict[str, float]
    """Of text, what each representation needs, by the key of its rate; those of a model's pass take a row together."""


def missing(plan: Plan, group: Group, rows: Rows) -> Missing:
    """Rows that an earlier pool had too are no work: of text for each representation by itself, else if all know them,
    as in `passes.work`."""
    amounts = np.array(rows.amounts, dtype=np.float64)
    pending = group.pending
    if group.reads != "text":
        left, todo = _left(plan, amounts, pending)
        return Missing(shards=int(todo.sum()), read=float(left.sum()), taken={})
    read, todo, taken = np.zeros(len(amounts)), np.zeros(len(amounts), dtype=np.bool_), dict[str, float]()
    for cells in takers(pending).values():
        left, own = _left(plan, amounts, cells)
        read, todo = np.maximum(read, left), todo | own
        taken[text_rate(cells)] = float(left.sum())
    return Missing(shards=int(todo.sum()), read=float(read.sum()), taken=taken)


def _left(
    plan: Plan, amounts: NDArray[np.float64], cells: Sequence[Cell]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """What these cells need of each shard (n_shard,), and of which shards a file of theirs is missing (n_shard,)."""
    outputs = [cell.features for cell in cells]
    outputs += [cell.measured for cell in cells if cell.measured is not None]
    todo = np.array(
        [not all(one.shard(index).is_file() for one in outputs) for index in range(len(amounts))], dtype=np.bool_
    )
    known, n_pool = plan.features.known(cells), plan.records.rows.facts["n_rows"]
    new = 1 - share_known(known, outputs, n_pool, ingest.SHARD_ROWS)
    return np.where(todo, amounts * new, 0.0), todo


# --- keys of rates --------------------------------------------------------------------------------------------


def fit_rate(plan: Plan, one: Fit | Preparation) -> str:
    """Key of the rate of a fit or a preparation: the same for all targets and checkpoints."""
    representation = one.representation
    kind = "fit" if isinstance(one, Fit) else "prepare"
    options = representation.fit_inputs if isinstance(one, Fit) else representation.prepare_inputs
    return f"{kind}-{representation.name}-{short([options, *_model(plan, representation.reads)])}"


def pass_rate(plan: Plan, group: Group) -> str:
    """Key of the rate of a pass: what is read, and of a model's pass what is collected on the way."""
    if group.reads == "text":
        return READ_TEXT
    collected = sorted(repr([cell.representation.name, cell.representation.pool_inputs]) for cell in group.pending)
    return f"pass-{group.reads}-{short([collected, *_model(plan, group.reads)])}"


def text_rate(cells: Sequence[Cell]) -> str:
    """Key of the rate at which the cells of a representation take text."""
    one = cells[0].representation
    return f"text-{one.name}-{short([one.pool_inputs, len(cells)])}"


def _model(plan: Plan, reads: Reads) -> list[Any]:
    """What the speed of a model depends on."""
    if reads == "text" or plan.features.model is None:
        return []
    return [plan.features.model.model_dump(mode="json"), plan.features.engine_config.model_dump(mode="json")]


def short(value: Any) -> str:
    """A digest that tells rates apart."""
    return digest(value)[:12]
