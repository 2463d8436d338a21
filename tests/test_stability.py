"""Stability: every draw of the queries against a plain recomputation, what must not matter, and what cannot be said."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gistselect.cli import main
from gistselect.linalg.bootstrap import cosine_of_means, drawn_counts, mean_of_cosines
from gistselect.representations.interface import Features
from gistselect.representations.queries import Queries
from gistselect.representations.specification import label
from gistselect.run import ingest, passes, stability
from gistselect.run.apart import counts_of, set_apart
from gistselect.run.cells import load_fit
from gistselect.run.config import RunConfig
from gistselect.run.passes import read_features
from gistselect.run.plan import Plan, make_plan
from tiny_runs import WARMUP, RecordingReporter, row, run, write_pool, write_rows, write_target

DRAWS, BUDGET = 13, 10
METHODS = ("gist", "gist:energy_weighting=true", "less:dimension=64,nonzeros=8", "rds", "embedding")
BROKEN = {4: np.nan, 9: np.inf}


@pytest.fixture(scope="module")
def values(tiny_model: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two targets (one of them with a group of a single query), two checkpoints, and options for quick runs."""
    folder = tmp_path_factory.mktemp("stability")
    more = [row(f"Which is more, {n} or {n + 1}?", "größer " * (n + 1)) for n in range(4)]
    values = {
        "model": str(tiny_model),
        "encoder": str(tiny_encoder),
        "pool": (str(write_pool(folder / "pool.jsonl")),),
        "target": (str(write_target(folder / "sums.jsonl")), str(write_rows(folder / "words.jsonl", more))),
        "budget": BUDGET,
        "warmup": WARMUP,
        "warmup_share": 0.3,
        "device": "cpu",
        "stability_draws": DRAWS,
    }
    made = run(values, output=folder / "warm-up", until="warmup", warmup_checkpoints=(1, 2))
    adapters = sorted(made.glob("artifacts/warmup-*/training/checkpoint-*"), key=lambda path: int(path.name[11:]))
    return {**values, "checkpoints": tuple(map(str, adapters)), "checkpoint_weights": (0.7, 0.3)}


def plan_of(values: dict[str, Any], output: Path, **changes: Any) -> Plan:
    return make_plan(RunConfig.from_values({**values, "output": output, **changes}), "select", None)


def shown(output: Path, name: str) -> dict[str, float]:
    """Stability by id, as people get it."""
    folder = output / "methods" / label(name)
    table = pq.read_table((folder if folder.is_dir() else output) / "selection.parquet")
    return dict(zip(table["id"].to_pylist(), table["stability"].to_pylist(), strict=True))


def chosen_by(output: Path, name: str) -> list[str]:
    """The ids that a method selected."""
    folder = output / "methods" / label(name)
    return pq.read_table((folder if folder.is_dir() else output) / "selection.parquet")["id"].to_pylist()


def reference(plan: Plan, selector: str) -> dict[str, dict[str, float]]:
    """Of each method the stability by id: every draw scored anew by the representation's own `score`, from a fit in
    whose place that of the drawn queries stands."""
    return {method.label: _stability(method, selector) for method in plan.methods}


def _stability(method: Any, selector: str) -> dict[str, float]:
    table = pq.read_table(method.score.artifact / "scores.parquet")
    ids, rows = table["id"].to_pylist(), table["row"].to_numpy()
    chosen = method.select.table["id"].to_pylist()
    size = BUDGET
    if selector == "top_k":
        best = table["score"].to_pylist()
        order = sorted(ids, key=dict(zip(ids, zip([-one for one in best], ids, strict=True), strict=True)).__getitem__)
        size = order.index(chosen[-1]) + 1
    kept = dict.fromkeys(chosen, 0)
    for draw in range(DRAWS):
        columns = []
        for column in method.columns:
            queries = column.entries[0][0].queries
            counts = counts_of(queries, DRAWS, 0)[draw]
            drawn = np.repeat(np.arange(len(counts)), counts)
            fits = [_refitted(load_fit(fit.artifact), drawn, queries) for fit, _ in column.entries]
            features = [_whole(cell, rows) for _, cell in column.entries]
            scores = method.representation.score(features, fits, method.score.weights()).values
            columns.append(scores.astype(np.float32))
        for at in _best(np.concatenate(columns, axis=1), ids, size, selector):
            kept[ids[at]] = kept.get(ids[at], 0) + 1
    return {one: kept[one] / DRAWS for one in chosen}


