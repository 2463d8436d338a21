"""Commands in the documentation: each block says by its mark how it is tested, and all must exist with such options.

` ```sh run `: here. ` ```sh long `: among the slow tests, on a small pool. ` ```sh install `: by CI's own make targets.
` ```sh gpu `, ` ```sh hub `: need a GPU or a cluster, the hub or the published data sets, and are parsed.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cyclopts
import pyarrow.parquet as pq
import pytest

from gistselect.cli import app, main
from gistselect.files import read_json_lines, write_json_lines

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLE = ROOT / "docs" / "adding-a-representation.md"
MODEL = ROOT / "src" / "gistselect" / "demo" / "model"


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(what stands behind the fence, text) of every fenced block of a page."""
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        yield match["info"].strip(), match["body"]


def commands(text: str) -> Iterator[list[str]]:
    """Arguments of every gistselect command in a block; `a|b` stands for each."""
    for line in text.replace("\\\n", " ").splitlines():
        # Some lines of an overview hold two commands side by side.
        for part in re.split(r"(?<!^)(?=gistselect )", line.strip()):
            if part.startswith("gistselect ") and not part.startswith("gistselect: "):
                command, *rest = shlex.split(part, comments=True)[1:]
                for name in command.split("|"):
                    yield [name, *rest]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_exists(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "config", ())  # what the last command of another test was given by its file
    for info, body in blocks(page):
        if info.startswith(("python", "jsonl", "toml")):
            continue
        for arguments in commands(body):
            if arguments[0].startswith("--"):
                continue
            assert arguments[0] in list(app), arguments
            try:
                app.parse_args(arguments, exit_on_error=False, print_error=False)
            except cyclopts.MissingArgumentError:
                # A stage command finds what is missing in run.yaml.
                assert "--output" in arguments


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "options.md"], ids=lambda page: page.name)
def test_every_block_of_commands_says_how_it_is_tested(page: Path) -> None:
    marks = {f"sh {kind}" for kind in ("run", "long", "install", "gpu", "hub")}
    for info, body in blocks(page):
        if info != "python" and list(commands(body)):
            assert info in marks, body


def test_the_pages_have_commands() -> None:
    found = {page.name: sum(1 for _, body in blocks(page) for _ in commands(body)) for page in PAGES}
    assert found["README.md"] >= 10
    assert found["quickstart.md"] >= 6


def carry_out(page: Path, folder: Path) -> list[str]:
    """Write the files that a page shows (` ```jsonl NAME `, ` ```python NAME `, …) and run what it says is run."""
    ran = []
    for info, body in blocks(page):
        kind, _, name = info.partition(" ")
        if kind == "sh" and name == "run":
            for arguments in commands(body):
                main(arguments)
                ran.append(" ".join(arguments))
        elif kind != "sh" and name:
            (folder / name).write_text(body, encoding="utf-8")
    return ran


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the model, pool and target of the quickstart."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(MODEL)
    for info, body in blocks(ROOT / "docs" / "quickstart.md"):
        if info.startswith("jsonl "):
            (tmp_path / info.removeprefix("jsonl ")).write_text(body, encoding="utf-8")
    return tmp_path


def test_the_quickstart_runs(folder: Path) -> None:
    carry_out(ROOT / "docs" / "quickstart.md", folder)
    pool = (folder / "pool.jsonl").read_bytes().splitlines()
    cheap = (folder / "runs" / "cheap" / "selected.jsonl").read_bytes().splitlines()
    assert len(cheap) == 2
    assert all(b"What is" in row and row in pool for row in cheap)
    assert len((folder / "runs" / "mine" / "selected.jsonl").read_bytes().splitlines()) == 3
    assert all((folder / "handover" / tool).is_dir() for tool in ("trl", "axolotl", "llamafactory"))


