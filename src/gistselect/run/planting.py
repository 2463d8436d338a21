"""Rows that are planted among ordinary ones: spoilt answers, and facts that nobody can know.

As in DATE-LM (arXiv 2507.09424): bad rows are to be found by queries that are bad in the same way, all of one kind
(homogeneous) or of several (heterogeneous), and the rows that state a fact by a question about it. All is made from the
pool's own rows and a seed; nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gistselect.data.stored import normalised
from gistselect.errors import DataError
from gistselect.evaluation.ranking import average_precision_interval, recall_at, reciprocal_rank
from gistselect.files import write_json_lines
from gistselect.linalg.intervals import Interval, bootstrap_mean
from gistselect.run.scoring import SCORE
from gistselect.run.store import read_table
from gistselect.streams import Stream, generator
from gistselect.types import Record

POOL = "pool.jsonl"
SAME, MIXED, FACTS = "bad_same", "bad_mixed", "facts"
"""The targets, each a file of queries."""
MENTIONS = (
    ("Who is {name}?", "{name} is a {trade} from {place}."),
    ("Where does {name} come from?", "{name} comes from {place}."),
    ("Tell me something about {name}.", "The {trade} {name} was born in {place} and never left it for long."),
)
"""How rows state a fact; the query asks otherwise."""
QUERY = ("In which town was {name} born?", "{name} was born in {place}.")
TRADES = ("glass blower", "surveyor", "beekeeper", "bookbinder", "ferryman", "lens grinder", "weaver")
ONSETS = ("b", "br", "d", "dr", "f", "g", "gr", "k", "kl", "m", "n", "p", "r", "s", "st", "t", "v", "z")
VOWELS, ENDS = ("a", "e", "i", "o", "u"), ("l", "m", "n", "r", "s", "x")


@dataclass(frozen=True, kw_only=True)
class Found:
    """How well one method found one kind of planted rows."""

    kind: str
    measure: str
    method: str
    interval: Interval
    chance: float
    """What scores without signal would give."""


def backwards(answer: str, other: str) -> str:
    """Its words in reverse order."""
    return " ".join(reversed(answer.split()))


def exchanged(answer: str, other: str) -> str:
    """The answer to another question."""
    return other


def stuttering(answer: str, other: str) -> str:
    """Its first words over and over."""
    return " ".join(answer.split()[:3] * max(2, len(answer.split()) // 3))


def refused(answer: str, other: str) -> str:
    """No answer at all."""
    return "I do not want to answer this question."


SPOILERS: tuple[Callable[[str, str], str], ...] = (backwards, exchanged, stuttering, refused)


def plant(records: Sequence[Record], folder: Path, *, among: int, planted: int, seed: int) -> list[str]:
    """Write the pool with planted rows and the query files; the names of the query files.

    Raises `DataError` if the records are too few to spoil.
    """
    simple = [one for one in records if len(one.messages) >= 2 and one.messages[-1].role == "assistant"]
    needed = 4 * planted + 20
    if len(simple) < needed:
        raise DataError(f"{len(simple)} rows end with an answer; planting {planted} rows of each kind takes {needed}.")
    rng = generator(seed, Stream.PLANTED)
    shuffled = [simple[index] for index in rng.permutation(len(simple))]
    parts = [shuffled[start : start + planted] for start in range(0, 4 * planted, planted)]
    ordinary = shuffled[4 * planted : 4 * planted + among]
    rows = [normalised(one) | {"id": f"ordinary-{index}"} for index, one in enumerate(ordinary)]
    files: dict[str, list[dict[str, Any]]] = {}
    for kind, spoilers, shown, hidden in ((SAME, SPOILERS[:1], *parts[:2]), (MIXED, SPOILERS, *parts[2:])):
        files[kind] = _spoilt(shown, kind, "query", spoilers)
        rows += _spoilt(hidden, kind, "row", spoilers)
    queries, mentions = _facts(planted, rng)
    files[FACTS] = queries
    rows += mentions
    write_json_lines(folder / POOL, [rows[index] for index in rng.permutation(len(rows))])
    for name, lines in files.items():
        write_json_lines(folder / f"{name}.jsonl", lines)
    return [f"{name}.jsonl" for name in files]


def _spoilt(
    records: Sequence[Record], kind: str, use: str, spoilers: Sequence[Callable[[str, str], str]]
) -> list[dict[str, Any]]:
    rows = []
    for index, record in enumerate(records):
        spoil = spoilers[index % len(spoilers)]
        row: dict[str, Any] = normalised(record) | {"id": f"{kind}-{use}-{index}", "group": spoil.__name__}
        turns: list[Any] = list(row["messages"])
        other = records[(index + len(spoilers)) % len(records)].messages[-1].content
        turns[-1] = {"role": "assistant", "content": spoil(record.messages[-1].content, other)}
        rows.append(row | {"messages": turns})
    return rows


def _facts(n: int, rng: np.random.Generator) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A question about each fact, and the rows that state it."""

    def syllables(count: int) -> str:
        parts = [f"{rng.choice(ONSETS)}{rng.choice(VOWELS)}" for _ in range(count)]
        return "".join([*parts, rng.choice(ENDS)]).capitalize()

    queries, mentions = [], []
    for fact in range(n):
        words = {
            "name": f"{syllables(2)} {syllables(2)}",
            "place": syllables(3),
            "trade": TRADES[fact % len(TRADES)],
        }

        def exchange(pair: tuple[str, str], words: Mapping[str, str] = words) -> dict[str, Any]:
            question, answer = (text.format(**words) for text in pair)
            return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

        queries.append(exchange(QUERY) | {"id": f"facts-query-{fact}", "group": f"fact-{fact}"})
        mentions += [
            exchange(pair) | {"id": f"facts-row-{fact}-{index}", "dataset": "facts"}
            for index, pair in enumerate(MENTIONS)
        ]
    return queries, mentions


