"""What a reader should know first: each check of a run as one line with its number, the worst first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from gistselect.report.facts import MethodFacts, RunFacts

Level = Literal["bad", "look", "good"]
LEVELS: tuple[Level, ...] = ("bad", "look", "good")

MUCH_LOST, MUCH_CUT = 0.05, 0.05
"""Shares of the pool from which on a reader should look."""
MUCH_LEFT_OUT = 0.1
"""Share of the best rows that a prefilter may leave out before a reader should look."""
MOST_LEFT_OUT = 0.5
"""Share from which that is bad, and up to which an interval must not reach where little seems to be lost."""
ONE_SOURCE, ONE_LENGTH = 0.8, 0.5
"""Shares of the selection from one source, or from one tenth of the pool's lengths."""
LOW_ENERGY = 0.01
"""Median share of a selected row's gradient that the score looks at."""
AT_NULL = 0.1
"""Share of the selection that rows without signal would have reached."""
NULL_QUANTILE = "0.99"
UNSTABLE = 0.5
"""Share of the repetitions in which a row is selected, below which it is called unstable."""

Condition = tuple[str, str, Any]
"""Field of a row, one of = > < >=, and a value."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """A number, and which rows it counts: those that fulfil all conditions."""

    text: str
    conditions: tuple[Condition, ...] = ()
    where: str = ""
    """The same for whoever opens the table itself: an SQL condition on scores.parquet, or the file to look in."""


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One check."""

    level: Level
    title: str
    number: Link
    said: str
    """How the sentence goes on after the number: what it means, and what to do if it is bad. A clause of its own begins
    with its punctuation."""

    @property
    def follows(self) -> str:
        """`said`, with the blank that a word needs before it."""
        return self.said if self.said.startswith((";", ",")) else f" {self.said}"


def alerts(run: RunFacts) -> list[Alert]:
    """Every check that this run allows, the worst first."""
    found = [
        *_pool(run),
        *_prefilter(run),
        *_texts(run),
        *_shape(run.main),
        *_scores(run.main),
        *_stability(run.main),
        *_targets(run),
        *_verdicts(run),
    ]
    return sorted(found, key=lambda one: LEVELS.index(one.level))


def share(count: float, total: float) -> str:
    """`3.4 %`, and an honest word for what rounds to nothing."""
    if count and count / total < 0.0005:
        return "< 0.1 %"
    return f"{100 * count / total:.1f} %" if total else "0 %"


def level(share: float, look: float, bad: float = 2.0) -> Level:
    """How bad a share is."""
    return "bad" if share >= bad else "look" if share >= look else "good"


def _pool(run: RunFacts) -> Iterator[Alert]:
    n_scored = len(run.main.scores)
    total = n_scored + run.n_quarantined + run.n_left_out
    yield Alert(
        level=level(run.n_quarantined / total, MUCH_LOST, 0.5) if run.n_quarantined else "good",
        title="Quarantined rows",
        number=Link(
            text=f"{run.n_quarantined:,} of {total:,} ({share(run.n_quarantined, total)})",
            conditions=(("status", "=", "quarantined"),),
            where="every line of quarantine.jsonl",
        ),
        said="cannot be scored; each has its reason" if run.n_quarantined else f"; {_all_scored(run)}",
    )
    if (cut := run.main.measured.get("n_cut")) is not None:
        n_cut = int((cut > 0).sum())
        yield Alert(
            level=level(n_cut / n_scored, MUCH_CUT, 0.5),
            title="Rows cut at the maximal length",
            number=Link(
                text=f"{n_cut:,} ({share(n_cut, n_scored)})", conditions=(("n_cut", ">", 0),), where="n_cut > 0"
            ),
            said="scored by their beginning alone; a larger --max-length reads more of them"
            if n_cut
            else "; every row was read whole",
        )
    if run.n_rejected_queries:
        yield Alert(
            level="look",
            title="Unusable target examples",
            number=Link(text=f"{run.n_rejected_queries:,}", where="every line of rejected_queries.jsonl"),
            said="; they define nothing of the target; rejected_queries.jsonl says why",
        )


def _all_scored(run: RunFacts) -> str:
    return "every row that the prefilter left has a score" if run.n_left_out else "every row has a score"


