"""The parts of a run's page below its alerts: a chart, the same as a table, and a sentence on how to read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gistselect.report.accounting import accounting
from gistselect.report.alerts import Link, quoted, share
from gistselect.report.charts import Line, line_chart
from gistselect.report.facts import Curve, MethodFacts, RunFacts
from gistselect.report.figures import Dot, bar_chart, density_chart, histogram, histogram_chart, interval_chart
from gistselect.report.parts import Cell, Section, Table

SHOWN_SOURCES, SHOWN_TARGETS, SHOWN_CURVES = 12, 30, 8
SELECTED, SCORED = ("status", "=", "selected"), ("rank", ">", 0)


def sections(run: RunFacts, others: Sequence[RunFacts], shared: Sequence[float]) -> list[Section]:
    """All parts that this run has something to say in, in reading order."""
    return [
        *(_verdict(number, one) for number, one in enumerate(run.comparison)),
        _sources(run.main),
        _scores(run.main),
        *_spectrum(run.main),
        *_targets(run),
        *_lengths(run.main),
        *_agreement(run),
        *_trainings(run.curves),
        *accounting(run),
        *_other_runs(run, others, shared),
    ]


def _verdict(number: int, comparison: Mapping[str, Any]) -> Section:
    task, metric = comparison["task"], comparison["metric"]
    dots = [
        Dot(name=row["arm"], **{name: row["interval"][name] for name in ("mean", "low", "high")})
        for row in comparison["rows"]
    ]
    table = Table(
        head=("arm", "mean", f"{comparison['level']:.0%} interval", "trainings", "selecting took", "STR"),
        rows=tuple(
            (
                dot.name,
                f"{dot.mean:.4f}",
                f"{dot.low:.4f} to {dot.high:.4f}",
                str(row["n_runs"]) if dot.name != "before" else "none",
                *_cost(row.get("cost")),
            )
            for dot, row in zip(dots, comparison["rows"], strict=True)
        ),
    )
    return Section(
        id=f"verdict-{number}",
        title=f"Verdict: {metric} on {task}",
        lead=" ".join(f"{one}." for one in comparison["verdicts"])
        + " STR is the time of selecting over the time of one training on the full pool.",
        charts=(interval_chart(dots, title=f"{task}, held-out {metric}", x_label=f"{metric} (mean and interval)"),),
        tables=((f"Held-out {metric} of every arm", table),),
    )


def _cost(cost: Mapping[str, Any] | None) -> tuple[str, str]:
    """Seconds of a selection, and as a share of one training on the full pool."""
    if not cost:
        return "", ""
    ratio = cost.get("selection_to_tuning")
    told = "" if ratio is None else f"{ratio:.2g} ({cost.get('full_training_is')})"
    return f"{cost['selection_seconds']:,.1f} s, {cost['bytes_per_row']:,.0f} bytes a row", told


def _sources(method: MethodFacts) -> Section:
    n_selected, n_pool = int(method.selected.sum()), len(method.scores)
    of_pool = np.bincount(method.sources, minlength=len(method.source_names))
    chosen = np.bincount(method.sources[method.selected], minlength=len(method.source_names))
    order = sorted(range(len(of_pool)), key=lambda one: (-chosen[one], -of_pool[one]))
    shown = order[:SHOWN_SOURCES]
    rows = [
        (
            method.source_names[one],
            Link(
                text=f"{chosen[one]:,} ({share(chosen[one], n_selected)})",
                conditions=(SELECTED, ("source", "=", method.source_names[one])),
                where=f"source = '{quoted(method.source_names[one])}' in selection.parquet",
            ),
            Link(
                text=f"{of_pool[one]:,} ({share(of_pool[one], n_pool)})",
                conditions=(SCORED, ("source", "=", method.source_names[one])),
                where=f"source = '{quoted(method.source_names[one])}'",
            ),
            f"{chosen[one] / n_selected / (of_pool[one] / n_pool):.1f}",
        )
        for one in order
    ]
    return Section(
        id="sources",
        title="Sources",
        lead="Where the rows come from. That many come from a source that looks related is no proof that they teach: "
        "the verdict is.",
        charts=(
            bar_chart(
                [method.source_names[one] for one in shown],
                [
                    ("selection", [chosen[one] / n_selected for one in shown]),
                    ("scored rows", [of_pool[one] / n_pool for one in shown]),
                ],
                title="Share of each source",
            ),
        ),
        tables=(
            ("Rows of every source", Table(head=("source", "selected", "scored", "times its share"), rows=tuple(rows))),
        ),
    )


def _scores(method: MethodFacts) -> Section:
    marks = [("lowest selected", method.threshold)]
    levels = [one for one in method.null.values() if one]
    if levels:
        marks.append(("null level, 99 %", max(one["0.99"] for one in levels)))
    rows: list[tuple[Cell, ...]] = []
    for name, values in (("all scored rows", method.scores), ("selected rows", method.scores[method.selected])):
        low, median, high = np.quantile(values, (0, 0.5, 1))
        conditions = (SELECTED,) if name.startswith("selected") else (SCORED,)
        counted = Link(text=f"{len(values):,}", conditions=conditions, where="every row of the table")
        rows.append((name, counted, f"{low:.4f}", f"{median:.4f}", f"{high:.4f}"))
    tables = [("Scores", Table(head=("rows", "number", "lowest", "median", "highest"), rows=tuple(rows)))]
    if levels:
        null = tuple(
            (target, *(f"{one[quantile]:.4f}" for quantile in ("0.5", "0.95", "0.99")))
            for target, one in method.null.items()
            if one
        )
        head = ("target", "half", "95 %", "99 %")
        tables.append(("Null level: below it lies this share of random directions", Table(head=head, rows=null)))
    return Section(
        id="scores",
        title="Scores",
        lead=f"The score of {method.title} is the {method.definition}."
        + (" Random directions in the same subspace reach the null level." if levels else ""),
        charts=(
            histogram_chart(
                histogram(method.scores, method.selected), title="Best score of each row", x_label="score", marks=marks
            ),
        ),
        tables=tuple(tables),
    )


def _spectrum(method: MethodFacts) -> Iterator[Section]:
    checkpoints = [(target, one) for target, described in method.spectra.items() for one in described["checkpoints"]]
    if not checkpoints:
        return
    lines = [
        Line(
            name=f"{target}, {one['name']}: rank {one['rank']}",
            x=range(1, len(one["explained_variance"]) + 1),
            y=one["explained_variance"],
        )
        for target, one in checkpoints[:SHOWN_CURVES]
    ]
    marks = [(f"rank {one['rank']}", float(one["rank"])) for _, one in checkpoints[:2]]
    rows = tuple(
        (
            f"{target}, {one['name']}",
            str(len(one["singular_values"])),
            str(one["rank"]),
            f"{one['explained_variance'][one['rank'] - 1]:.1%}",
            str(one["rank_at_95_percent"]),
        )
        for target, one in checkpoints
    )
    head = ("target and checkpoint", "queries", "chosen rank", "variance kept", "rank for 95 %")
    yield Section(
        id="spectrum",
        title="Spectrum of the query gradients",
        lead="How many directions the target's examples share. A curve that rises slowly means that the examples ask "
        "for different things.",
        charts=(
            line_chart(
                lines,
                title="Variance of the query gradients kept",
                x_label="rank of the subspace",
                y_label="share kept",
                y_range=(0.0, 1.0),
                marks=marks,
            ),
        ),
        tables=(("Rank of each subspace", Table(head=head, rows=rows)),),
    )


def _targets(run: RunFacts) -> Iterator[Section]:
    method = run.main
    if len(method.targets) < 2:
        return
    n_selected, n_pool = int(method.selected.sum()), len(method.scores)
    of_pool = np.bincount(method.best_targets, minlength=len(method.targets))
    chosen = np.bincount(method.best_targets[method.selected], minlength=len(method.targets))
    order = sorted(range(len(method.targets)), key=lambda one: (-chosen[one], method.targets[one]))
    queries = {}
    for query in run.queries:
        name = f"{query.target}/{query.group}" if query.group else query.target
        queries[name] = queries.get(name, 0) + 1
    rows = tuple(
        (
            method.targets[one],
            str(queries.get(method.targets[one], 0)),
            Link(
                text=f"{chosen[one]:,} ({share(chosen[one], n_selected)})",
                conditions=(SELECTED, ("best_target", "=", method.targets[one])),
                where=f"best_target = '{quoted(method.targets[one])}' in selection.parquet",
            ),
            Link(
                text=f"{of_pool[one]:,} ({share(of_pool[one], n_pool)})",
                conditions=(SCORED, ("best_target", "=", method.targets[one])),
                where=f"best_target = '{quoted(method.targets[one])}'",
            ),
        )
        for one in order
    )
    shown = order[:SHOWN_TARGETS]
    yield Section(
        id="targets",
        title="Coverage of the target's groups",
        lead="For which group each row scores best.",
        charts=(
            bar_chart(
                [method.targets[one] for one in shown],
                [
                    ("selection", [chosen[one] / n_selected for one in shown]),
                    ("scored rows", [of_pool[one] / n_pool for one in shown]),
                ],
                title="Best target of the rows",
            ),
        ),
        tables=(("Rows of every group", Table(head=("group", "queries", "selected", "scored"), rows=rows)),),
    )


def _lengths(method: MethodFacts) -> Iterator[Section]:
    lengths = method.measured.get("n_tokens")
    if lengths is None:
        return
    rows = []
    for name, chosen in (("scored rows", np.ones(len(lengths), dtype=bool)), ("selected rows", method.selected)):
        quantiles = np.quantile(lengths[chosen], (0.05, 0.5, 0.95))
        rows.append((name, *(f"{value:,.0f}" for value in quantiles), f"{lengths[chosen].sum():,.0f}"))
    yield Section(
        id="lengths",
        title="Score against length",
        lead="A score that only follows the length of a row would choose without reading it.",
        charts=(
            density_chart(
                lengths.astype(np.float64),
                method.scores,
                method.selected,
                title="Score against length",
                x_label="tokens",
                y_label="score",
            ),
        ),
        tables=(
            ("Tokens of a row", Table(head=("rows", "5 %", "median", "95 %", "tokens together"), rows=tuple(rows))),
        ),
    )


def _agreement(run: RunFacts) -> Iterator[Section]:
    if not run.agreements:
        return
    rows = tuple(
        (f"{one.first} and {one.second}", f"{one.n_rows:,}", f"{one.spearman:.2f}", f"{one.overlap:.0%}")
        for one in run.agreements
    )
    head = ("representations", "rows", "rank correlation", "selected by both")
    yield Section(
        id="agreement",
        title="Agreement between representations",
        lead="Rank correlation (Spearman) over the whole pool, and the share of the first one's selection that the "
        "second selected too. Where they disagree, only a comparison of trainings says who is right.",
        tables=(("Pairs of representations", Table(head=head, rows=rows)),),
    )


def _trainings(curves: Sequence[Curve]) -> Iterator[Section]:
    if not curves:
        return
    names = list(dict.fromkeys(one.name for one in curves))
    first = [next(one for one in curves if one.name == name) for name in names][:SHOWN_CURVES]
    lines = [Line(name=_curve_name(one), x=one.steps, y=one.losses) for one in first]
    rows = tuple(
        (_curve_name(one), str(one.steps[-1]), f"{one.losses[0]:.3f}", f"{one.losses[-1]:.3f}") for one in curves
    )
    head = ("training", "steps", "first loss", "last loss")
    yield Section(
        id="trainings",
        title="Training curves",
        lead="Loss on the rows that are trained on, one curve for each arm; a low one says that its rows are easy, not "
        "that they are useful.",
        charts=(line_chart(lines, title="Training loss", x_label="step", y_label="nats a token"),),
        tables=(("Every training", Table(head=head, rows=rows)),),
    )


def _curve_name(curve: Curve) -> str:
    return curve.name if curve.seed is None else f"{curve.name}, seed {curve.seed}"


def _other_runs(run: RunFacts, others: Sequence[RunFacts], shared: Sequence[float]) -> Iterator[Section]:
    if not others:
        return
    rows = []
    for one, overlap in zip((run, *others), (1.0, *shared), strict=True):
        verdicts = "; ".join(verdict for comparison in one.comparison for verdict in comparison["verdicts"])
        rows.append(
            (
                one.name,
                one.main.title,
                ", ".join(one.targets),
                f"{one.budget} ({int(one.main.selected.sum()):,} rows)",
                f"{overlap:.0%}",
                str(one.manifest.get("wall", "")),
                verdicts or "not evaluated",
            )
        )
    head = ("run", "method", "target", "budget", "same rows", "time", "verdicts")
    yield Section(
        id="runs",
        title="Beside other runs",
        lead="Same rows: what both selections hold, as a share of what either holds.",
        tables=(("Runs", Table(head=head, rows=tuple(rows))),),
    )