@pytest.mark.slow
def test_the_overview_of_the_readme_runs(folder: Path) -> None:
    """Every command but the benchmark, whose default takes minutes, and tasks whose data are not embedded."""
    pool = [exchange(f"What is {n} plus {n % 7}?", f"{n} plus {n % 7} is {n + n % 7}.") for n in range(130)]
    heldout = [exchange(f"What is {n} minus 3?", f"{n} minus 3 is {n - 3}.") for n in range(50, 60)]
    for name, rows in (("many", pool), ("heldout", heldout), ("rows", pool[:12])):
        write_json_lines(folder / f"{name}.jsonl", rows)
    (folder / "M").symlink_to(MODEL)
    (folder / "data").symlink_to(MODEL.parent / "data")
    small = "--warmup.global-batch-size 4 --warmup.adapter.rank 4 --finetune.adapter.rank 4 --finetune.epochs 1 "
    small += "--warmup-share 0.2 --budget 10 --train-seeds 0 1 --heldout heldout.jsonl"
    made = f"run --model ./model --pool many.jsonl --target mine.jsonl --output runs/math --evaluate {small}"
    main(made.split())
    ran = 0
    for info, body in blocks(ROOT / "README.md"):
        if info == "sh long":
            for arguments in commands(body):
                if arguments[0] == "bench":
                    continue
                if arguments[0] == "evaluate" and "--tasks" in arguments:
                    arguments = [one for one in arguments if one not in ("mmlu", "bbh")]
                    adapter = min(folder.glob("adapters/a/seed-0/checkpoint-*"))
                    arguments[arguments.index("--adapter") + 1] = str(adapter)
                    arguments += ["--limit", "2"]
                main(arguments)
                ran += 1
    assert ran >= 15
    assert (folder / "studies" / "a" / "study.md").is_file()
    assert (folder / "trust" / "a" / "validation.md").is_file()
    assert (folder / "adapters" / "a" / "seed-0" / "merged").is_dir()


def exchange(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


RUN = [page for page in PAGES if any(info == "sh run" for info, _ in blocks(page))]


@pytest.mark.parametrize(
    "page", [page for page in RUN if page.stem not in ("quickstart", EXAMPLE.stem)], ids=lambda page: page.name
)
def test_what_a_page_says_is_run_runs(page: Path, folder: Path) -> None:
    assert carry_out(page, folder)
    for made in folder.glob("runs/*"):
        assert (made / "selected.jsonl").stat().st_size


def test_the_example_of_a_representation_is_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by its entry point, with options and keys of its own; scores against its definition, row by row."""
    metadata = folder / "shared_words-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shared-words\nVersion: 1.0\n")
    (declared,) = (body for info, body in blocks(EXAMPLE) if info.startswith("toml"))
    for group, points in tomllib.loads(declared)["project"]["entry-points"].items():
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (metadata / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    assert carry_out(EXAMPLE, folder)
    asked = {word for query in read_json_lines(folder / "mine.jsonl") for word in said(query)}
    table = pq.read_table(folder / "runs" / "shared" / "scores.parquet").to_pylist()
    pool = read_json_lines(folder / "pool.jsonl")
    assert [one["row"] for one in table] == list(range(len(pool)))
    for one in table:
        own = said(pool[one["row"]])
        assert one["score"] == pytest.approx(len(own & asked) / len(own))
    assert (folder / "runs" / "shared" / "methods" / "bm25" / "selected.jsonl").is_file()
    main(["run", "--output", "runs/other", "--pool", "pool.jsonl", "--target", "mine.jsonl", "--budget", "2",
          "--representation", "shared_words:shortest=40", "--until", "score"])  # fmt: skip
    assert len(read_json_lines(folder / "runs" / "other" / "quarantine.jsonl")) == len(pool)


def said(row: dict[str, Any]) -> set[str]:
    """The different words of a row with two letters at least."""
    text = " ".join(turn["content"] for turn in row["messages"]).lower()
    return {word for word in re.findall(r"[a-z0-9]+", text) if len(word) >= 2}


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md")], ids=lambda page: page.name)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_notebook_runs_and_holds_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells in order in one namespace; what a cell ends with is shown, as a notebook does."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "docs" / "api.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            shown.append(display("".join(cell["source"]), names))
    selection, more = names["selection"], names["more"]
    assert (len(selection), len(more)) == (10, 20)
    told = "\n".join(shown)
    assert "<table>" in told
    assert "sums" in told
    assert "rank 1 of 80" in told
    assert "rejected" in told
    assert "features: ['messages', 'dataset']" in told
    # With a live model of random weights any ten rows may win; with the warm-up the target's kind does.
    assert sum(source == "sums" for source in selection.sources) >= 8


def display(source: str, names: dict[str, Any]) -> str:
    """Run a cell; its last expression as a notebook would show it, or nothing."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last is None:
        return ""
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return value._repr_html_() if hasattr(value, "_repr_html_") else repr(value)
