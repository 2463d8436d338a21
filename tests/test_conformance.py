"""What holds for every representation of the registry, whatever it computes: declared in full, moved by nothing else.

A representation that is added to the registry is tested here without a line; `OPTIONS` only makes runs smaller.
"""

from __future__ import annotations

import importlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from gistselect.cli import main
from gistselect.errors import ConfigError
from gistselect.registry import names, resolve
from gistselect.representations.interface import Representation
from gistselect.representations.specification import label, parse
from gistselect.run import ingest, passes, scoring
from gistselect.run.config import RunConfig
from tiny_runs import WARMUP, adapter_of, run, write_pool, write_target

NAMES = names("representation")
OPTIONS = {
    "less": "less:dimension=64,nonzeros=8",
    "less_adam": "less_adam:dimension=64,nonzeros=8",
    "loss_drop": "loss_drop:learning_rate=0.01",
}
NESTED = {"gist", "less", "less_adam", "embedding"}
"""Those whose keys hold options within others: of a sketch, of Adam, of an encoder."""
BROKEN = {4: np.nan, 9: np.inf}
"""Usable rows of the pool whose features are spoilt."""
Scores = dict[str, dict[str, np.ndarray]]
"""By id, for each representation: the scores of a row in all columns."""


def specification(name: str) -> str:
    return OPTIONS.get(name, name)


