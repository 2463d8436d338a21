"""Targets: formats to the character, written a second time here from METHOD section 5, and disjoint evaluation."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest

from gistselect.data.config import ReadOptions
from gistselect.data.templates import Tulu
from gistselect.errors import ConfigError, DataError
from gistselect.registry import names
from gistselect.run.targets import load_tasks
from gistselect.tasks import load_task, sample_groups
from gistselect.types import Message, Record

COUNTS = {"mmlu": (285, 57), "bbh": (81, 27), "tydiqa": (9, 9), "gsm8k": (100, 1)}
HELDOUT = {"mmlu": 14_042, "bbh": 6_511, "gsm8k": 1_319}


def rendered(record: Record) -> tuple[str, str]:
    """(unsupervised text, supervised text) under the published template."""
    result = Tulu(eos="</s>").render(record)
    ((start, end),) = result.supervised
    assert end == len(result.text)
    return result.text[:start], result.text[start:]


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Files of all tasks, small, with what has broken readers before: None as an answer, a blank intro paragraph."""
    evaluation = tmp_path / "eval"
    for split, rows in (("dev", 6), ("test", 2)):
        for subject in ("world_history", "abstract_algebra"):
            path = evaluation / "mmlu" / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="", encoding="utf-8") as stream:
                lines = [[f"{split} {i}, or\n“not”?", "None", "NA", "1.0", " x", "B"] for i in range(rows)]
                csv.writer(stream).writerows(lines)
    example = "Q: {} is it?\nA: Let's see.\n{}. So the answer is {}.".format
    blocks = ["Intro of", "two paragraphs.", example("a", 1, "Yes"), example("b", 2, "No"), example("c", 3, "Yes ")]
    write_json(evaluation / "bbh/bbh-three-shot.json", {"snarks": "\n\n".join(blocks)})
    write_json(evaluation / "bbh/bbh/snarks.json", {"examples": [{"input": "d is it?", "target": "No"}]})
    item = {
        "id": "finnish-1",
        "context": " Konteksti.",
        "question": "Mikä?",
        "answers": [{"text": "se"}, {"text": "x"}],
    }
    write_json(evaluation / "tydiqa/tydiqa-one-shot.json", {"finnish": [item]})
    gsm8k = [{"question": f"{split}?\u2028", "answer": "1\n#### 1"} for split in ("target", "test")]
    for row in gsm8k:
        path = evaluation / "gsm8k" / f"{row['question'][:-2]}.jsonl"
        write_json(path, row)
        path.write_text(path.read_text(encoding="utf-8") + "\n\n", encoding="utf-8")
    return tmp_path


def goldp(*items: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": [
            {"paragraphs": [{"context": item["context"], "qas": [{k: item[k] for k in ("id", "question", "answers")}]}]}
            for item in items
        ]
    }


# Formats on small files.


def test_mmlu_format(data_dir: Path) -> None:
    task = load_task("mmlu", data_dir)
    queries = task.queries()
    assert Counter(query.group for query in queries) == {"abstract_algebra": 5, "world_history": 5}
    assert [query.id for query in queries][4:6] == ["mmlu/abstract_algebra/4", "mmlu/world_history/0"]
    assert rendered(queries[5]) == (
        "<|user|>\nThe following are multiple choice questions (with answers) about  world history.\n\n"
        "dev 0, or\n“not”?\nA. None\nB. NA\nC. 1.0\nD.  x\nAnswer:\n<|assistant|>\nThe answer is:",
        " B",
    )
    assert [item.id for item in task.evaluation()][:2] == [
        "mmlu/abstract_algebra/test/0",
        "mmlu/abstract_algebra/test/1",
    ]


def test_bbh_format(data_dir: Path) -> None:
    task = load_task("bbh", data_dir)
    queries = task.queries()
    assert [query.id for query in queries] == ["bbh/snarks/0", "bbh/snarks/1", "bbh/snarks/2"]
    assert rendered(queries[1]) == (
        "<|user|>\nIntro of\n\ntwo paragraphs.\n\n"
        "Q: a is it?\nA: Let's see.\n1. So the answer is Yes.\n\n"
        "Q: c is it?\nA: Let's see.\n3. So the answer is Yes .\n\n"
        "Q: b is it?\n<|assistant|>\nA:",
        " Let's see.\n2. So the answer is No.",
    )
    head, answer = rendered(task.evaluation()[0])
    assert head.endswith("Yes .\n\nQ: d is it?\n<|assistant|>\nA: So the answer is")
    assert head.count("\nQ: ") == 4
    assert answer == " No."


