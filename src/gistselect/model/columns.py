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


def column_passes(sinks: Sequence[Collector], n: int, site: Site) -> list[ColumnPass]:
    """The passes over n examples that keep all bases within `site.basis_bytes`: one, wherever it can be one.

    If bases do not fit, but the gradients of all n examples can wait, their pieces visit the device one after the
    other; if gradients cannot wait, each pass takes as many columns as fit. Raises `ModelError` if not one does.
    """
    projections = [sink for sink in sinks if isinstance(sink, ProjectionSink)]
    limit, most = site.basis_bytes, site.piece_bytes
    fits = limit is None or sum(sink.basis.n_bytes for sink in projections) <= limit
    waits = n * site.n_parameters * site.gradient_dtype.itemsize <= site.gradient_bytes
    piece = max((sink.basis.largest_column for sink in projections), default=0)
    streamed = not fits and waits and most is not None and piece <= most
    for sink in projections:
        sink.piece_bytes = most if streamed else None
    if limit is None or fits or streamed:
        return [ColumnPass(sinks=tuple(sinks), parts=())]
    others = tuple(sink for sink in sinks if not isinstance(sink, ProjectionSink))
    groups = _column_groups(projections, limit)
    return [ColumnPass(sinks=others if not index else (), parts=tuple(group)) for index, group in enumerate(groups)]


def _column_groups(projections: Sequence[ProjectionSink], limit: float) -> list[list[tuple[ProjectionSink, slice]]]:
    """Columns in order, as many together as fit."""
    groups: list[list[tuple[ProjectionSink, slice]]] = [[]]
    free = limit
    for sink in projections:
        column, first = sink.basis.n_bytes / sink.basis.rank, 0
        if column > limit:
            raise ModelError(
                f"one direction of a basis takes {column / 1e9:.3g} GB, and basis_memory_gb allows {limit / 1e9:.3g}; "
                "raise it, use basis_dtype='bfloat16', a smaller adapter rank or a sketch."
            )
        while first < sink.basis.rank:
            count = min(int(free // column), sink.basis.rank - first)
            if count:
                groups[-1].append((sink, slice(first, first + count)))
                free -= count * column
                first += count
            else:
                groups.append([])
                free = limit
    return groups
