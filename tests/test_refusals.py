"""Names that no file system takes, JSON and YAML that no parser takes: a sentence each, wherever they are read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gistselect.api import load_selection
from gistselect.errors import GistSelectError, ModelError
from gistselect.files import read_json, read_json_lines
from gistselect.model.adapter_files import adapter_settings
from gistselect.model.config import ModelConfig
from gistselect.model.loading import load_tokenizer
from gistselect.run.remember import read_yaml
from gistselect.run.reporting import write_report
from gistselect.tasks import load_task
from tiny_runs import run

DEEP = b"[" * 200_000
"""Brackets that no parser follows to their end."""
LONG = "x" * 5000


@pytest.fixture
def cheap(config: dict[str, Any]) -> dict[str, Any]:
    """A run without a model."""
    return {**config, "representation": ("bm25",)}


def contents_of(folder: Path) -> set[str]:
    """Names of all artifacts of a run."""
    return {path.name for path in (folder / "artifacts").iterdir()}


def a_report(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(DEEP)
    write_report([folder])


def an_input(folder: Path) -> None:
    next(folder.glob("artifacts/scores-*/inputs.json")).write_bytes(DEEP)
    write_report([folder])


def a_selection(folder: Path) -> None:
    (folder / "selected.jsonl").write_bytes(DEEP)
    load_selection(folder)


@pytest.mark.parametrize("spoil", [a_report, an_input, a_selection])
def test_json_of_a_run_that_nests_too_deeply(cheap: dict[str, Any], spoil: Callable[[Path], None]) -> None:
    with pytest.raises(GistSelectError, match=r"damaged|no whole"):
        spoil(run(cheap))


@pytest.mark.parametrize("content", [DEEP, b"[1, 2]", b"{", b"\xff"], ids=["deep", "no object", "cut off", "no text"])
@pytest.mark.parametrize("name", ["bbh", "gsm8k", "adapter", "model", "an adapter as a model"])
def test_json_of_others(tmp_path: Path, tiny_model: Path, name: str, content: bytes) -> None:
    def of_a_task(task: str, file: str) -> None:
        path = tmp_path / "eval" / file
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        load_task(task, tmp_path).queries()

    def of_a_model(file: str) -> None:
        folder = shutil.copytree(tiny_model, tmp_path / "model")
        if file == "adapter_config.json":
            (folder / "config.json").unlink()
        (folder / file).write_bytes(content)
        load_tokenizer(ModelConfig(path=str(folder)))

    def of_an_adapter() -> None:
        (tmp_path / "adapter_config.json").write_bytes(content)
        adapter_settings(tmp_path)

    reads = {
        "bbh": lambda: of_a_task("bbh", "bbh/bbh-three-shot.json"),
        "gsm8k": lambda: of_a_task("gsm8k", "gsm8k/target.jsonl"),
        "adapter": of_an_adapter,
        "model": lambda: of_a_model("config.json"),
        "an adapter as a model": lambda: of_a_model("adapter_config.json"),
    }
    with pytest.raises(GistSelectError, match=r"\.json"):
        reads[name]()


@pytest.mark.parametrize("read", [read_json, read_json_lines])
def test_files_of_our_own(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    (tmp_path / "a.json").write_bytes(DEEP)
    with pytest.raises(GistSelectError, match=r"a\.json"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize(
    "text",
    ["budget: " + "9" * 5000, "seed: 2020-99-99", "[" * 20_000, "? [a]\n: b", "a: !!python/name:os.system"],
    ids=["a long number", "no date", "deep", "a key that is a list", "an object"],
)
def test_yaml_that_python_cannot_hold(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(GistSelectError, match=r"run\.yaml"):
        read_yaml(tmp_path / "run.yaml")


@pytest.mark.parametrize("option", ["pool", "target", "data_dir", "heldout"])
@pytest.mark.parametrize("name", [LONG, "a\0b", "\udcff"], ids=["long", "zero byte", "no UTF-8"])
def test_an_input_that_cannot_be_there(cheap: dict[str, Any], option: str, name: str) -> None:
    given: dict[str, Any] = {"data_dir": name, "target": ("gsm8k",)} if option == "data_dir" else {option: (name,)}
    with pytest.raises(GistSelectError):
        run(cheap, evaluate=option == "heldout", **given)


@pytest.mark.parametrize("name", [LONG, "a\0b", "\ud800", "~", "~/runs"])
def test_an_output_that_cannot_be_made(
    cheap: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(GistSelectError, match="--output"):
        run(cheap, output=Path(name))
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", ["runs:a", "s3:math", "a\nb", "[1]", "{x}", "\x1b[31m"])
def test_an_output_of_any_other_name(
    cheap: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Relative, as it is typed."""
    alone = run(cheap)
    monkeypatch.chdir(tmp_path)
    again = run(cheap, output=Path(name))
    for one in ("scores.parquet", "selection.parquet", "selected.jsonl", "quarantine.jsonl"):
        assert (again / one).read_bytes() == (alone / one).read_bytes()
    assert contents_of(tmp_path / name) == contents_of(alone)


def test_what_cannot_be_found_or_done_is_called_by_its_name(cheap: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    asked = {**cheap, "model": None, "device": "auto"}
    for changes, said in [
        ({"target": (str(tmp_path / "no" / "such"),)}, "there is no file .*/no/such"),
        ({"target": (str(tmp_path / "empty.jsonl"),)}, "there is no data row in .*empty.jsonl; give"),
        ({"representation": ("bm25", "gist", "rds")}, "gist, rds cannot do without a language model"),
        ({"evaluate": True}, "what follows the selection trains a language model; give --model"),
        ({"representation": ("bm25", "length"), "selector": "knn"}, "BM25 and Length keep only scores; leave them out"),
    ]:
        with pytest.raises(GistSelectError, match=said):
            run({**asked, **changes})


def test_without_a_hub_a_missing_folder_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"no such folder.*HF_HUB_OFFLINE is set; give a folder, or unset it") as found:
        load_tokenizer(ModelConfig(path="no-such-model"))
    assert "\n" not in str(found.value)