def _prefilter(run: RunFacts) -> Iterator[Alert]:
    """What the cascade lost, of each representation that it serves; first of all which rows it spared."""
    for label, lost in run.prefilter.get("lost", {}).items():
        spared = f"{run.prefilter['title']} left out {run.prefilter['left_out']:,} rows"
        number = Link(text="not measured", where="fate <> 'kept' in prefilter.parquet")
        if lost is not None:
            interval = f"{100 * lost['low']:.1f} to {100 * lost['high']:.1f} %"
            number = replace(number, text=f"{100 * lost['share']:.1f} % ({lost['level']:.0%} interval {interval})")
        how_bad = level(lost["share"], MUCH_LEFT_OUT, MOST_LEFT_OUT) if lost else "look"
        is_open = lost is not None and how_bad == "good" and lost["high"] >= MOST_LEFT_OUT
        remedy = (
            "a larger --prefilter-sample says whether it is more" if is_open else "a larger share in --prefilter fewer"
        )
        yield Alert(
            level="look" if is_open else how_bad,
            title=f"Best rows lost to the prefilter, {label}",
            number=replace(number, conditions=(("status", "=", "prefiltered"),) if run.n_left_out else ()),
            said=f"; {spared}, of which none was scored: give a --prefilter-sample"
            if lost is None
            else f"of the pool's {lost['of_best_rows']:,} best rows; {spared}, {remedy}",
        )


def _texts(run: RunFacts) -> Iterator[Alert]:
    n_selected = int(run.main.selected.sum())
    yield Alert(
        level=level(run.n_repeated / n_selected, 1e-9, 0.1),
        title="Repeated rows in the selection",
        number=Link(
            text=f"{run.n_repeated:,} of {n_selected:,}",
            conditions=(("status", "=", "selected"), ("repeats", ">", 0)) if run.n_repeated else (),
        ),
        said="say exactly what another selected row says; they take the place of others"
        if run.n_repeated
        else "; no two selected rows say exactly the same",
    )
    if run.n_overlapping is not None:
        yield Alert(
            level="bad" if run.n_overlapping else "good",
            title="Selected rows that overlap the target",
            number=Link(
                text=f"{run.n_overlapping:,} of {n_selected:,}",
                conditions=(("status", "=", "selected"), ("overlaps", ">", 0)) if run.n_overlapping else (),
                where="every row of overlap.parquet" if run.n_overlapping else "",
            ),
            said="share 13 words in a row with a query or held-out item: a gain may be recall; --decontaminate leaves "
            "them out"
            if run.n_overlapping
            else "; no selected row shares 13 words in a row with a query or held-out item",
        )


def _shape(method: MethodFacts) -> Iterator[Alert]:
    n_selected = int(method.selected.sum())
    counts = np.bincount(method.sources[method.selected], minlength=len(method.source_names))
    top = int(counts.argmax())
    if len(method.source_names) > 1:
        of_pool = float((method.sources == top).mean())
        yield Alert(
            level=level(counts[top] / n_selected, ONE_SOURCE),
            title="Largest source of the selection",
            number=Link(
                text=share(counts[top], n_selected),
                conditions=(("status", "=", "selected"), ("source", "=", method.source_names[top])),
                where=f"source = '{quoted(method.source_names[top])}' in selection.parquet",
            ),
            said=f"come from {method.source_names[top]!r}, which is {100 * of_pool:.1f} % of the scored rows",
        )
    if (lengths := method.measured.get("n_tokens")) is not None:
        edges = np.quantile(lengths, np.linspace(0, 1, 11))
        tenth = np.clip(np.searchsorted(edges, lengths, side="right") - 1, 0, 9)
        per_tenth = np.bincount(tenth[method.selected], minlength=10)
        most = int(per_tenth.argmax())
        low, high = int(edges[most]), int(edges[most + 1])
        medians = np.median(lengths[method.selected]), np.median(lengths)
        yield Alert(
            level=level(per_tenth[most] / n_selected, ONE_LENGTH),
            title="Selected rows of one length",
            number=Link(
                text=share(per_tenth[most], n_selected),
                conditions=(
                    ("status", "=", "selected"),
                    ("n_tokens", ">=", low),
                    ("n_tokens", "<", high + (most == 9)),
                ),
                where=f"n_tokens >= {low} AND n_tokens < {high + (most == 9)}",
            ),
            said=f"lie in one tenth of the pool's lengths ({low:,} to {high:,} tokens); median {medians[0]:,.0f} "
            f"tokens, of the pool {medians[1]:,.0f}",
        )