def test_tydiqa_format_and_what_is_left_out_of_its_evaluation(data_dir: Path) -> None:
    task = load_task("tydiqa", data_dir)
    (query,) = task.queries()
    assert (query.id, query.group) == ("tydiqa/finnish/0", "finnish")
    assert rendered(query) == (
        "<|user|>\nVastaa seuraavaan kysymykseen annetun kappaleen tiedon perusteella.Kappale:  Konteksti.\n"
        "Kysymys: Mikä?\n<|assistant|>\nVastaus:",
        " se",
    )
    with pytest.raises(DataError, match=r"missing .*eval/tydiqa/tydiqa-goldp-v1\.1-dev\.json"):
        task.evaluation()
    item = {"id": "finnish-1", "context": " Konteksti.", "question": "Mikä?", "answers": [{"text": "se"}]}
    other = {**item, "id": "english-2", "question": "What?"}
    file = data_dir / "eval/tydiqa/tydiqa-goldp-v1.1-dev.json"
    write_json(file, goldp(item, other))
    (kept,) = load_task("tydiqa", data_dir).evaluation()
    assert (kept.id, kept.group) == ("tydiqa/english/test/0", "english")
    assert rendered(kept)[0].endswith("Question: What?\n<|assistant|>\nAnswer:")
    write_json(file, goldp(item))
    with pytest.raises(DataError, match="no item besides the queries"):
        load_task("tydiqa", data_dir).evaluation()
    write_json(file, goldp({**other, "id": "klingon-3"}))
    with pytest.raises(DataError, match="'klingon'; known: english"):
        load_task("tydiqa", data_dir).evaluation()


def test_gsm8k_format(data_dir: Path) -> None:
    task = load_task("gsm8k", data_dir)
    (query,), (item,) = task.queries(), task.evaluation()
    assert rendered(query) == ("<|user|>\ntarget?\u2028\n<|assistant|>\n", "1\n#### 1")
    assert (query.id, query.group, item.id) == ("gsm8k/0", "", "gsm8k/test/0")
    (data_dir / "eval/gsm8k/target.jsonl").write_text('{"question": "x", "answer": "y"}\n\n{"question": "x"}')
    with pytest.raises(DataError, match="line 3: expected an object"):
        load_task("gsm8k", data_dir).queries()


def test_damaged_files_are_named(data_dir: Path) -> None:
    (data_dir / "eval/bbh/bbh-three-shot.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot read .*bbh-three-shot"):
        load_task("bbh", data_dir).queries()
    write_json(data_dir / "eval/bbh/bbh-three-shot.json", {"snarks": "only\n\ntwo\n\nblocks"})
    with pytest.raises(DataError, match="'snarks': its last three blocks"):
        load_task("bbh", data_dir).queries()
    write_json(data_dir / "eval/bbh/bbh-three-shot.json", {"snarks": "one block"})
    with pytest.raises(DataError, match="'snarks': its last three blocks"):
        load_task("bbh", data_dir).queries()
    write_json(data_dir / "eval/bbh/bbh-three-shot.json", ["snarks"])
    with pytest.raises(DataError, match="holds a list"):
        load_task("bbh", data_dir).queries()
    write_json(data_dir / "eval/tydiqa/tydiqa-one-shot.json", {"finnish": [{"context": "no question"}]})
    with pytest.raises(DataError, match=r"tydiqa-one-shot.json, finnish: expected 'id', 'context'"):
        load_task("tydiqa", data_dir).queries()
    (data_dir / "eval/mmlu/dev/world_history_dev.csv").write_text("question,a,b,c,d,E\n")
    with pytest.raises(DataError, match=r"world_history_dev.csv, row 1: expected question"):
        load_task("mmlu", data_dir).queries()


# Conformance of everything registered.


@pytest.mark.parametrize("name", names("task"))
def test_every_task_works_on_the_folder_or_its_eval_folder(data_dir: Path, name: str) -> None:
    task = load_task(name, data_dir)
    queries = list(task.queries())
    assert queries == list(load_task(name, data_dir / "eval").queries()) == list(task.queries())
    assert task.name == name
    assert isinstance(task.version, int)
    assert len({query.id for query in queries}) == len(queries)
    assert [query.row for query in queries] == list(range(len(queries)))


