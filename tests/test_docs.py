"""Commands in the documentation: those marked `run` are run, all others must exist with such options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import cyclopts
import pytest

from gistselect.cli import app, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
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
def test_every_command_of_a_page_exists(page: Path) -> None:
    for info, body in blocks(page):
        if info == "python" or info.startswith("jsonl"):
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


def test_the_pages_have_commands() -> None:
    found = {page.name: sum(1 for _, body in blocks(page) for _ in commands(body)) for page in PAGES}
    assert found["README.md"] >= 10
    assert found["quickstart.md"] >= 6


def test_the_quickstart_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(MODEL)
    for info, body in blocks(ROOT / "docs" / "quickstart.md"):
        kind, _, name = info.partition(" ")
        if kind == "jsonl":
            (tmp_path / name).write_text(body, encoding="utf-8")
        elif name == "run":
            for arguments in commands(body):
                main(arguments)
    pool = (tmp_path / "pool.jsonl").read_bytes().splitlines()
    cheap = (tmp_path / "runs" / "cheap" / "selected.jsonl").read_bytes().splitlines()
    assert len(cheap) == 2
    assert all(b"What is" in row and row in pool for row in cheap)
    assert len((tmp_path / "runs" / "mine" / "selected.jsonl").read_bytes().splitlines()) == 3
    assert all((tmp_path / "handover" / tool).is_dir() for tool in ("trl", "axolotl", "llamafactory"))
