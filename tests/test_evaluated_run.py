"""A run that evaluates its arms on a file of one's own, with everything in it that has lost or changed a number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gistselect.cli import main

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def write(path: Path, questions: list[str], **more: str) -> str:
    rows = (
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"It is {n}\u2028."}]}
        for n, question in enumerate(questions)
    )
    path.write_text("".join(json.dumps(row | more, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def arguments(tiny_model: Path, tmp_path: Path) -> list[str]:
    """`run` up to its evaluation, in a template of its own."""
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    pool = write(tmp_path / "pool.jsonl", [f"What is {n}?" for n in range(16)])
    target = write(tmp_path / "mine.jsonl", ["What is 40?", "What is 41?"])
    return [
        *("run", "--model", str(tiny_model), "--device", "cpu", "--pool", pool, "--target", target),
        *("--output", str(tmp_path / "out"), "--budget", "4", "--seed", "3", "--train-seeds", "0"),
        *("--template", str(tmp_path / "own.jinja"), "--warmup-share", "0.5", "--warmup.adapter.rank", "2"),
        *("--warmup.global-batch-size", "4", "--warmup.learning-rate", "1e-2", "--max-length", "512"),
        *("--finetune.adapter.rank", "2", "--evaluate", "--heldout", str(tmp_path / "heldout.jsonl")),
    ]


def test_arms_are_measured_as_the_run_reads_text_and_averaged_by_one_rule(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    write(tmp_path / "heldout.jsonl", ["What is 52?", "What is 57?", "long " * 600])
    few = write(tmp_path / "few.jsonl", ["Which one is it?"], group="few\u2028")
    many = write(tmp_path / "many.jsonl", [f"What is {n}?" for n in range(60, 64)] + ["long " * 1100], group="many")
    asked = tmp_path / "asked.jsonl"
    asked.write_bytes(Path(few).read_bytes() + Path(many).read_bytes())
    main([*arguments, "--evaluate-tasks", str(asked)])
    said = capsys.readouterr()
    assert "1 held-out items of mine are left out of every arm" in said.out + said.err
    found = [json.loads(path.read_text()) for path in (tmp_path / "out" / "artifacts").rglob("results.json")]
    assert [one["adapter"] is None for one in found].count(True) == 1, "every trained model says its adapter"
    assert len(found) == 3
    compared = json.loads((tmp_path / "out" / "comparison.json").read_text())
    (rows,) = [one["rows"] for one in compared if one["task"] == "asked"]
    tasks = [one["tasks"][0] for one in found]
    means = [task["metrics"]["loss"]["mean"] for task in tasks]
    assert sorted(one["interval"]["mean"] for one in rows) == pytest.approx(sorted(means), rel=1e-12)
    for one, task, mean in zip(found, tasks, means, strict=True):
        assert (one["config"]["template"], one["config"]["seed"]) == (str(tmp_path / "own.jinja"), 3)
        assert (task["n_items"], len(task["without_loss"])) == (6, 1)
        few_mean, many_mean = (task["groups"]["loss"][group] for group in ("few\u2028", "many"))
        assert mean == pytest.approx((few_mean + many_mean) / 2)


def test_held_out_items_that_all_do_not_fit_stop_a_run_before_any_work(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "heldout.jsonl", ["long " * 600, "long " * 700])
    with pytest.raises(SystemExit):
        main(arguments)
    assert "'mine': none of its 2 held-out items has a loss" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("warmup-*"))
