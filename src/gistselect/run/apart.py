"""What the passes keep beside the scores for methods that keep of a row what all queries of a group say together.

The same representation, fitted on the same queries in other groups: each query by itself where a group's score is the
mean of its queries' scores, and otherwise the queries of each draw. So the passes know of nothing new, and what is kept
for the scores is as it would be without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gistselect.files import digest
from gistselect.linalg.bootstrap import Mixture, drawn_counts
from gistselect.representations.interface import KeptApart, Representation
from gistselect.representations.queries import Apart, Queries
from gistselect.run.cells import Checkpoint, Column, Keys, lay_out
from gistselect.run.store import Store
from gistselect.streams import Stream, generator


def counts_of(queries: Queries, draws: int, seed: int) -> NDArray[np.intp]:
    """How often each query is drawn (n_draws, n_query), with replacement within its group."""
    numbers = queries.column_numbers.view(np.uint64).tolist()
    return drawn_counts(
        queries.group_of, draws, [generator(seed, Stream.QUERY_BOOTSTRAP, number) for number in numbers]
    )


def lay_out_apart(
    store: Store,
    representation: Representation,
    asked: Sequence[Queries],
    checkpoints: Sequence[Checkpoint],
    keys: Keys,
    *,
    draws: int,
    most: int,
    seed: int,
) -> tuple[Column, ...]:
    """The columns that are kept beside those of the scores, one for each target; none if none are to be kept."""
    kind = representation.apart
    if kind is None or not draws or none_to_draw(asked) or too_many(representation, asked, draws, most):
        return ()
    own = {"queries": [kind], "draws": [kind, draws, seed]}[kind]
    apart = [set_apart(one, kind, draws, seed) for one in asked]
    names: Mapping[str, str] = {one.target: digest([keys.queries[one.target], *own]) for one in asked}
    return tuple(lay_out(store, representation, apart, checkpoints, replace(keys, queries=names)))


def none_to_draw(asked: Sequence[Queries]) -> str | None:
    """Why no draw differs from the queries as they are; None if one can."""
    if all(len(one.group_names) == len(one.groups) for one in asked):
        return "every group has a single query, so there is none to draw in its place"
    return None


def too_many(representation: Representation, asked: Sequence[Queries], draws: int, most: int) -> str | None:
    """Why nothing is kept beside the scores, with the remedy, where a target would need more than `most` numbers."""
    by_query = representation.apart == "queries"
    for one in asked:
        width = len(one.groups) if by_query else draws * len(one.group_names)
        if width > most:
            return (
                f"{width:,} numbers a row would be kept beside the scores for target {one.target!r}, one for each "
                f"{'query' if by_query else 'draw and group'}, and --stability-columns allows {most:,}"
            )
    return None


def set_apart(queries: Queries, kind: KeptApart, draws: int, seed: int) -> Apart:
    """The queries, each a group of its own, or those of every draw."""
    n_query = len(queries.groups)
    if kind == "queries":
        chosen = numbers = list(range(n_query))
    else:
        counts = counts_of(queries, draws, seed)
        chosen = np.repeat(np.tile(np.arange(n_query), draws), counts.ravel()).tolist()
        numbers = np.repeat(np.arange(draws), counts.sum(axis=1)).tolist()
    return Apart(
        target=queries.target,
        records=tuple(queries.records[index] for index in chosen),
        examples=tuple(queries.examples[index] for index in chosen) if queries.examples else (),
        groups=tuple(f"{number}/{queries.groups[index]}" for number, index in zip(numbers, chosen, strict=True)),
    )


def mixture_of(queries: Queries, apart: Apart, kind: KeptApart, counts: NDArray[np.intp]) -> Mixture:
    """What makes scores of the groups, in draws with these counts (n_draws, n_query), of those kept apart."""
    names = [name.partition("/") for name in apart.group_names]
    groups = np.array([queries.group_names.index(group) for _, _, group in names], dtype=np.intp)
    if kind == "queries":
        shares = counts / np.bincount(queries.group_of)[queries.group_of]
    else:
        draw = np.array([int(number) for number, _, _ in names])
        shares = (draw == np.arange(len(counts))[:, None]).astype(np.float64)
    return Mixture(queries=np.eye(len(names)), groups=groups, shares=shares)