@pytest.mark.parametrize("name", names("task"))
def test_every_task_names_its_missing_file_and_option(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"missing {tmp_path}/eval/{name}/.*--data-dir"):
        load_task(name, tmp_path).queries()
    with pytest.raises(ConfigError, match="needs --data-dir"):
        load_task(name, None)


@pytest.mark.parametrize("name", names("task"))
def test_counts_groups_and_disjoint_evaluation_on_the_real_files(shared_data: Path, name: str) -> None:
    if name not in COUNTS:
        pytest.skip(f"no published counts for the third-party task {name!r}")
    task = load_task(name, shared_data / "full")
    queries = task.queries()
    n_queries, n_groups = COUNTS[name]
    groups = Counter(query.group for query in queries)
    assert (len(queries), len(groups), set(groups.values())) == (n_queries, n_groups, {n_queries // n_groups})
    if name not in HELDOUT:
        with pytest.raises(DataError, match="tydiqa-goldp"):
            task.evaluation()
        return
    items = task.evaluation()
    assert len(items) == HELDOUT[name]
    assert len({record.id for record in [*queries, *items]}) == n_queries + HELDOUT[name]
    assert {item.group for item in items} == set(groups)
    asked = {question(query) for query in queries}
    assert not [item.id for item in items if question(item) in asked]


def question(record: Record) -> str:
    """What is asked, without the demonstrations that a prompt begins with."""
    return f"{record.group}: {record.messages[0].content.rpartition(chr(10) * 2)[2].strip()}"


# The published formats on the real files, derived a second time and with pandas, as published.


def published_mmlu(folder: Path) -> list[tuple[str, str]]:
    pairs = []
    for test in sorted((folder / "mmlu" / "test").iterdir()):
        subject = test.name.replace("_test.csv", "")
        table = pandas.read_csv(folder / f"mmlu/dev/{subject}_dev.csv", header=None, keep_default_na=False)
        for _, (stem, a, b, c, d, letter) in table.iterrows():
            intro = "The following are multiple choice questions (with answers) about  " + " ".join(subject.split("_"))
            text = (
                f"<|user|>\n{intro}.\n\n{stem}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:\n<|assistant|>\nThe answer is:"
            )
            pairs.append((text, " " + letter))
    return pairs


def published_bbh(folder: Path) -> list[tuple[str, str]]:
    pairs = []
    for text in json.loads((folder / "bbh/bbh-three-shot.json").read_text()).values():
        intro, first, second, third = text.rsplit("\n\n", 3)
        for target, one, other in ((first, second, third), (second, first, third), (third, first, second)):
            asked, answer = target.split("\nA:")
            pairs.append((f"<|user|>\n{intro.strip()}\n\n{one}\n\n{other}\n\n{asked}\n<|assistant|>\nA:", answer))
    return pairs


def published_gsm8k(folder: Path) -> list[tuple[str, str]]:
    rows = map(json.loads, (folder / "gsm8k/target.jsonl").open())
    return [(f"<|user|>\n{row['question']}\n<|assistant|>\n", row["answer"]) for row in rows]


@pytest.mark.parametrize(
    ("name", "published"), [("mmlu", published_mmlu), ("bbh", published_bbh), ("gsm8k", published_gsm8k)]
)
def test_queries_equal_the_published_format_to_the_character(shared_data: Path, name: str, published: Any) -> None:
    folder = shared_data / "full"
    assert [rendered(query) for query in load_task(name, folder).queries()] == published(folder / "eval")


def test_tydiqa_queries_equal_the_published_format(shared_data: Path) -> None:
    queries = {query.group: query for query in load_task("tydiqa", shared_data / "full").queries()}
    item = json.loads((shared_data / "full/eval/tydiqa/tydiqa-one-shot.json").read_text())["english"][0]
    assert rendered(queries["english"]) == (
        "<|user|>\nAnswer the following question based on the information in the given passage.Passage: "
        f"{item['context']}\nQuestion: {item['question']}\n<|assistant|>\nAnswer:",
        " " + item["answers"][0]["text"],
    )
    # The corpus words its Arabic reading comprehension as published.
    row = json.loads((shared_data / "small/train/processed/arcd_ar/arcd_ar_data.jsonl").open().readline())
    instruction = row["messages"][0]["content"].split("\n")[0]
    assert queries["arabic"].messages[0].content.startswith(f"{instruction}المقطع: ")


# Targets of one's own.


def write_target(path: Path, *rows: tuple[str, str]) -> Path:
    lines = (json.dumps({"prompt": p, "completion": "c", "lang": g}) for p, g in rows)
    path.write_text("\n".join(lines))
    return path


def test_a_file_is_a_target(tmp_path: Path) -> None:
    path = write_target(tmp_path / "mine.jsonl", ("a", "fi"), ("b", "en"), ("c", "fi"))
    task = load_task(str(path), None, "lang")
    assert task.name == "mine"
    assert [(query.messages[0].content, query.group) for query in task.queries()] == [
        ("a", "fi"),
        ("b", "en"),
        ("c", "fi"),
    ]
    assert {query.group for query in load_task(str(path)).queries()} == {""}
    assert task.evaluation() == []
    with pytest.raises(DataError, match=r"3 of 3 target rows .* no group in 'language'"):
        load_task(str(path), None, "language").queries()


def test_names_of_columns_and_roles_hold_for_own_targets_and_the_shape_does_not(tmp_path: Path) -> None:
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text(json.dumps({"Question": "q", "Answer": "a"}) + "\n")
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(json.dumps({"Question": "h", "Answer": "a"}) + "\n")
    usual = tmp_path / "usual.jsonl"
    turns = [
        {"role": "customer", "content": "q"},
        {"role": "agent", "content": "first"},
        {"role": "customer", "content": "r"},
        {"role": "agent", "content": "last"},
    ]
    usual.write_text(json.dumps({"messages": turns}) + "\n")
    options = ReadOptions(
        format="prompt_completion",
        columns=("prompt=Question", "completion=Answer"),
        roles=("agent=assistant", "customer=user"),
        supervise="last",
        pool_revision="main",
    )
    own, other = load_tasks([str(renamed), str(usual)], None, None, [heldout], options)
    assert [one.content for one in own.queries()[0].messages] == ["q", "a"]
    assert [one.content for one in own.evaluation()[0].messages] == ["h", "a"]
    assert [one.supervised for one in other.queries()[0].messages] == [True, False, True, True]


def test_held_out_rows_must_not_be_target_rows(tmp_path: Path) -> None:
    path = write_target(tmp_path / "mine.jsonl", ("a", "fi"))
    heldout = write_target(tmp_path / "heldout.jsonl", ("b", "fi"))
    (item,) = load_task(str(path), None, "lang", heldout).evaluation()
    assert (item.messages[0].content, item.group) == ("b", "fi")
    write_target(heldout, ("b", "fi"), ("a", "en"))
    with pytest.raises(DataError, match=r"1 rows of .*heldout.jsonl are also in the target"):
        load_task(str(path), None, "lang", heldout).evaluation()


def test_names_that_are_neither_task_nor_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'gsm8k'"):
        load_task("gsm8", tmp_path)
    with pytest.raises(DataError, match="no file or folder"):
        load_task("absent.jsonl").queries()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gsm8k").mkdir()
    with pytest.raises(DataError, match=r"target.jsonl"):
        load_task("gsm8k", tmp_path).queries()


# Sub-sampling.


def records(groups: str) -> list[Record]:
    message = Message(role="assistant", content="x")
    return [Record(id=f"{g}{i}", source="s", row=i, messages=(message,), group=g) for i, g in enumerate(groups)]


def test_sampling_is_per_group_seeded_and_keeps_the_order() -> None:
    many = records("a" * 30 + "b" * 3 + "c" * 30 + "a" * 10)
    sample = sample_groups(many, 5, seed=1)
    assert Counter(record.group for record in sample) == {"a": 5, "b": 3, "c": 5}
    assert [record.row for record in sample] == sorted(record.row for record in sample)
    assert sample == sample_groups(many, 5, seed=1) != sample_groups(many, 5, seed=2)
    only_a = [record for record in many if record.group == "a"]
    assert sample_groups(only_a, 5, seed=1) == [record for record in sample if record.group == "a"]
    assert sample_groups(many, None, seed=1) == many
    with pytest.raises(ConfigError, match="leave nothing"):
        sample_groups(many, 0, seed=1)


def test_every_record_can_be_sampled() -> None:
    drawn = Counter(sample_groups(records("a" * 6), 2, seed)[0].row for seed in range(60))
    drawn += Counter(sample_groups(records("a" * 6), 2, seed)[1].row for seed in range(60))
    assert set(drawn) == set(range(6))
    assert max(drawn.values()) < 40  # 20 expected
