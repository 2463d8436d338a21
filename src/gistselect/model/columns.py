"""Bases that are larger than the device: which of their columns are projected in which pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gistselect.errors import ModelError
from gistselect.model.sinks import Collector, ProjectionSink, Site


@dataclass(frozen=True, kw_only=True)
class ColumnPass:
    """What one backward pass collects."""

    sinks: tuple[Collector, ...]
    """Those that get all they want."""
    parts: tuple[tuple[ProjectionSink, slice], ...]
    """Columns of those whose basis does not fit."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """How bases meet gradients within the memory that they may take."""

    streamed: bool
    """Whether they stay where they are, and pieces of their columns visit the device one after the other."""
    passes: list[list[tuple[int, slice]]]
    """Of each backward pass, the columns of each basis by its place; empty if one pass takes all."""


def split(
    bases: Sequence[tuple[float, int]], *, limit: float | None, piece: float | None, largest: float, waits: bool
) -> Split:
    """How bases, each so many bytes a column and columns, are kept within `limit` bytes: whole, if they can be.

    If they do not fit, but the gradients of all examples can wait for them, their pieces visit the device, where one
    column of the largest block (`largest` bytes) fits into a `piece`; else each pass takes as many columns as fit.
    Raises `ModelError` if not one does.
    """
    if limit is None or sum(column * rank for column, rank in bases) <= limit:
        return Split(streamed=False, passes=[])
    if waits and piece is not None and largest <= piece:
        return Split(streamed=True, passes=[])
    return Split(streamed=False, passes=_column_groups(bases, limit))


def column_passes(sinks: Sequence[Collector], n: int, site: Site) -> list[ColumnPass]:
    """The passes over n examples that keep all bases within `site.basis_bytes`: one, wherever it can be one.

    See `split`, of which this is the doing. Raises `ModelError` if not one column fits.
    """
    projections = [sink for sink in sinks if isinstance(sink, ProjectionSink)]
    found = split(
        [(sink.basis.n_bytes / sink.basis.rank, sink.basis.rank) for sink in projections],
        limit=site.basis_bytes,
        piece=site.piece_bytes,
        largest=max((sink.basis.largest_column for sink in projections), default=0),
        waits=n * site.n_parameters * site.gradient_dtype.itemsize <= site.gradient_bytes,
    )
    for sink in projections:
        sink.piece_bytes = site.piece_bytes if found.streamed else None
    if not found.passes:
        return [ColumnPass(sinks=tuple(sinks), parts=())]
    others = tuple(sink for sink in sinks if not isinstance(sink, ProjectionSink))
    return [
        ColumnPass(
            sinks=others if not index else (), parts=tuple((projections[place], part) for place, part in columns)
        )
        for index, columns in enumerate(found.passes)
    ]


def _column_groups(bases: Sequence[tuple[float, int]], limit: float) -> list[list[tuple[int, slice]]]:
    """Columns in order, as many together as fit."""
    groups: list[list[tuple[int, slice]]] = [[]]
    free = limit
    for place, (column, rank) in enumerate(bases):
        if column > limit:
            raise ModelError(
                f"one direction of a basis takes {column / 1e9:.3g} GB, and basis_memory_gb allows {limit / 1e9:.3g}; "
                "raise it, use basis_dtype='bfloat16', a smaller adapter rank or a sketch."
            )
        first = 0
        while first < rank:
            count = min(int(free // column), rank - first)
            if count:
                groups[-1].append((place, slice(first, first + count)))
                free -= count * column
                first += count
            else:
                groups.append([])
                free = limit
    return groups
