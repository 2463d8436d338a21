"""Every representation of the registry with every selector: it runs, or is refused in a sentence before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gistselect.errors import ConfigError
from gistselect.registry import names
from gistselect.representations.specification import label
from gistselect.run.cells import load_fit
from gistselect.run.config import RunConfig
from gistselect.run.passes import read_features
from gistselect.run.plan import Plan, make_plan
from gistselect.selection.options import SelectionOptions
from gistselect.specification import parse
from tiny_runs import WARMUP, ids, run, write_pool, write_target

SHORT = {
    "less": "less:dimension=64,nonzeros=8",
    "less_adam": "less_adam:dimension=64,nonzeros=8",
    "loss_drop": "loss_drop:learning_rate=0.01",
}
REPRESENTATIONS = {name: SHORT.get(name, name) for name in names("representation")}


@pytest.fixture(scope="module")
def made(tiny_model: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a run of all representations that has got as far as its scores."""
    folder = tmp_path_factory.mktemp("pairs")
    config = {
        "model": str(tiny_model),
        "encoder": str(tiny_encoder),
        "pool": (str(write_pool(folder / "pool.jsonl")),),
        "target": (str(write_target(folder / "sums.jsonl")),),
        "representation": tuple(REPRESENTATIONS.values()),
        "budget": 6,
        "output": folder / "run",
        "warmup": WARMUP,
        "warmup_share": 0.3,
        "device": "cpu",
        "stability_draws": 0,
    }
    run(config, until="score")
    return config


def planned(config: dict[str, Any], **changes: Any) -> Plan:
    return make_plan(RunConfig.from_values({**config, **changes}), "select", None)


@pytest.mark.parametrize("selector", names("selector"))
def test_it_runs_or_is_refused_before_any_work(made: dict[str, Any], selector: str, tmp_path: Path) -> None:
    needs_points = parse("selector", selector, SelectionOptions()).needs_points
    methods = {method.representation.name: method.representation for method in planned(made).methods}
    fitting = [name for name, one in methods.items() if one.has_points or not needs_points]
    for name in methods.keys() - set(fitting):
        with pytest.raises(ConfigError, match=f"{selector} compares rows.*{methods[name].title} keeps only scores"):
            planned(made, representation=(REPRESENTATIONS[name],), selector=selector, output=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    output = run(made, representation=tuple(REPRESENTATIONS[name] for name in fitting), selector=selector)
    for index, name in enumerate(fitting):
        folder = output / "methods" / label(REPRESENTATIONS[name]) if index else output
        selected = ids(folder / "selected.jsonl")
        assert len(selected) == len(set(selected)) == 6
    manifest = json.loads((output / "manifest.json").read_bytes())
    assert list(manifest["methods"]) == [label(REPRESENTATIONS[name]) for name in fitting]


def test_rows_that_are_points_are_said_to_be(made: dict[str, Any]) -> None:
    """Whatever keeps of rows and of queries numbers of one kind can be asked by every selector."""
    for method in planned(made).methods:
        ((fit, cell),) = method.columns[0].entries
        one, fitted, rows = method.representation, load_fit(fit.artifact), method.score.rows.split(0, ["row"])[0]
        kept = read_features(cell, 0, rows["row"].to_numpy())
        assert one.has_points == (one.nearness(kept, fitted) is not None), one.name