class Runs:
    """One run of all representations for each variation of what must not matter, made when it is first asked for."""

    def __init__(self, values: dict[str, Any], folder: Path) -> None:
        self.values, self.folder = values, folder
        self._scores: dict[str, Scores] = {}

    def scores(self, variation: str, **changes: Any) -> Scores:
        if variation not in self._scores:
            output = self.output(variation, tuple(map(specification, NAMES)), **changes)
            self._scores[variation] = {name: self.of(output, name) for name in NAMES}
        return self._scores[variation]

    def output(self, variation: str, representation: tuple[str, ...], **changes: Any) -> Path:
        return run(self.values, representation=representation, output=self.folder / variation, **changes)

    def folder_of(self, output: Path, name: str) -> Path:
        return output if name == NAMES[0] else output / "methods" / label(specification(name))

    def of(self, output: Path, name: str, *, alone: bool = False) -> dict[str, np.ndarray]:
        table = pq.read_table((output if alone else self.folder_of(output, name)) / "scores.parquet")
        columns = [one for one in table.column_names if one == "score" or one.startswith("score/")]
        values = np.stack([table[one].to_numpy() for one in columns], axis=1)
        return dict(zip(table["id"].to_pylist(), values, strict=True))


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A pool of 50 usable rows, three groups of queries, and one adapter for all runs."""
    folder = tmp_path_factory.mktemp("conformance")
    values = {
        "model": str(tiny_model),
        "encoder": str(tiny_encoder),
        "pool": (str(write_pool(folder / "pool.jsonl")),),
        "target": (str(write_target(folder / "sums.jsonl")),),
        "budget": 10,
        "warmup": WARMUP,
        "warmup_share": 0.3,
        "device": "cpu",
    }
    made = run(values, output=folder / "warm-up", until="warmup")
    found = Runs({**values, "adapter": adapter_of(made)}, folder)
    # What others are compared with is made here: a test that asks for it first may have changed the size of shards.
    found.scores("first")
    return found


@pytest.fixture
def defaults(tiny_encoder: Path) -> RunConfig:
    return RunConfig.model_construct(encoder=str(tiny_encoder))


@pytest.fixture
def one(name: str, defaults: RunConfig) -> Representation:
    return parse(specification(name), defaults)


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    ids = sorted(found)
    a, b = (np.stack([one[key] for key in ids]) for one in (found, expected))
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


pytestmark = pytest.mark.parametrize("name", NAMES)


def test_it_says_what_it_is(name: str, one: Representation) -> None:
    kind: type[Representation] = resolve("representation", name)
    assert isinstance(one, kind)
    assert kind.name == name
    for text in (kind.title, kind.definition, kind.unscored, kind.__doc__):
        assert text
        assert text.strip() == text
    assert kind.reads in ("text", "hidden", "gradient")
    document = " ".join((importlib.import_module(kind.__module__).__doc__ or "").split())
    for part in ("Cost of a row:", "stored"):
        assert part in document, f"the module of {name} does not say {part!r}"
    undescribed = [field for field, info in kind.model_fields.items() if not info.description]
    assert not undescribed


def test_the_command_line_says_all_of_it(name: str, one: Representation, capsys: pytest.CaptureFixture[str]) -> None:
    main(["methods", name])
    said = " ".join(capsys.readouterr().out.split())
    for text in (one.title, one.definition, one.unscored, "Cost of a row:", *type(one).model_fields):
        assert text in said
    how = "measured, f" if one.can_be_resampled else f"not measured: {one.not_resampled}"
    assert f"Stability of a selection: {how}" in said
    main(["methods"])
    assert name in capsys.readouterr().out


def test_it_is_frozen_can_be_sent_and_has_keys(name: str, one: Representation, defaults: RunConfig) -> None:
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(one) == hash(parse(specification(name), defaults))
    for field, value in one:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(one, field, value)
    json.dumps([one.prepare_inputs, one.fit_inputs, one.pool_inputs, one.score_inputs])
    covered = {*(one.prepare_inputs or {}), *one.fit_inputs, *one.pool_inputs, *one.score_inputs}
    if name not in NESTED:
        assert covered >= set(type(one).model_fields), "an option that no key holds"
    assert one.width(7) is None or one.width(7) > 0
    assert len(one.sample(10)) <= 10


def test_a_wrong_option_is_refused_by_name(name: str, one: Representation, defaults: RunConfig) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*no option 'no_such_option'"):
        parse(f"{name}:no_such_option=1", defaults)
    checked = [field for field, info in type(one).model_fields.items() if info.annotation not in (str, str | None)]
    for field in checked:
        with pytest.raises(ConfigError, match=field):
            parse(f"{name}:{field}=no-such+value", defaults)


def test_a_score_says_what_it_is_worth(name: str, one: Representation, runs: Runs) -> None:
    """Its sign and unit in words; of gradients also what chance reaches, and what part of them is looked at."""
    assert "higher" in one.definition
    assert any(word in one.definition for word in ("-1 to 1", "nats", "no unit", "share"))
    scores = runs.scores("first")[name]
    folder = runs.folder_of(runs.folder / "first", name)
    table = pq.read_table(folder / "scores.parquet")
    manifest = json.loads((runs.folder / "first" / "manifest.json").read_bytes())
    (stored,) = [one["scores"] for one in manifest["results"]["methods"] if one["label"] == label(specification(name))]
    facts = json.loads((runs.folder / "first" / "artifacts" / stored / "complete.json").read_bytes())["facts"]
    (null,) = facts["null_score_quantiles"].values()
    if one.reads == "gradient":
        energy = table["captured_energy"].to_numpy()
        assert ((energy > 0) & (energy <= 1)).all()
        assert null["0.5"] < null["0.95"] < null["0.99"]
    else:
        assert "captured_energy" not in table.column_names
        assert null is None
    assert len(scores) == table.num_rows


def test_a_second_run_gives_the_same_bytes(name: str, runs: Runs) -> None:
    assert_same(runs.scores("again")[name], runs.scores("first")[name], 0)
    first, again = (runs.folder_of(runs.folder / one, name) for one in ("first", "again"))
    for file in ("scores.parquet", "selected.jsonl", "quarantine.jsonl"):
        assert (first / file).read_bytes() == (again / file).read_bytes()


def test_beside_all_others_it_gives_what_it_gives_alone(name: str, runs: Runs) -> None:
    output = runs.output(f"alone-{name}", (specification(name),))
    assert_same(runs.of(output, name, alone=True), runs.scores("first")[name], 0)


def test_the_order_of_the_pool_does_not_matter(name: str, runs: Runs) -> None:
    lines = Path(runs.values["pool"][0]).read_bytes().split(b"\n")
    shuffled = [lines[at] for at in np.random.default_rng(5).permutation(len(lines))]
    (runs.folder / "other-order.jsonl").write_bytes(b"\n".join(shuffled))
    found = runs.scores("other-order", pool=(str(runs.folder / "other-order.jsonl"),))[name]
    assert_same(found, runs.scores("first")[name], 1e-3)


def test_the_size_of_shards_does_not_matter(name: str, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "SHARD_ROWS", 11)
    assert_same(runs.scores("small-shards")[name], runs.scores("first")[name], 1e-3)


def test_the_threads_that_score_do_not_matter(name: str, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "SHARD_ROWS", 11)
    runs.scores("small-shards")
    for threads in (1, 3):
        if not (again := runs.folder / f"threads-{threads}").exists():
            shutil.copytree(runs.folder / "small-shards", again)
            for scores in again.glob("artifacts/scores-*"):
                shutil.rmtree(scores)
        with monkeypatch.context() as patch:
            patch.setattr(scoring, "n_threads", lambda threads=threads: threads)
            runs.scores(again.name)
    one, three = (runs.folder_of(runs.folder / f"threads-{threads}", name) for threads in (1, 3))
    for file in ("scores.parquet", "quarantine.jsonl"):
        assert (one / file).read_bytes() == (three / file).read_bytes()


def test_the_tokens_of_a_batch_do_not_matter(name: str, runs: Runs) -> None:
    found = runs.scores("small-batches", engine={"batch_tokens": 90})[name]
    assert_same(found, runs.scores("first")[name], 1e-3)


def test_a_broken_row_never_ranks_and_moves_no_other(name: str, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = runs.scores("first")[name]
    table_of: Callable[..., pa.Table] = passes._features_table

    def spoilt(rows: np.ndarray, values: np.ndarray) -> pa.Table:
        values = np.array(values, dtype=np.float32)
        for row, value in BROKEN.items():
            values[row] = value
        return table_of(rows, values)

    monkeypatch.setattr(passes, "_features_table", spoilt)
    found = runs.scores("broken")[name]
    lost = whole.keys() - found.keys()
    assert len(lost) == len(BROKEN)
    assert_same(found, {key: value for key, value in whole.items() if key not in lost}, 0)
    folder = runs.folder_of(runs.folder / "broken", name)
    reasons = {entry["id"]: entry["reason"] for entry in map(json.loads, (folder / "quarantine.jsonl").open("rb"))}
    assert {reasons[key] for key in lost} == {resolve("representation", name).unscored}
    ranked = [json.loads(line)["id"] for line in (folder / "selected.jsonl").read_bytes().split(b"\n") if line]
    assert len(ranked) == 10
    assert not lost & set(ranked)
