"""What the study's commands are made of: parts of the pool, targets of its own rows, sizes, and the page of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import write_results
from study_setup import pool_lines, pool_part
from study_sizes import SIZES
from study_targets import HELDOUT, OF_POOL, QUERIES, SOURCES, OwnTargets


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A LESS-style folder with the sources of the targets, and questions about passages in two languages."""
    for source in ("other", *(source for name in OF_POOL for source in SOURCES[name])):
        folder = tmp_path / "train" / "processed" / source
        folder.mkdir(parents=True)
        turns = [
            [{"role": "user", "content": f"{source} {i}?"}, {"role": "assistant", "content": str(i)}]
            for i in range(200)
        ]
        rows = [json.dumps({"id": f"{source}-{i}", "messages": one}) for i, one in enumerate(turns)]
        (folder / f"{source}_data.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    passages = [
        {
            "context": f"passage {i // 2}" + " long" * (200 if i == 0 else 0),
            "qas": [{"id": f"{language}-{i}", "question": f"what is {i}?", "answers": [{"text": str(i)}]}],
        }
        for i, language in enumerate(["english"] * 40 + ["russian"] * 40)
    ]
    questions = tmp_path / "eval" / "xqa_proxy" / "xqa-proxy.json"
    questions.parent.mkdir(parents=True)
    questions.write_text(json.dumps({"data": [{"paragraphs": [one]} for one in passages]}), encoding="utf-8")
    return tmp_path


def test_rows_of_a_target_are_in_no_pool(data: Path, tmp_path: Path) -> None:
    own = OwnTargets(data, tmp_path / "targets", seed=0)
    processed = data / "train" / "processed"
    every = {line for _, line in pool_lines(processed)}
    assert len(own.apart) == len(OF_POOL) * (QUERIES + HELDOUT)
    for n_rows in (None, 150):
        part = pool_part(processed, n_rows, 0, tmp_path, own.apart)
        kept = part.read_bytes().splitlines(keepends=True)
        assert len(kept) == (n_rows or len(every) - len(own.apart))
        assert not set(kept) & own.apart
        assert set(kept) <= every
    for name in OF_POOL:
        queries, heldout = lines_of(own.queries(name)), lines_of(own.heldout(name))
        assert (len(queries), len(heldout)) == (QUERIES, HELDOUT)
        assert not {one["id"] for one in queries} & {one["id"] for one in heldout}
    again = OwnTargets(data, tmp_path / "again", seed=0)
    assert again.apart == own.apart
    assert OwnTargets(data, tmp_path / "other", seed=1).apart != own.apart


def test_no_passage_is_asked_about_by_a_query_and_an_item(data: Path, tmp_path: Path) -> None:
    own = OwnTargets(data, tmp_path / "targets", seed=0)
    sides = [lines_of(own.queries("xqa")), lines_of(own.heldout("xqa"))]
    passages = [{one["messages"][0]["content"].split("passage ")[1].split()[0] for one in side} for side in sides]
    assert passages[0]
    assert passages[1]
    assert not passages[0] & passages[1]
    assert len(sides[0]) + len(sides[1]) == 40, "one question a passage; the very long one has a second, short telling"
    assert {one["group"] for one in sides[1]} == {"english", "russian"}
    options = own.options(["gsm8k", "law", "xqa"])
    assert options["target"] == ["gsm8k", str(own.queries("law")), str(own.queries("xqa"))]
    assert options["heldout"] == [str(own.heldout("law")), str(own.heldout("xqa"))]


def test_a_part_of_the_pool_is_seeded_and_in_order(data: Path, tmp_path: Path) -> None:
    processed = data / "train" / "processed"
    every = [line for _, line in pool_lines(processed)]
    part = pool_part(processed, 50, 0, tmp_path / "a").read_bytes().splitlines(keepends=True)
    assert part == pool_part(processed, 50, 0, tmp_path / "b").read_bytes().splitlines(keepends=True)
    assert [every.index(line) for line in part] == sorted(every.index(line) for line in part)
    assert part != pool_part(processed, 50, 1, tmp_path).read_bytes().splitlines(keepends=True)
    assert pool_part(processed, None, 0, tmp_path) == processed


def test_selectors_that_need_points_go_with_methods_that_have_them() -> None:
    for size in SIZES.values():
        asked = {
            (method, selector) for methods, selectors in size.orders for method in methods for selector in selectors
        }
        for method in size.methods:
            for selector in size.options.get("selectors", ()):
                possible = selector in ("top_k", "round_robin") or method.split(":")[0] in ("gist", "less", "rds")
                assert ((method, selector) in asked) == possible


def test_the_pages_show_the_stored_results() -> None:
    for page in write_results.PAGES:
        assert write_results.written(page) == page.read_text(encoding="utf-8"), "run tools/write_results.py"
    for path, chart in write_results.WRITTEN.items():
        assert path.read_text(encoding="utf-8") == chart


def test_a_difference_is_bold_only_if_its_interval_leaves_out_zero() -> None:
    rng = np.random.default_rng(0)
    for mean, half in zip(rng.normal(0, 1, 50), rng.uniform(0, 1, 50), strict=True):
        text = write_results.difference({"mean": mean, "low": mean - half, "high": mean + half})
        assert text.startswith("**") == (abs(mean) > half)
        assert f"{mean:+.3f}" in text
