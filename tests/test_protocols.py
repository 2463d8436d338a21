"""Published protocols: their prompts, what is checked before any model is loaded, and what a key depends on."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gistselect.errors import ConfigError, DataError
from gistselect.evaluation import catalog, harness
from gistselect.evaluation.catalog import choose, task_facts, tasks_digest
from gistselect.evaluation.config import EvaluationConfig
from gistselect.evaluation.prompts import check_tasks, context_length, read_questions
from gistselect.model.config import ModelConfig
from gistselect.model.loading import load_tokenizer
from gistselect.registry import resolve
from gistselect.tasks import PROTOCOLS, heldout_records, load_task
from gistselect.tasks.files import Item
from gistselect.tasks.mmlu import CATEGORIES


def identity(text: str) -> str:
    return text


def read_items(name: str, data_dir: Path | None, cut: Callable[[str], str]) -> list[Item]:
    return PROTOCOLS[name](data_dir).items(cut)


def test_mmlu_prompt(less_folder: Path) -> None:
    items = read_items("mmlu", less_folder, identity)
    assert [item.group for item in items] == ["anatomy"] * 4 + ["world_religions"] * 4
    user = items[4].record(1, 0).messages[0].content
    assert user == (
        "The following are multiple choice questions (with answers) about  world religions.\n\n"
        "q100?\nA. None\nB. NA\nC. 3\nD. x,y\nAnswer: A\n\nq150?\nA. None\nB. NA\nC. 3\nD. x,y\nAnswer:"
    )
    assert (items[4].prefix, items[4].reference, len(items[4].shots)) == ("The answer is:", " A", 5)
    assert sum(len(names) for names in CATEGORIES.values()) == 57


def test_bbh_prompt(less_folder: Path) -> None:
    item = read_items("bbh", less_folder, identity)[0]
    assert item.record(3, 0).messages[0].content == (
        "Solve logic.\n\nSecond paragraph.\n\n"
        "Q: demo 0\nA: thinking. So the answer is 0.\n\nQ: demo 1\nA: thinking. So the answer is 1.\n\n"
        "Q: demo 2\nA: thinking. So the answer is 2.\n\nQ: logic 0"
    )
    assert item.record(3, 0).prefix == "A: So the answer is"
    assert item.prefix == "A:"


def test_tydiqa_prompt(less_folder: Path) -> None:
    item = next(one for one in read_items("tydiqa", less_folder, lambda text: text[:6]) if one.group == "english")
    assert item.record(1, 0).messages[0].content == (
        "Answer the following question based on the information in the given passage.\n\n"
        "Passage: word 9\nQuestion: what number 99 in english?\nAnswer: 99\n\n"
        "Passage: word 0\nQuestion: what number 0 in english?"
    )


def test_gsm8k_prompt(less_folder: Path) -> None:
    item = read_items("gsm8k", less_folder, identity)[0]
    user = item.record(8, 0).messages[0].content
    assert user.startswith("Answer the following questions.\n\nQuestion: how many 0?\nAnswer: It is 0.\n#### 0\n\nQ")
    assert user.endswith("\n\nQuestion: how many 50?")
    assert user.count("Question:") == 9


def test_a_missing_file_is_named(less_folder: Path, tmp_path: Path) -> None:
    (less_folder / "eval" / "tydiqa" / "tydiqa-goldp-v1.1-dev.json").unlink()
    with pytest.raises(DataError, match=r"missing .*tydiqa-goldp-v1\.1-dev\.json.*xqa_proxy"):
        read_items("tydiqa", less_folder, identity)
    with pytest.raises(DataError, match=r"missing .*xqa-proxy\.json"):
        read_items("xqa_proxy", less_folder, identity)
    (less_folder / "eval" / "mmlu" / "dev" / "anatomy_dev.csv").unlink()
    with pytest.raises(DataError, match=r"anatomy_dev\.csv"):
        read_items("mmlu", less_folder, identity)
    with pytest.raises(DataError, match=r"missing .*nowhere"):
        read_items("gsm8k", tmp_path / "nowhere", identity)


def test_a_language_without_items_is_an_error(less_folder: Path) -> None:
    path = less_folder / "eval" / "tydiqa" / "tydiqa-goldp-v1.1-dev.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = [one for one in content["data"] if not one["paragraphs"][0]["qas"][0]["id"].startswith("swahili")]
    path.write_text(json.dumps({"data": kept}), encoding="utf-8")
    with pytest.raises(DataError, match="no item for swahili"):
        read_items("tydiqa", less_folder, identity)


def test_items_may_not_be_demonstrations(less_folder: Path) -> None:
    folder = less_folder / "eval" / "gsm8k"
    (folder / "test.jsonl").write_bytes((folder / "target.jsonl").read_bytes())
    with pytest.raises(DataError, match="also demonstrations"):
        read_items("gsm8k", less_folder, identity)


def test_hub_data_sets_are_used_without_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(path: str, name: str, split: str) -> list[dict[str, str]]:
        asked.append((path, name, split))
        return [{"question": f"{split} {i}?", "answer": f"#### {i}"} for i in range(9)]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    items = read_items("gsm8k", None, identity)
    assert asked == [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")]
    assert (len(items), items[0].question, len(items[0].shots)) == (9, "Question: test 0?", 8)

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match="--data-dir"):
        read_items("gsm8k", None, identity)


def test_real_files_have_disjoint_items(shared_data: Path) -> None:
    """`read_items` refuses overlap; the counts are those of the small files."""
    counts = {name: len(read_items(name, shared_data / "small", identity)) for name in ("mmlu", "bbh", "gsm8k")}
    assert counts == {"mmlu": 1140, "bbh": 540, "gsm8k": 50}
    proxy = Counter(item.group for item in read_items("xqa_proxy", shared_data / "small", identity))
    assert proxy == dict.fromkeys(("arabic", "english", "indonesian", "russian", "swahili"), 20)
    groups = {item.group for item in read_items("mmlu", shared_data / "small", identity)}
    assert groups == {name for names in CATEGORIES.values() for name in names}


# What is known before a model is loaded


@pytest.mark.parametrize("name", ["mmlu", "bbh", "tydiqa", "gsm8k"])
def test_queries_held_out_records_and_protocol_items_come_from_one_reading(less_folder: Path, name: str) -> None:
    task = resolve("task", name)(less_folder)
    expected = (task.queries(), task.evaluation(), task.items(identity))
    shutil.rmtree(less_folder)
    assert (task.queries(), task.evaluation(), task.items(identity)) == expected


def test_unknown_names_and_broken_files_are_found_without_a_model(
    less_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(harness, "lm_eval_index", lambda: SimpleNamespace(all_tasks=["arc_easy", "hellaswag"]))
    own = tmp_path / "mine.jsonl"
    own.write_text('{"prompt": "a", "completion": "b"}\n')
    check_tasks(["mmlu", "gsm8k", "arc_easy", str(own)], less_folder)
    with pytest.raises(ConfigError, match=r"a task 'gsm8'.*mean 'gsm8k'"):
        check_tasks(["gsm8"], less_folder)
    with pytest.raises(ConfigError, match="mean 'hellaswag'"):
        check_tasks(["helaswag"], less_folder)
    with pytest.raises(DataError, match="there is no file"):
        check_tasks([str(tmp_path / "absent.jsonl")], less_folder)
    own.write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"mine\.jsonl cannot be used.*row 0"):
        check_tasks([str(own)], less_folder)
    (less_folder / "eval" / "gsm8k" / "test.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"test\.jsonl, line 1"):
        check_tasks(["gsm8k"], less_folder)
    with pytest.raises(ConfigError, match="--data-dir"):
        check_tasks(["xqa_proxy"], None)


def test_a_target_without_held_out_items_is_found_without_a_model(tmp_path: Path) -> None:
    own = tmp_path / "mine.jsonl"
    own.write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(ConfigError, match=r"'mine' has no held-out items.*--heldout"):
        heldout_records(load_task(str(own)))


def test_a_file_named_like_a_task_of_ours_is_not_taken_for_it(tmp_path: Path) -> None:
    own = tmp_path / "mmlu.jsonl"
    own.write_text('{"prompt": "a", "completion": "b"}\n')
    name = load_task(str(own)).name
    assert name == "mmlu.jsonl"
    assert (task_facts(name).average, task_facts("mmlu").average) == ("groups", "items")
    with pytest.raises(ConfigError, match="two tasks are called 'mine'"):
        choose([str(own.replace(tmp_path / "mine.jsonl")), "mine"])


def test_the_digest_is_that_of_the_content(less_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    own = tmp_path / "mine.jsonl"
    own.write_text('{"prompt": "a", "completion": "b"}\n')
    names = ["mmlu", "gsm8k", "hellaswag", str(own)]
    found = [tasks_digest(names, less_folder, template="a")]
    less_folder = less_folder.rename(tmp_path / "moved")
    assert tasks_digest(names, less_folder, template="a") == found[0]
    for path in ("gsm8k/test.jsonl", "gsm8k/target.jsonl", "mmlu/dev/anatomy_dev.csv"):
        file = less_folder / "eval" / path
        file.write_bytes(file.read_bytes().replace(b"q", b"Q").replace(b"how", b"How"))
        found.append(tasks_digest(names, less_folder, template="a"))
    own.write_text('{"prompt": "a", "completion": "c"}\n')
    found.append(tasks_digest(names, less_folder, template="a"))
    found.append(tasks_digest(["mmlu", "gsm8k", "arc_easy", str(own)], less_folder, template="a"))
    found.append(tasks_digest(names, less_folder, template="b"))
    monkeypatch.setattr(catalog, "version", lambda package: "0.0")
    found.append(tasks_digest(names, less_folder, template="a"))
    assert len(set(found)) == len(found)


def write_own(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    """A target of one's own from (prompt, answer, group)."""
    lines = (json.dumps({"prompt": p, "completion": c, "group": g}, ensure_ascii=False) for p, c, g in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_items_that_do_not_fit_are_known_and_named_before_any_training(tiny_model: Path, tmp_path: Path) -> None:
    config = ModelConfig(path=str(tiny_model))
    tokenizer, context = load_tokenizer(config), context_length(config)
    assert context == 1024
    own = write_own(tmp_path / "mine.jsonl", [("a", "b", ""), ("long " * 1024, "b", ""), ("c", "d", "")])
    options = EvaluationConfig(losses=False)
    (asked,) = read_questions([str(own)], None, config=options, tokenizer=tokenizer, context=context)
    assert asked.fitting is not None
    assert asked.fitting.rows == (0, 2)
    assert "no supervised token is left" in asked.fitting.excluded[1]
    assert len(asked.prompts) == 3
    short = options.model_copy(update={"max_length": 16})
    write_own(own, [("long " * 20, "b", ""), ("long " * 30, "b", "")])
    with pytest.raises(DataError, match=r"mine: none of its 2 held-out items has a loss; the first: no supervised"):
        read_questions([str(own)], None, config=short, tokenizer=tokenizer, context=context)


def test_what_is_left_open_is_taken_from_the_run(tiny_model: Path, less_folder: Path, tmp_path: Path) -> None:
    assert EvaluationConfig().resolved() == EvaluationConfig(template="tulu", seed=0)
    assert EvaluationConfig().resolved(template="model", seed=3) == EvaluationConfig(template="model", seed=3)
    chosen = EvaluationConfig(template="tulu", seed=0)
    assert chosen.resolved(template="model", seed=3) == chosen
    jinja = tmp_path / "own.jinja"
    jinja.write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    tokenizer = load_tokenizer(ModelConfig(path=str(tiny_model)))

    def asked(config: EvaluationConfig) -> list[str]:
        (found,) = read_questions(["gsm8k"], less_folder, config=config, tokenizer=tokenizer, context=4096)
        return [one.prompt for one in found.prompts]

    config = EvaluationConfig(limit=1, max_length=4096)
    drawn = {seed: asked(config.resolved(template=str(jinja), seed=seed)) for seed in range(8)}
    assert all(prompt.startswith("[user] Answer the following") for (prompt,) in drawn.values())
    assert all(prompt.endswith("[assistant] Answer:") for (prompt,) in drawn.values())
    assert len({prompt for (prompt,) in drawn.values()}) == 3
    with pytest.raises(ConfigError, match="no template 'absent"):
        asked(config.resolved(template="absent.jinja", seed=0))