def _scores(method: MethodFacts) -> Iterator[Alert]:
    n_selected = int(method.selected.sum())
    if (energy := method.measured.get("captured_energy")) is not None:
        median = float(np.median(energy[method.selected]))
        n_low = int((energy[method.selected] < LOW_ENERGY).sum())
        yield Alert(
            level="look" if median < LOW_ENERGY else "good",
            title="Captured energy of the selection",
            number=Link(
                text=f"median {100 * median:.2g} %",
                conditions=(("status", "=", "selected"), ("captured_energy", "<", LOW_ENERGY)),
                where=f"captured_energy < {LOW_ENERGY}",
            ),
            said=f"of a selected row's gradient lies in the target's subspace ({n_low:,} rows below 1 %); the score "
            "looks at that part alone",
        )
    levels = {name: one[NULL_QUANTILE] for name, one in method.null.items() if one and NULL_QUANTILE in one}
    if levels:
        of_target = np.array([levels.get(target.split("/")[0], -np.inf) for target in method.targets])
        below = int((method.scores < of_target[method.best_targets])[method.selected].sum())
        yield Alert(
            level=level(below / n_selected, 1e-9 if below > 1 else 1.0, AT_NULL),
            title="Selected rows at the null level",
            number=Link(
                text=f"{below:,} of {n_selected:,}",
                conditions=(("status", "=", "selected"), ("score", "<", max(levels.values()))),
                where=f"score < {max(levels.values()):.4f} in selection.parquet",
            ),
            said="score no higher than the best hundredth of random directions in the same subspace",
        )
    for name, checkpoint in _sketches(method):
        agreement = checkpoint["sketch_agreement"]
        yield Alert(
            level="look" if agreement["overlap_at_budget"] < 0.8 else "good",
            title=f"Agreement of the sketch, {name}",
            number=Link(text=f"{agreement['overlap_at_budget']:.0%}"),
            said=f"of the best of {agreement['rows']} exactly scored rows are the same; Spearman "
            f"{agreement['spearman']:.2f}; a wider --sketch agrees more",
        )


def _sketches(method: MethodFacts) -> Iterator[tuple[str, dict[str, Any]]]:
    for target, described in method.spectra.items():
        for checkpoint in described["checkpoints"]:
            if "sketch_agreement" in checkpoint:
                yield target, checkpoint


def _stability(method: MethodFacts) -> Iterator[Alert]:
    facts = method.stability
    if facts.get("reason"):
        yield Alert(
            level="look",
            title="Stability of the selection",
            number=Link(text="not measured"),
            said=f"; {facts['reason']}",
        )
    if (stability := method.measured.get("stability")) is not None:
        n_selected, n_low = int(method.selected.sum()), int((stability[method.selected] < UNSTABLE).sum())
        yield Alert(
            level=level(n_low / n_selected, 0.2, 0.5),
            title="Unstable rows",
            number=Link(
                text=f"{n_low:,} of {n_selected:,}",
                conditions=(("status", "=", "selected"), ("stability", "<", UNSTABLE)),
                where=f"stability < {UNSTABLE} in selection.parquet",
            ),
            said=f"would be selected by {facts['selector']} in less than half of {facts['draws']:,} draws of the "
            f"queries (a row stays in {facts['mean']:.0%} of them on average)"
            + ("; they hang on single queries, of which more would help" if n_low else ""),
        )


def _targets(run: RunFacts) -> Iterator[Alert]:
    method = run.main
    if len(method.targets) > 1:
        counts = np.bincount(method.best_targets[method.selected], minlength=len(method.targets))
        without = int((counts == 0).sum())
        yield Alert(
            level=level(without / len(method.targets), 1e-9),
            title="Target groups without a selected row",
            number=Link(text=f"{without:,} of {len(method.targets):,}"),
            said=_unserved(int(counts.sum()), len(counts))
            if without
            else "; every group is the best target of some selected row",
        )


def _unserved(n_selected: int, n_groups: int) -> str:
    said = "are no selected row's best target"
    if n_selected < n_groups:
        return f"{said}: {n_selected:,} rows cannot serve {n_groups:,} groups; a larger --budget can"
    return f"{said}; --selector round_robin serves each in turn"


def _verdicts(run: RunFacts) -> Iterator[Alert]:
    if not run.comparison:
        yield Alert(
            level="look",
            title="Proof",
            number=Link(text="none yet"),
            said="; nothing was trained on these rows; 'gistselect evaluate --run' measures them against random rows",
        )
        return
    outcomes = Counter(outcome for one in run.comparison for outcome in one["outcomes"])
    n_better, n_worse, n_all = outcomes["better"], outcomes["worse"], outcomes.total()
    yield Alert(
        level="bad" if n_worse else "good" if n_better == n_all else "look",
        title="Proof",
        number=Link(text=f"better in {n_better} of {n_all} comparisons"),
        said=f", worse in {n_worse}; what is neither cannot be told from chance",
    )


def quoted(text: str) -> str:
    """Text within single quotes of SQL."""
    return text.replace("'", "''")
