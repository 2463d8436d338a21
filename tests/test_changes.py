"""A changed input recomputes what depends on it and no more: which stages run again, for each kind of change."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gistselect.run import identity
from tiny_runs import adapter_of, contents, row, run, write_pool, write_rows, write_target

TEXT, ROWS = {"records"}, {"records", "tokens"}
GRADIENTS = {"fit gist", "features gist", "measured", "scores gist", "selection gist", "overlap", "stability"}
SELECTIONS = {"selection gist", "selection bm25", "overlap", "stability"}
BM25 = {"fit bm25", "features bm25", "scores bm25", "selection bm25"}
TRAINED = {"arm", "train", "losses"}
EVERYTHING = ROWS | GRADIENTS | BM25 | TRAINED


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A folder with all inputs and a finished run of two methods, at an adapter of its own, with its evaluation."""
    folder = tmp_path_factory.mktemp("changes") / "all"
    folder.mkdir()
    shutil.copytree(tiny_model, folder / "model")
    write_pool(folder / "pool.jsonl")
    write_target(folder / "sums.jsonl")
    write_rows(folder / "heldout.jsonl", [row("What is 8 and 3?", "The answer is 11.", group="a")])
    (folder / "own.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    small = {"epochs": 1, "learning_rate": 1e-2, "global_batch_size": 4, "adapter": {"rank": 2, "alpha": 8}}
    values = {
        "representation": ("gist", "bm25"),
        "budget": 10,
        "warmup": {**small, "epochs": 2},
        "warmup_share": 0.3,
        "device": "cpu",
        "template": str(folder / "own.jinja"),
        "evaluate": True,
        "train_seeds": (0,),
        "finetune": small,
    }
    adapter = adapter_of(run({**values, **inputs(folder)}, output=folder / "first", until="warmup", evaluate=False))
    shutil.copytree(adapter, folder / "adapter")
    shutil.rmtree(folder / "first")
    run({**values, **inputs(folder)}, output=folder / "run", adapter=folder / "adapter")
    return values, folder


def inputs(folder: Path) -> dict[str, Any]:
    """Options that name files."""
    return {
        "model": str(folder / "model"),
        "pool": (str(folder / "pool.jsonl"),),
        "target": (str(folder / "sums.jsonl"),),
        "heldout": (str(folder / "heldout.jsonl"),),
        "template": str(folder / "own.jinja"),
    }


def artifacts(folder: Path) -> dict[str, str]:
    """What each artifact of a run is: its stage, with the method where there are several."""
    found = {}
    for path in (folder / "artifacts").glob("*/complete.json"):
        described = json.loads((path.parent / "inputs.json").read_text())
        stage = described["stage"]
        method = described.get("representation")
        if stage in ("features", "selection"):
            # Those of a target are keyed by their fit, selections by their scores.
            key = described.get("fit") or described.get("scores")
            method = method or next(
                json.loads(other.read_text())["representation"]
                for other in (folder / "artifacts").glob("*/inputs.json")
                if key and other.parent.name.endswith(key[:16])
            )
        found[path.parent.name] = f"{stage} {method}" if method else stage
    return found


def edit_row(folder: Path) -> None:
    lines = (folder / "pool.jsonl").read_bytes().split(b"\n")
    lines[3] = lines[3].replace(b"What is", b"How much is")
    (folder / "pool.jsonl").write_bytes(b"\n".join(lines))


def reorder(folder: Path) -> None:
    lines = (folder / "pool.jsonl").read_bytes().split(b"\n")
    (folder / "pool.jsonl").write_bytes(b"\n".join([*lines[1:], lines[0]]))


def rewrite(folder: Path) -> None:
    """The same bytes, newer."""
    for name in ("pool.jsonl", "sums.jsonl", "model/model.safetensors"):
        (folder / name).write_bytes((folder / name).read_bytes())


def weights_of(path: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / path)
        name = min(tensors)
        tensors[name] = tensors[name] * 1.01
        save_file(tensors, folder / path, metadata={"format": "pt"})

    return change


def another_template(folder: Path) -> None:
    template = folder / "own.jinja"
    template.write_text(template.read_text().replace("[{{ m.role }}]", "<{{ m.role }}>"))


def another_query(folder: Path) -> None:
    with (folder / "sums.jsonl").open("a") as file:
        file.write(json.dumps(row("And 9 and 3?", "The answer is 12.", group="a")) + "\n")


def another_item(folder: Path) -> None:
    write_rows(folder / "heldout.jsonl", [row("What is 7 and 3?", "The answer is 10.", group="a")])


def nothing(folder: Path) -> None:
    """Leave all files as they are."""


CHANGES: dict[str, tuple[Callable[[Path], None], dict[str, Any], dict[str, str], set[str]]] = {
    "nothing": (nothing, {}, {}, set()),
    "files written anew with the same bytes": (rewrite, {}, {}, set()),
    "a row edited": (edit_row, {}, {}, EVERYTHING - {"fit gist"}),
    "the file reordered": (reorder, {}, {}, EVERYTHING - {"fit gist"}),
    "another model under the same name": (
        weights_of("model/model.safetensors"),
        {},
        {},
        EVERYTHING - ROWS - BM25,
    ),
    "another adapter under the same name": (
        weights_of("adapter/adapter_model.safetensors"),
        {},
        {},
        GRADIENTS | {"arm"},
    ),
    # Of BM25 as well, which takes seconds: queries are known by their tokens where there is a tokenizer.
    "another template under the same name": (another_template, {}, {}, EVERYTHING - TEXT),
    "a query added": (another_query, {}, {}, (GRADIENTS | BM25 | TRAINED) - {"measured"}),
    "a held-out item edited": (another_item, {}, {}, {"losses", "overlap"}),
    "another budget": (nothing, {"budget": 11}, {}, SELECTIONS | TRAINED),
    "another seed of the fine-tuning": (nothing, {"train_seeds": (1,)}, {}, TRAINED),
    "a release of torch": (nothing, {}, {"torch": "2.13.9"}, set()),
    "a series of torch": (nothing, {}, {"torch": "2.99.0"}, GRADIENTS | TRAINED),
    "a series of transformers": (nothing, {}, {"transformers": "6.0.0"}, GRADIENTS | TRAINED),
    "a series of peft": (nothing, {}, {"peft": "1.0.0"}, GRADIENTS | TRAINED),
    "a series of what no key depends on": (nothing, {}, {"pyarrow": "99.0.0", "bitsandbytes": "9.9.9"}, set()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_change_makes_anew(
    made: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    values, original = made
    change, options, packages, expected = CHANGES[name]
    # Under its own name: the folder of a pool file names the source of its rows.
    folder = shutil.copytree(original, tmp_path / original.name)
    before = artifacts(folder / "run")
    change(folder)
    known = importlib.metadata.version
    monkeypatch.setattr(identity, "version", lambda package: packages.get(package) or known(package))
    changed = {**values, **inputs(folder), **options, "adapter": folder / "adapter", "output": folder / "run"}
    run(changed)
    after = artifacts(folder / "run")
    assert {after[made] for made in after.keys() - before.keys()} == expected
    assert before.keys() <= after.keys()
    if packages or options:
        return
    # Nothing that was kept says where the files were when they were read first.
    assert contents(run(changed, output=folder / "alone")) == contents(folder / "run")