def _refitted(fit: Any, drawn: np.ndarray, queries: Queries) -> Any:
    features, group = fit.arrays["query_features"][drawn], queries.group_of[drawn]
    arrays = {**fit.arrays, "query_features": features, "group": group}
    if "target_features" in arrays:
        arrays["target_features"] = np.stack([features[group == g].mean(axis=0) for g in range(len(fit.groups))])
    return replace(fit, arrays=arrays)


def _whole(cell: Any, rows: np.ndarray) -> Features:
    """What is kept of all rows, shard after shard."""
    parts = [
        read_features(cell, shard, rows[rows // ingest.SHARD_ROWS == shard])
        for shard in np.unique(rows // ingest.SHARD_ROWS).tolist()
    ]
    measured = {name: np.concatenate([one.measured[name] for one in parts]) for name in parts[0].measured}
    return Features(values=np.concatenate([one.values for one in parts]), measured=measured)


def _best(scores: np.ndarray, ids: list[str], size: int, selector: str) -> list[int]:
    """Positions by best score, or by turns of the columns; equal ones by id."""
    orders = [
        sorted(range(len(ids)), key=lambda at: (-values[at], ids[at]))
        for values in (scores.T if selector == "round_robin" else [scores.max(axis=1)])
    ]
    taken: list[int] = []
    while len(taken) < size:
        for order in orders:
            if len(taken) < size:
                taken.append(next(at for at in order if at not in taken))
    return taken


@pytest.mark.parametrize(
    ("selector", "source_max"), [("top_k", ()), ("round_robin", ()), ("top_k", ("*=40%",))], ids=str
)
def test_every_draw_equals_a_plain_recomputation(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selector: str, source_max: tuple[str, ...]
) -> None:
    """Also where features are broken, where many rows are the same, and where a limit refuses rows."""
    values = {**values, "source_max": source_max}
    table_of = passes._features_table

    def spoilt(rows: np.ndarray, features: np.ndarray) -> Any:
        features = np.array(features, dtype=np.float32)
        same = np.arange(25, len(rows))
        features[same] = features[same % 7]
        for at, value in BROKEN.items():
            features[at] = value
        return table_of(rows, features)

    monkeypatch.setattr(passes, "_features_table", spoilt)
    output = run(values, representation=METHODS, output=tmp_path / "run", selector=selector)
    expected = reference(plan_of(values, output, representation=METHODS, selector=selector), selector)
    assert len(expected) == len(METHODS)
    for name in METHODS:
        found = shown(output, name)
        assert len(found) == BUDGET
        assert found == pytest.approx(expected[label(name)], abs=1e-12), name
    assert len({value for name in METHODS for value in shown(output, name).values()}) > 3


def test_a_draw_is_a_run_with_the_queries_drawn(values: dict[str, Any], tmp_path: Path) -> None:
    """From the files on: whoever writes the drawn queries into target files and runs again gets that selection."""
    names = ("rds", "bm25", "ekfac", "ekfac:divide_by_norm=true", "dsir:smoothing=1", "length")
    n = 4
    plain = {**values, "representation": names}
    output = run(plain, output=tmp_path / "run", stability_draws=n)
    counts = [counts_of(one.queries, n, 0) for one in plan_of(plain, output).targets]
    kept = {name: dict.fromkeys(shown(output, name), 0) for name in names}
    for draw in range(n):
        folder = tmp_path / f"draw-{draw}"
        folder.mkdir()
        for target, of_target in zip(map(Path, values["target"]), counts, strict=True):
            lines = target.read_text(encoding="utf-8").splitlines()
            drawn = [line for line, times in zip(lines, of_target[draw], strict=True) for _ in range(times)]
            (folder / target.name).write_text("\n".join(drawn), encoding="utf-8")
        targets = tuple(str(folder / Path(one).name) for one in values["target"])
        again = run(plain, target=targets, output=folder / "run", stability_draws=0)
        for name in names:
            for one in chosen_by(again, name):
                if one in kept[name]:
                    kept[name][one] += 1
    for name in names:
        assert shown(output, name) == {one: count / n for one, count in kept[name].items()}, name
    moved = {name for name in names if min(kept[name].values()) < n}
    assert moved >= {"rds", "bm25", "ekfac", "dsir:smoothing=1"}


def test_what_is_kept_for_the_draws_moves_nothing_and_is_bounded(values: dict[str, Any], tmp_path: Path) -> None:
    names = ("bm25", "ekfac", "dsir", "length")
    values = {**values, "representation": names}
    plain = run(values, output=tmp_path / "plain", stability_draws=0)
    drawn = run(values, output=tmp_path / "drawn", stability_draws=3)
    before, after = ({one.name for one in (folder / "artifacts").iterdir()} for folder in (plain, drawn))
    added = sorted(name.partition("-")[0] for name in after - before)
    # Of each method a fit for both targets (of EK-FAC at both checkpoints) and what the pass keeps by it.
    assert before < after
    assert added == ["features"] * 10 + ["fit"] * 10 + ["stability"] * 4
    for name in names:
        folders = [one if name == "bm25" else one / "methods" / name for one in (plain, drawn)]
        for file in ("scores.parquet", "selected.jsonl"):
            assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()
    widths = {
        pq.read_schema(path).field("features").type.list_size
        for name in after - before
        for path in (drawn / "artifacts" / name).glob("shard-*.parquet")
    }
    # Seven queries in three groups, four in one: a number a query, or for each of three draws one a group.
    assert widths == {7, 4, 9, 3}
    reporter = RecordingReporter()
    bounded = run(values, reporter, output=tmp_path / "bounded", stability_draws=3, stability_columns=7)
    assert None not in shown(bounded, "bm25").values()
    assert None not in shown(bounded, "ekfac").values()
    assert set(shown(bounded, "dsir").values()) == {None}
    (said,) = [line for line in reporter.said if line.startswith("The stability of DSIR")]
    assert "9 numbers a row" in said
    assert "--stability-columns allows 7" in said
    for stage in ("features", "select"):
        wide = run(values, output=tmp_path / "bounded", stability_draws=3, stability_columns=9, until=stage)
    assert shown(wide, "dsir") == shown(drawn, "dsir")


def test_a_finished_run_makes_no_pass_for_its_stability_alone(values: dict[str, Any], tmp_path: Path) -> None:
    values = {**values, "representation": ("ekfac", "bm25")}
    fresh, output = run(values, output=tmp_path / "fresh"), run(values, output=tmp_path / "run", stability_draws=0)
    reporter = RecordingReporter()
    run(values, reporter, output=output)
    assert "stability" not in pq.read_table(output / "selection.parquet").column_names
    assert len([line for line in reporter.said if "'gistselect features' makes it in a pass" in line]) == 2
    run(values, output=output, until="features")
    run(values, output=output, until="select")
    for name in values["representation"]:
        assert shown(output, name) == shown(fresh, name)


def test_draws_that_no_target_would_have_are_not_judged(values: dict[str, Any], tmp_path: Path) -> None:
    """A query without a word has no say; a draw of such queries alone ranks no row by DSIR, and stops nothing."""
    said = [row("What is 1 and 3?", "The answer is 4."), row("?", "!"), row("...", "!?")]
    target = write_rows(tmp_path / "odd.jsonl", said)
    names = ("bm25", "dsir:noise=false", "length")
    output = run({**values, "representation": names}, target=(str(target),), output=tmp_path / "run")
    for name in names:
        assert all(0 <= one <= 1 for one in shown(output, name).values())
    queries = plan_of({**values, "target": (str(target),)}, tmp_path / "plan").targets[0].queries
    apart = set_apart(queries, "draws", 5, 0)
    assert pickle.loads(pickle.dumps(apart)).groups == apart.groups
    assert_array_equal(apart.column_numbers, np.repeat(queries.column_numbers, 5))


@pytest.mark.parametrize("selector", ["top_k", "round_robin", "vote"])
def test_shards_memory_and_the_order_of_the_pool_do_not_matter(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selector: str
) -> None:
    names = ("gist", "rds", "bm25", "dsir")
    values = {**values, "representation": names, "selector": selector}
    expected = run(values, output=tmp_path / "first")
    lines = Path(values["pool"][0]).read_bytes().split(b"\n")
    shuffled = [lines[at] for at in np.random.default_rng(5).permutation(len(lines))]
    (tmp_path / "other-order.jsonl").write_bytes(b"\n".join(shuffled))
    found = [run(values, output=tmp_path / "order", pool=(str(tmp_path / "other-order.jsonl"),))]
    # So little that no draw fits, and then room for three or a few of them.
    for number, held in enumerate((1, 4 * 50 * 4 * 3)):
        monkeypatch.setattr(stability, "HELD", held)
        found.append(run(values, output=tmp_path / f"held-{number}"))
    monkeypatch.setattr(ingest, "SHARD_ROWS", 11)
    found.append(run(values, output=tmp_path / "shards"))
    for output in found:
        for name in names:
            assert shown(output, name) == shown(expected, name)


def test_without_draws_there_is_no_column_and_nothing_else_changes(values: dict[str, Any], tmp_path: Path) -> None:
    output = run(values, output=tmp_path / "run")
    (output / "comparison.json").write_text("[]", encoding="utf-8")
    before = {path.name for path in (output / "artifacts").iterdir()}
    reporter = RecordingReporter()
    run(values, reporter, output=output, stability_draws=0)
    assert "stability" not in pq.read_table(output / "selection.parquet").column_names
    assert "stability" not in json.loads((output / "manifest.json").read_bytes())["methods"]["gist"]
    assert {path.name for path in (output / "artifacts").iterdir()} == before
    assert (output / "comparison.json").is_file(), "it is about the same rows"
    assert not [line for line in reporter.said if line.startswith("Stability")]
    run(values, output=output, stability_draws=5)
    (added,) = {path.name for path in (output / "artifacts").iterdir()} - before
    assert added.startswith("stability-")
    assert (output / "comparison.json").is_file()
    assert all(5 * one == round(5 * one) for one in shown(output, "gist").values())


def test_what_cannot_be_said_is_null_with_the_reason(values: dict[str, Any], tmp_path: Path) -> None:
    names = ("loss_drop:learning_rate=0.01", "perplexity", "random", "length:order=longest")
    reporter = RecordingReporter()
    output = run(values, reporter, representation=names, output=tmp_path / "run")
    methods = json.loads((output / "manifest.json").read_bytes())["methods"]
    for name in names:
        assert set(shown(output, name).values()) == {None}
        assert methods[label(name)]["stability"]["reason"]
        assert "mean" not in methods[label(name)]["stability"]
    told = [line for line in reporter.said if "is not measured" in line]
    assert len(told) == len(names)
    assert "not measured" in (output / "report.html").read_text(encoding="utf-8")
    one_each = write_rows(tmp_path / "single.jsonl", [row("What is 1 and 3?", "4", group="a")])
    alone = run(values, target=(str(one_each),), output=tmp_path / "alone")
    assert set(shown(alone, "gist").values()) == {None}
    facts = json.loads((alone / "manifest.json").read_bytes())["methods"]["gist"]["stability"]
    assert "single query" in facts["reason"]


def test_summary_manifest_page_and_explanation_say_it(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = RecordingReporter()
    output = run(values, reporter, output=tmp_path / "run", selector="k_center:candidates=0.9")
    of_rows = shown(output, "gist")
    facts = json.loads((output / "manifest.json").read_bytes())["methods"]["gist"]["stability"]
    mean, n_low = float(np.mean(list(of_rows.values()))), sum(one < 0.5 for one in of_rows.values())
    assert (facts["draws"], facts["n_unstable"], facts["selector"]) == (DRAWS, n_low, "top_k")
    assert facts["mean"] == pytest.approx(mean)
    (said,) = [line for line in reporter.said if line.startswith("Stability of GIST")]
    assert f"{mean:.0%}" in said
    assert "by top_k; k_center:candidates=0.9 compares rows with each other" in said
    page = (output / "report.html").read_text(encoding="utf-8")
    assert f"{n_low} of {BUDGET}" in page[page.index("Unstable rows") :]
    capsys.readouterr()
    row_id = min(of_rows, key=lambda one: of_rows[one])
    main(["explain", str(output), "--id", row_id])
    assert f"selected in {of_rows[row_id]:.0%} of the draws" in capsys.readouterr().out


def test_draws_keep_the_groups_and_belong_to_their_names() -> None:
    groups = np.array([0, 1, 0, 0, 1, 2])
    made = [drawn_counts(groups, n, [np.random.default_rng(g) for g in range(3)]) for n in (4000, 7)]
    for group, size in enumerate(np.bincount(groups)):
        assert (made[0][:, groups == group].sum(axis=1) == size).all()
    assert_array_equal(made[0][:7], made[1])
    assert (made[0][:, 5] == 1).all()
    # Multinomial: mean 1 and variance 1 - 1/m of m queries.
    assert_allclose(made[0].mean(axis=0), 1, atol=0.06)
    assert_allclose(made[0].var(axis=0), 1 - 1 / np.bincount(groups)[groups], atol=0.06)

    def queries(target: str, names: str) -> Queries:
        return Queries(target=target, records=(), examples=(), groups=tuple(names))

    both, alone = counts_of(queries("t", "abab"), 5, 0), counts_of(queries("t", "aa"), 5, 0)
    assert_array_equal(both[:, ::2], alone), "another group draws by itself"
    assert (counts_of(queries("u", "aaaa"), 50, 0) != counts_of(queries("t", "aaaa"), 50, 0)).any()
    assert (counts_of(queries("t", "aaaa"), 50, 1) != counts_of(queries("t", "aaaa"), 50, 0)).any()


@pytest.mark.parametrize(("n_query", "width"), [(40, 2), (6, 30)], ids=["few dimensions", "few queries"])
def test_mixtures_equal_their_formulas_whichever_way_is_less_work(n_query: int, width: int) -> None:
    rng = np.random.default_rng(0)
    queries, rows = rng.standard_normal((n_query, width)), rng.standard_normal((9, width))
    groups = np.arange(n_query) % 3
    counts = drawn_counts(groups, 5, [rng] * 3)
    means, cosines = cosine_of_means(queries, groups, counts), mean_of_cosines(queries, groups, counts)
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    ways = {one._through_queries for one in (means, cosines)}
    assert ways == {n_query == 6}
    for group in range(3):
        for draw in range(5):
            drawn = np.repeat(np.arange(n_query), counts[draw] * (groups == group))
            target = queries[drawn].mean(axis=0)
            expected = rows @ target / np.linalg.norm(target)
            assert_allclose(means.scores(means.prepared(rows), group)[:, draw], expected, rtol=1e-12, atol=1e-12)
            found = cosines.of(slice(draw, draw + 1))
            assert_allclose(
                found.scores(found.prepared(rows), group)[:, 0], (rows @ unit[drawn].T).mean(axis=1), atol=1e-12
            )


def test_queries_that_cancel_out_have_no_direction() -> None:
    queries, counts = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([[1, 1], [2, 0]])
    mixture = cosine_of_means(queries, np.zeros(2, dtype=int), counts)
    assert_array_equal(mixture.scores(mixture.prepared(np.array([[3.0, 1.0]])), 0), [[0.0, 3.0]])


@pytest.mark.slow
def test_workers_do_not_matter(values: dict[str, Any], tmp_path: Path) -> None:
    alone = run(values, output=tmp_path / "alone")
    several = run(values, output=tmp_path / "several", engine="local", devices="cpu:2")
    assert shown(several, "gist") == shown(alone, "gist")