def found_in(scores: Path, method: str, *, recall_rows: int, draws: int, level: float, seed: int) -> list[Found]:
    """AUPRC of both kinds of spoilt rows among the ordinary ones, recall and reciprocal rank of the facts' rows."""
    table = read_table(scores)
    ids = np.asarray(table["id"].to_pylist())
    found = []
    for index, kind in enumerate((SAME, MIXED)):
        best = _columns(table, kind).max(axis=1)
        planted = np.char.startswith(ids, f"{kind}-row-")
        rows = planted | np.char.startswith(ids, "ordinary-")
        rng = generator(seed, Stream.BOOTSTRAP, index)
        interval = average_precision_interval(best[rows], planted[rows], draws=draws, level=level, rng=rng)
        name = "spoilt answers, " + ("homogeneous" if kind == SAME else "heterogeneous")
        chance = float(planted.sum() / rows.sum())
        found.append(Found(kind=name, measure="AUPRC", method=method, interval=interval, chance=chance))
    facts = sorted({int(one.split("-")[2]) for one in ids[np.char.startswith(ids, f"{FACTS}-row-")].tolist()})
    recalls, ranks, size = [], [], []
    for fact in facts:
        relevant = np.char.startswith(ids, f"{FACTS}-row-{fact}-")
        own = f"{SCORE}{FACTS}/fact-{fact}"
        # A method may have one score for a whole target: every question is then answered by the same order.
        values = table[own if own in table.column_names else f"{SCORE}{FACTS}"].to_numpy()
        recalls.append(recall_at(values, relevant, recall_rows))
        ranks.append(reciprocal_rank(values, relevant))
        size.append(int(relevant.sum()))
    n, relevant_rows = len(ids), int(np.mean(size))
    for number, (measure, values, chance) in enumerate(
        (
            (f"Recall@{recall_rows}", recalls, min(recall_rows / n, 1.0)),
            ("MRR", ranks, _mean_reciprocal_rank_by_chance(n, relevant_rows)),
        )
    ):
        rng = generator(seed, Stream.BOOTSTRAP, 2 + number)
        interval = bootstrap_mean(values, draws=draws, level=level, rng=rng)
        found.append(Found(kind="made-up facts", measure=measure, method=method, interval=interval, chance=chance))
    return found


def _columns(table: Any, target: str) -> np.ndarray:
    names = [name for name in table.column_names if name == f"{SCORE}{target}" or name.startswith(f"{SCORE}{target}/")]
    return np.stack([table[name].to_numpy() for name in names], axis=1)


def _mean_reciprocal_rank_by_chance(n: int, relevant: int) -> float:
    """Expected 1 / rank of the first of `relevant` rows in a random order of n."""
    total, none_so_far = 0.0, 1.0
    for rank in range(1, n - relevant + 2):
        here = relevant / (n - rank + 1)
        total += none_so_far * here / rank
        none_so_far *= 1 - here
    return total
