"""Gathers the facts of a finished run for its page, and writes the page."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gistselect.errors import ConfigError
from gistselect.files import read_json, read_json_lines, replacing
from gistselect.linalg.similarity import spearman
from gistselect.report.facts import Agreement, Curve, MethodFacts, Reasons, RunFacts
from gistselect.report.page import render
from gistselect.run import ingest
from gistselect.run.choosing import SELECTED
from gistselect.run.contamination import OVERLAP
from gistselect.run.finished import FinishedMethod, FinishedRun
from gistselect.run.reasons import Explainer
from gistselect.run.remember import RUN_YAML, read_yaml
from gistselect.run.results import REPORT, SUBSPACE_JSON
from gistselect.run.scoring import SCORE
from gistselect.run.steady import steady
from gistselect.run.store import Artifact, read_names, read_table
from gistselect.run.tokenising import kind_of_reason
from gistselect.training.checkpoints import CURVE

SHOWN_SELECTED, SHOWN_REJECTED, SHOWN_QUARANTINED, SHOWN_FLAGGED, SHOWN_LEFT_OUT = 600, 600, 200, 60, 60
"""Rows of each kind that the page shows at most."""
MANY_ROWS, MANY_SHARDS = 200_000, 60
"""In a pool of more rows, those shown come from so many of its shards, so that few files are read."""


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """The page of the first run, with a comparison with the others; by default report.html in its folder.

    Raises `ConfigError` for a folder without a selection, and what `steady` raises.
    """
    with steady(*folders):
        runs = [gather(FinishedRun.open(folder), with_rows=index == 0) for index, folder in enumerate(folders)]
        page = _page(runs, folders)
    return _write(page, output or folders[0] / REPORT)


def report_of(folder: Path) -> RunFacts:
    """Write the page of one run into its folder; what it is about."""
    run = gather(FinishedRun.open(folder))
    _write(_page([run], [folder]), folder / REPORT)
    return run


def _page(runs: list[RunFacts], folders: Sequence[Path]) -> str:
    if len({run.name for run in runs}) < len(runs):
        runs = [replace(run, name=run.output) for run in runs]
    ids = [_selected_ids(folder) for folder in folders]
    shared = [len(ids[0] & other) / max(1, len(ids[0] | other)) for other in ids]
    return render(runs[0], runs[1:], shared[1:])


def _write(page: str, path: Path) -> Path:
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def gather(run: FinishedRun, *, with_rows: bool = True) -> RunFacts:
    """The facts of a finished run."""
    if not run.methods:
        raise ConfigError(f"{run.folder} holds no scores beside its selection; run it again: gistselect run --output.")
    explainer = Explainer(run)
    options = read_yaml(run.folder / RUN_YAML)
    selected = _chat_rows(run.folder / SELECTED)
    marks = {"repeats": _repeated(explainer, selected), "overlaps": _overlapping(run.methods[0])}
    reasons = Counter(kind_of_reason(entry["reason"]) for entry in explainer.quarantined)
    return RunFacts(
        name=run.folder.resolve().name,
        output=str(run.folder),
        manifest=run.manifest,
        options=(run.folder / RUN_YAML).read_text(encoding="utf-8"),
        budget=str(options.get("budget", "")),
        methods=tuple(_method(one) for one in run.methods),
        targets=tuple(dict.fromkeys(query.target for query in run.queries)),
        queries=run.queries,
        n_rejected_queries=len(read_json_lines(run.folder / "rejected_queries.jsonl")),
        reasons=dict(reasons.most_common()),
        n_quarantined=len(explainer.quarantined),
        n_left_out=run.manifest.get("left_out", 0),
        prefilter=run.manifest.get("prefilter", {}),
        comparison=run.comparison,
        curves=tuple(_curves(run)),
        agreements=tuple(_agreements(run.methods)),
        rows=tuple(_marked(one, marks) for one in _rows_to_show(explainer)) if with_rows else (),
        missing=tuple(explainer.missing),
        n_repeated=len(selected) - len(set(selected)),
        n_overlapping=None if marks["overlaps"] is None else len(marks["overlaps"]),
        accounting=run.manifest.get("selections", {}).get(run.methods[0].label, {}),
    )


def _selected_ids(folder: Path) -> set[str]:
    return set(read_table(folder / "selection.parquet", ["id"])["id"].to_pylist())


def _chat_rows(path: Path) -> list[bytes]:
    """What each selected row says, hashed: two rows are the same if they differ in nothing but their id and source."""
    said = []
    for row in read_json_lines(path):
        content = {name: value for name, value in row.items() if name not in ("id", "dataset", "source")}
        said.append(hashlib.blake2b(repr(sorted(content.items())).encode("utf-8", "surrogatepass")).digest())
    return said


def _repeated(explainer: Explainer, selected: Sequence[bytes]) -> set[int]:
    """Pool rows of the selection that say what another one says."""
    counts = Counter(selected)
    rows = read_table(explainer.main.selection_file, ["row"])["row"].to_pylist()
    return {row for row, said in zip(rows, selected, strict=True) if counts[said] > 1}


def _overlapping(method: FinishedMethod) -> set[int] | None:
    """Pool rows of the selection that share a passage with the targets; None where that was not looked for."""
    if method.overlap is None or not method.overlap.is_complete:
        return None
    return set(read_table(method.overlap / OVERLAP, ["row"])["row"].to_pylist())


def _marked(reasons: Reasons, marks: Mapping[str, set[int] | None]) -> Reasons:
    told = {name: 1.0 for name, rows in marks.items() if rows and reasons.row in rows}
    return replace(reasons, measured={**reasons.measured, **told}) if told else reasons


def _method(method: FinishedMethod) -> MethodFacts:
    names = read_names(method.score_file)
    numbers = [
        name
        for name in names
        if name not in ("id", "source", "row", "score", "best_target") and not name.startswith(SCORE)
    ]
    table = read_table(method.score_file, ["source", "row", "score", "best_target", *numbers])
    sources, source_names = _codes(table["source"])
    best, targets = _codes(table["best_target"], [name.removeprefix(SCORE) for name in names if name.startswith(SCORE)])
    measured = {name: table[name].to_numpy() for name in numbers if _is_number(table.schema.field(name).type)}
    chosen = np.isin(table["row"].to_numpy(), read_table(method.selection_file, ["row"])["row"].to_numpy())
    if of_row := method.stability_of_rows:
        measured["stability"] = np.array([of_row.get(row, np.nan) for row in table["row"].to_pylist()])
    subspace = method.folder / SUBSPACE_JSON
    return MethodFacts(
        label=method.label,
        title=method.title if method.title.lower() == method.label else f"{method.title} ({method.label})",
        definition=method.definition,
        folder=method.place,
        scores=table["score"].to_numpy(),
        selected=chosen,
        sources=sources,
        source_names=source_names,
        best_targets=best,
        targets=targets,
        measured=measured,
        null=method.scores.facts.get("null_score_quantiles", {}) if method.scores.is_complete else {},
        stability=method.stability,
        spectra=read_json(subspace) if subspace.is_file() else {},
    )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _codes(column: pa.ChunkedArray, names: Sequence[str] = ()) -> tuple[NDArray[np.intp], tuple[str, ...]]:
    """A column of names as places in a list of them: the given names, and others by how often they occur."""
    encoded = column.combine_chunks().dictionary_encode()
    found = encoded.dictionary.to_pylist()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    counts = np.bincount(codes, minlength=len(found))
    common = sorted(range(len(found)), key=lambda code: (-counts[code], found[code]))
    order = [*names, *(found[code] for code in common if found[code] not in set(names))]
    place = {name: index for index, name in enumerate(order)}
    return np.array([place[name] for name in found], dtype=np.intp)[codes], tuple(order)


def _curves(run: FinishedRun) -> Iterator[Curve]:
    if "warmup" in run.results:
        yield from _curve("warm-up", None, run.stored(run.results["warmup"]) / "training" / CURVE)
    for arm in run.results["arms"]:
        artifact: Artifact = run.stored(arm["artifact"])
        if artifact.is_complete:
            training = run.stored(artifact.facts["training"])
            yield from _curve(arm["name"], arm["seed"], training / "training" / CURVE)


def _curve(name: str, seed: int | None, path: Path) -> Iterator[Curve]:
    if path.is_file():
        points = read_json(path)
        steps, losses = tuple(int(one[0]) for one in points), tuple(float(one[1]) for one in points)
        if steps and np.isfinite(losses).all():
            yield Curve(name=name, seed=seed, steps=steps, losses=losses)


def _agreements(methods: Sequence[FinishedMethod]) -> Iterator[Agreement]:
    tables = {}
    for method in methods:
        table = read_table(method.score_file, ["row", "score"])
        chosen = read_table(method.selection_file, ["row"])["row"].to_numpy()
        tables[method.label] = table["row"].to_numpy(), table["score"].to_numpy(), chosen
    for first, second in itertools.combinations(tables, 2):
        rows, here, there = np.intersect1d(tables[first][0], tables[second][0], assume_unique=True, return_indices=True)
        if len(rows) > 1:
            yield Agreement(
                first=first,
                second=second,
                n_rows=len(rows),
                spearman=spearman(tables[first][1][here], tables[second][1][there]),
                overlap=float(np.isin(tables[first][2], tables[second][2]).mean()),
            )


def _rows_to_show(explainer: Explainer) -> list[Reasons]:
    """Rows of each kind, evenly over their ranking, and some of each that an alert is about."""
    allowed = _few_shards(explainer.rows)
    by_rank = np.argsort(explainer.ranks)
    selected = by_rank[explainer.selected[by_rank]]
    borderline = by_rank[explainer.borderline[by_rank]]
    rejected = by_rank[(allowed & ~explainer.selected & ~explainer.borderline)[by_rank]]
    shown = [
        *_spread(selected[: SHOWN_SELECTED // 2], SHOWN_SELECTED // 2),
        *_spread(selected[SHOWN_SELECTED // 2 :], SHOWN_SELECTED // 2),
        *borderline[: SHOWN_SELECTED // 2],
        *_spread(rejected, SHOWN_REJECTED),
        *rejected[-SHOWN_FLAGGED // 2 :],
    ]
    if "n_cut" in read_names(explainer.main.score_file):
        cut = read_table(explainer.main.score_file, ["n_cut"])["n_cut"].to_numpy() > 0
        shown += _spread(np.flatnonzero(cut & (allowed | explainer.selected)), SHOWN_FLAGGED)
    places = sorted({int(place) for place in shown})
    kinds: dict[str, list[int]] = {}
    for place, entry in enumerate(explainer.quarantined):
        kinds.setdefault(kind_of_reason(entry["reason"]), []).append(place)
    each = max(1, SHOWN_QUARANTINED // max(1, len(kinds)))
    lost = sorted(
        itertools.islice(itertools.chain.from_iterable(one[:each] for one in kinds.values()), SHOWN_QUARANTINED)
    )
    found = explainer.scored(places)
    found.sort(key=lambda one: one.rank or 0)
    return [*found, *explainer.prefiltered(explainer.left_out.to_show(SHOWN_LEFT_OUT)), *explainer.lost(lost)]


def _few_shards(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) True for all rows of a small pool, and for those of some shards of a large one."""
    if len(rows) <= MANY_ROWS:
        return np.ones(len(rows), dtype=np.bool_)
    shards = rows // ingest.SHARD_ROWS
    kept = np.unique(shards)
    return np.isin(shards, kept[np.linspace(0, len(kept) - 1, MANY_SHARDS).astype(int)])


def _spread(places: NDArray[np.intp], most: int) -> list[int]:
    """At most so many of the places, evenly."""
    if len(places) <= most:
        return places.tolist()
    return places[np.linspace(0, len(places) - 1, most).astype(int)].tolist()
