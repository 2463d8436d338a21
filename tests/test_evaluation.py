"""Evaluation: scoring, prompts, target loss, the loop through lm-eval, intervals and verdicts."""

from __future__ import annotations

import csv
import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gistselect.errors import ConfigError, DataError, MissingDependencyError, ModelError
from gistselect.evaluation import harness, scoring
from gistselect.evaluation.catalog import task_facts
from gistselect.evaluation.config import EvaluationConfig
from gistselect.evaluation.session import evaluate
from gistselect.evaluation.target_loss import target_losses
from gistselect.evaluation.verdict import Arm, compare, verdict
from gistselect.linalg.intervals import Interval, bootstrap_mean, difference_of_runs, mean_of_runs
from gistselect.model.adapters import AdapterConfig, attach_adapter
from gistselect.model.loading import LanguageModel, ModelConfig, load_model
from gistselect.tasks import PROTOCOLS
from gistselect.tasks.files import Item
from gistselect.tasks.mmlu import CATEGORIES
from gistselect.tasks.tydiqa import PHRASES
from gistselect.training.train import merge_adapter
from gistselect.types import Example

# Scoring


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He has 3 apples and 4 pears, so 7.\n#### 7", "7"),
        ("The total is $1,234.50.", "1234.50"),
        ("It is -5 degrees", "-5"),
        ("minus: −12", "-12"),
        ("the answer is 18.", "18"),
        ("٣ plus ٤ is ٧", "7"),
        (".5 of them", ".5"),
        ("1,200.00", "1200"),
    ],
)
def test_final_number(text: str, number: str) -> None:
    assert scoring.final_number(text) == Decimal(number)


def test_final_number_of_nothing() -> None:
    assert scoring.final_number("") is None
    assert scoring.final_number("no idea") is None
    assert not scoring.number_match("", "#### 7")
    assert not scoring.number_match("eight", "#### 8")
    assert scoring.number_match("So it is 72.0 clips", "48+24 = <<48+24=72>>72\n#### 72")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Let's think step by step. So the answer is (A).", "(A)"),
        ("So the answer is not. So the answer is True.\n\nQ: next", "True"),
        ("so The Answer Is: valid", "valid"),
        ("So the answer is 12.5.", "12.5"),
        ("(B)", "(B)"),
        ("So the answer is", ""),
        ("", ""),
    ],
)
def test_final_answer(text: str, answer: str) -> None:
    assert scoring.final_answer(text) == answer


def test_answer_match_ignores_form_but_not_content() -> None:
    assert scoring.answer_match("a", "(A)")
    assert scoring.answer_match("Yes!", "yes")
    assert not scoring.answer_match("(B)", "(A)")
    assert not scoring.answer_match("", "(A)")
    # Stripped of punctuation, all answers of dyck_languages would be equal.
    assert scoring.answer_match("] ) }", "] ) }")
    assert not scoring.answer_match("> > >", "] ) }")
    assert not scoring.answer_match("", "] ) }")


def independent_f1(answer: str, reference: str) -> float:
    """SQuAD's published normalisation for text in scripts with spaces, written from its description."""

    def words(text: str) -> list[str]:
        text = "".join(c for c in unicodedata.normalize("NFC", text).lower() if c not in set(string.punctuation))
        text = re.sub(r"[^\S ]", " ", "".join(" " if unicodedata.category(c).startswith("P") else c for c in text))
        return [word for word in text.split() if word not in ("a", "an", "the")]

    first, second = words(answer), words(reference)
    common = Counter(first) & Counter(second)
    overlap = sum(common.values())
    if not first or not second:
        return float(first == second)
    if overlap == 0:
        return 0.0
    precision, recall = overlap / len(first), overlap / len(second)
    return 2 * precision * recall / (precision + recall)


ANSWERS = [
    ("The Kigali.", "Kigali", 1.0),
    ("in Kigali, Rwanda", "Kigali", 0.5),
    ("Nairobi", "Kigali", 0.0),
    ("", "Kigali", 0.0),
    ("...", "Kigali", 0.0),
    ("Императорском Казанском университете", "в Императорском Казанском университете", 6 / 7),
    ("«Казань»!", "казань", 1.0),
    ("الإسكندر الأكبر؟", "الإسكندر الأكبر", 1.0),
    ("2289 మంది", "2289", 2 / 3),
    ("서울 특별시", "서울", 2 / 3),
    ("cafe\u0301", "café", 1.0),
    ("the a an", "", 1.0),
    ("a b c d", "d c x", 4 / 6),
]


@pytest.mark.parametrize(("answer", "reference", "score"), ANSWERS)
def test_squad_f1(answer: str, reference: str, score: float) -> None:
    assert scoring.squad_f1(answer, [reference]) == pytest.approx(score)
    assert scoring.squad_f1(answer, [reference]) == pytest.approx(independent_f1(answer, reference))
    assert scoring.squad_exact_match(answer, [reference]) == (score == 1.0)


def test_squad_scores_take_the_best_reference_and_split_unspaced_scripts() -> None:
    assert scoring.squad_f1("Kigali", ["Nairobi", "Kigali city", "Kigali"]) == 1.0
    assert scoring.squad_exact_match("Kigali", ["Nairobi", "the Kigali"])
    assert scoring.squad_tokens("基加利。") == ["基", "加", "利"]
    assert scoring.squad_f1("基加利市", ["基加利"]) == pytest.approx(6 / 7)
    # A Thai vowel sign stays with its letter.
    assert scoring.squad_tokens("ดี") == ["ดี"]


def test_task_scores() -> None:
    assert scoring.score_number({"answers": ["#### 7"]}, ["it is 7"]) == {"exact_match": 1.0}
    assert scoring.score_final_answer({"answers": ["(A)"]}, [" So the answer is (A)."]) == {"exact_match": 1.0}
    assert scoring.score_span({"answers": ["Kigali"]}, [" Kigali\nQuestion: x"]) == {"f1": 1.0, "exact_match": 1.0}
    assert scoring.score_text({"answers": ["x y"]}, [" x y "]) == {"exact_match": 1.0}
    item = {"choices": [" A", " B", " C", " D"], "answers": [" C"]}
    likelihoods = [(-3.0, False), (-2.0, False), (-1.0, True), (-4.0, False)]
    assert scoring.score_choice(item, likelihoods) == {"accuracy": 1.0}  # pyright: ignore[reportArgumentType]


# Files in the LESS layout


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def span(language: str, number: int) -> dict[str, object]:
    return {
        "id": f"{language}-{number}",
        "context": f"word {number} " * 5,
        "question": f"what number {number} in {language}?",
        "answers": [{"text": f"{number}", "answer_start": 5}],
    }


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "eval"
    for subject, offset in (("anatomy", 0), ("world_religions", 100)):
        for split, start, count in (("dev", 0, 5), ("test", 50, 4)):
            path = folder / "mmlu" / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(
                    [f"q{offset + start + i}?", "None", "NA", "3", "x,y", "ABCD"[i % 4]] for i in range(count)
                )
    blocks = [f"Q: demo {i}\nA: thinking. So the answer is {i}." for i in range(3)]
    prompts = {task: "\n\n".join([f"Solve {task}.", "Second paragraph.", *blocks]) for task in ("logic", "sums")}
    write_json(folder / "bbh" / "bbh-three-shot.json", prompts)
    for task in prompts:
        examples = [{"input": f"{task} {i}", "target": f"({i})"} for i in range(3)]
        write_json(folder / "bbh" / "bbh" / f"{task}.json", {"examples": examples})
    write_json(folder / "tydiqa" / "tydiqa-one-shot.json", {name: [span(name, 99)] for name in PHRASES})
    gold = [{"paragraphs": [{"context": one.pop("context"), "qas": [one]}]} for one in
            (span(name, i) for name in PHRASES for i in range(3))]  # fmt: skip
    write_json(folder / "tydiqa" / "tydiqa-goldp-v1.1-dev.json", {"data": gold})
    (folder / "gsm8k").mkdir()
    for name, start, count in (("target", 0, 10), ("test", 50, 3)):
        rows = [
            json.dumps({"question": f"how many {start + i}?", "answer": f"It is {i}.\n#### {i}"}) for i in range(count)
        ]
        (folder / "gsm8k" / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder.parent


def identity(text: str) -> str:
    return text


def read_items(name: str, data_dir: Path | None, cut: Callable[[str], str]) -> list[Item]:
    return PROTOCOLS[name](data_dir).items(cut)


def test_mmlu_prompt(data_dir: Path) -> None:
    items = read_items("mmlu", data_dir, identity)
    assert [item.group for item in items] == ["anatomy"] * 4 + ["world_religions"] * 4
    user = items[4].record(1, 0).messages[0].content
    assert user == (
        "The following are multiple choice questions (with answers) about  world religions.\n\n"
        "q100?\nA. None\nB. NA\nC. 3\nD. x,y\nAnswer: A\n\nq150?\nA. None\nB. NA\nC. 3\nD. x,y\nAnswer:"
    )
    assert (items[4].prefix, items[4].reference, len(items[4].shots)) == ("The answer is:", " A", 5)
    assert sum(len(names) for names in CATEGORIES.values()) == 57


def test_bbh_prompt(data_dir: Path) -> None:
    item = read_items("bbh", data_dir, identity)[0]
    assert item.record(3, 0).messages[0].content == (
        "Solve logic.\n\nSecond paragraph.\n\n"
        "Q: demo 0\nA: thinking. So the answer is 0.\n\nQ: demo 1\nA: thinking. So the answer is 1.\n\n"
        "Q: demo 2\nA: thinking. So the answer is 2.\n\nQ: logic 0"
    )
    assert item.record(3, 0).prefix == "A: So the answer is"
    assert item.prefix == "A:"


def test_tydiqa_prompt(data_dir: Path) -> None:
    item = next(one for one in read_items("tydiqa", data_dir, lambda text: text[:6]) if one.group == "english")
    assert item.record(1, 0).messages[0].content == (
        "Answer the following question based on the information in the given passage.\n\n"
        "Passage: word 9\nQuestion: what number 99 in english?\nAnswer: 99\n\n"
        "Passage: word 0\nQuestion: what number 0 in english?"
    )


def test_gsm8k_prompt(data_dir: Path) -> None:
    item = read_items("gsm8k", data_dir, identity)[0]
    user = item.record(8, 0).messages[0].content
    assert user.startswith("Answer the following questions.\n\nQuestion: how many 0?\nAnswer: It is 0.\n#### 0\n\nQ")
    assert user.endswith("\n\nQuestion: how many 50?")
    assert user.count("Question:") == 9


def test_a_missing_file_is_named(data_dir: Path, tmp_path: Path) -> None:
    (data_dir / "eval" / "tydiqa" / "tydiqa-goldp-v1.1-dev.json").unlink()
    with pytest.raises(DataError, match=r"missing .*tydiqa-goldp-v1\.1-dev\.json.*xqa_proxy"):
        read_items("tydiqa", data_dir, identity)
    with pytest.raises(DataError, match=r"missing .*xqa-proxy\.json"):
        read_items("xqa_proxy", data_dir, identity)
    (data_dir / "eval" / "mmlu" / "dev" / "anatomy_dev.csv").unlink()
    with pytest.raises(DataError, match=r"anatomy_dev\.csv"):
        read_items("mmlu", data_dir, identity)
    with pytest.raises(DataError, match=r"missing .*nowhere"):
        read_items("gsm8k", tmp_path / "nowhere", identity)


def test_a_language_without_items_is_an_error(data_dir: Path) -> None:
    path = data_dir / "eval" / "tydiqa" / "tydiqa-goldp-v1.1-dev.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = [one for one in content["data"] if not one["paragraphs"][0]["qas"][0]["id"].startswith("swahili")]
    path.write_text(json.dumps({"data": kept}), encoding="utf-8")
    with pytest.raises(DataError, match="no item for swahili"):
        read_items("tydiqa", data_dir, identity)


def test_items_may_not_be_demonstrations(data_dir: Path) -> None:
    folder = data_dir / "eval" / "gsm8k"
    (folder / "test.jsonl").write_bytes((folder / "target.jsonl").read_bytes())
    with pytest.raises(DataError, match="also demonstrations"):
        read_items("gsm8k", data_dir, identity)


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


# A model


@pytest.fixture(scope="module")
def language_model(tiny_model: Path) -> LanguageModel:
    return load_model(ModelConfig(path=str(tiny_model), device="cpu"))


def make_examples(n: int = 12) -> list[Example]:
    rng = np.random.default_rng(0)
    examples = []
    for number in range(n):
        length = int(rng.integers(4, 40))
        supervised = rng.random(length) < 0.4
        supervised[-1] = True
        ids = rng.integers(2, 250, length).astype(np.int32)
        examples.append(Example(id=f"item {number}", input_ids=ids, supervised=supervised))
    return examples


@pytest.mark.parametrize("adapted", [False, True])
def test_target_loss_equals_a_loop_over_single_items(language_model: LanguageModel, adapted: bool) -> None:
    if adapted:
        language_model = attach_adapter(language_model, AdapterConfig(rank=2, dropout=0.5), seed=0)
        for name, parameter in language_model.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    examples = make_examples()
    measured = target_losses(language_model, examples, ["g"] * len(examples))
    language_model.model.eval()
    for item, example in zip(measured, examples, strict=True):
        with torch.no_grad():
            logits = language_model.model(torch.from_numpy(example.input_ids.astype("int64"))[None]).logits[0]
        losses = [
            torch.nn.functional.cross_entropy(logits[i - 1], torch.tensor(int(example.input_ids[i])))
            for i in range(1, example.n_tokens)
            if example.supervised[i]
        ]
        assert item.loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
        assert (item.id, item.group, item.n_supervised) == (example.id, "g", len(losses))
    backwards = target_losses(language_model, examples[::-1], ["g"] * len(examples))[::-1]
    assert [one.loss for one in backwards] == pytest.approx([one.loss for one in measured], rel=1e-6)
    if adapted:
        language_model.model.unload()


def test_target_loss_refuses_items_without_a_label(language_model: LanguageModel) -> None:
    empty = Example(id="empty", input_ids=np.ones(3, np.int32), supervised=np.zeros(3, np.bool_))
    with pytest.raises(DataError, match="'empty'"):
        target_losses(language_model, [empty], [""])


# Through lm-eval


def test_all_protocols_run_offline(data_dir: Path, tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    own = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"say {i}", "completion": f"{i}", "group": "ab"[i % 2]} for i in range(4)]
    own.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = EvaluationConfig(limit=2, max_new_tokens=6, batch_size=4, exact_match=True, draws=200)
    calls: list[tuple[int, int, str]] = []
    result = evaluate(
        ModelConfig(path=str(tiny_model), device="cpu"),
        None,
        ["mmlu", "bbh", "tydiqa", "gsm8k", str(own)],
        data_dir,
        tmp_path / "out",
        config,
        progress=lambda *call: calls.append(call),
    )
    by_name = {task.name: task for task in result.tasks}
    assert {name: task.n_items for name, task in by_name.items()} == {
        "mmlu": 4,
        "bbh": 4,
        "tydiqa": 18,
        "gsm8k": 2,
        "mine": 4,
    }
    assert set(by_name["tydiqa"].metrics) == {"f1", "exact_match", "loss"}
    assert set(by_name["mmlu"].categories["accuracy"]) == {"humanities", "other"}
    assert by_name["mine"].groups["loss"].keys() == {"a", "b"}
    assert by_name["bbh"].max_new_tokens == 6
    assert ("mmlu", 4) in {(name, total) for _, total, name in calls}
    stored = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert [task["version"] for task in stored["tasks"]] == ["1"] * 5
    assert len({task["prompt_digest"] for task in stored["tasks"]}) == 5
    items = [json.loads(line) for line in (tmp_path / "out" / "items" / "mmlu.jsonl").open(encoding="utf-8")]
    assert np.mean([item["accuracy"] for item in items]) == pytest.approx(by_name["mmlu"].metrics["accuracy"].mean)


def test_mmlu_likelihoods_equal_the_models_own(data_dir: Path, language_model: LanguageModel, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    config = EvaluationConfig(limit=2, draws=100)
    evaluate(language_model, None, ["mmlu"], data_dir, tmp_path, config)
    prompts = [json.loads(line) for line in (tmp_path / "prompts" / "mmlu.jsonl").open(encoding="utf-8")]
    items = [json.loads(line) for line in (tmp_path / "items" / "mmlu.jsonl").open(encoding="utf-8")]
    for prompt, item in zip(prompts, items, strict=True):
        expected = []
        for choice in prompt["choices"]:
            context = language_model.tokenizer(prompt["prompt"])["input_ids"]
            whole = language_model.tokenizer(prompt["prompt"] + choice)["input_ids"]
            with torch.no_grad():
                log_probabilities = language_model.model(torch.tensor([whole])).logits[0].log_softmax(-1)
            expected.append(sum(float(log_probabilities[i - 1, whole[i]]) for i in range(len(context), len(whole))))
        assert item["output"] == pytest.approx(expected, rel=1e-4)
        assert item["accuracy"] == float(prompt["choices"][int(np.argmax(expected))] == prompt["answers"][0])


def test_demonstrations_that_do_not_fit_are_left_out_and_counted(
    data_dir: Path, language_model: LanguageModel, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    config = EvaluationConfig(limit=1, max_length=200, max_new_tokens=4, draws=100)
    (task,) = evaluate(language_model, None, ["gsm8k"], data_dir, tmp_path, config).tasks
    (row,) = [json.loads(line) for line in (tmp_path / "prompts" / "gsm8k.jsonl").open(encoding="utf-8")]
    assert (task.n_fewer_shots, task.n_cut) == (1, 0)
    assert 0 < row["n_shots"] < 8
    assert row["prompt"].count("Question:") == row["n_shots"] + 1
    assert len(language_model.tokenizer(row["prompt"])["input_ids"]) <= 196


def test_same_seed_same_results(data_dir: Path, language_model: LanguageModel, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    config = EvaluationConfig(limit=2, max_new_tokens=4, draws=100)
    results = [
        evaluate(language_model, None, ["gsm8k"], data_dir, tmp_path / name, config.model_copy(update=changed)).tasks
        for name, changed in (("a", {}), ("b", {"batch_size": 1}))
    ]
    assert results[0][0].metrics["loss"].mean == pytest.approx(results[1][0].metrics["loss"].mean, rel=1e-6)
    assert results[0][0].prompt_digest == results[1][0].prompt_digest
    assert results[0][0].metrics["exact_match"] == results[1][0].metrics["exact_match"]


def test_tasks_of_lm_eval_itself(
    data_dir: Path, language_model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task under a name of its own stands in for lm-eval's, whose data sets need the network."""
    pytest.importorskip("lm_eval")
    config = EvaluationConfig(limit=2, max_new_tokens=4, draws=100)
    (ours,) = evaluate(language_model, None, ["gsm8k"], data_dir, tmp_path, config).tasks

    def load_other_tasks(names: list[str], seed: int) -> dict[str, object]:
        return {names[0]: harness.load_own_task("gsm8k", tmp_path / "prompts" / "gsm8k.jsonl")}

    monkeypatch.setattr(harness, "load_other_tasks", load_other_tasks)
    name = harness.PREFIX + "gsm8k"
    (theirs,) = evaluate(language_model, None, [name], None, tmp_path / "other", config).tasks
    assert theirs.metrics["exact_match"].mean == ours.metrics["exact_match"].mean
    assert theirs.aggregates == {"exact_match,none": ours.metrics["exact_match"].mean}
    assert theirs.n_items == 2


def test_a_merged_adapter_gives_the_same_losses(tiny_model: Path, tmp_path: Path) -> None:
    source = ModelConfig(path=str(tiny_model), device="cpu")
    adapted = attach_adapter(load_model(source), AdapterConfig(rank=2), seed=0)
    for name, parameter in adapted.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.model.save_pretrained(tmp_path / "adapter")
    merge_adapter(source, tmp_path / "adapter", tmp_path / "merged")
    merged = load_model(ModelConfig(path=str(tmp_path / "merged"), device="cpu"))
    examples = make_examples()
    groups = [""] * len(examples)
    expected = [one.loss for one in target_losses(adapted, examples, groups)]
    plain = [one.loss for one in target_losses(load_model(source), examples, groups)]
    assert [one.loss for one in target_losses(merged, examples, groups)] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(plain, rel=1e-3)
    with pytest.raises(ConfigError, match="4bit"):
        merge_adapter(source.model_copy(update={"quantization": "4bit"}), tmp_path / "adapter", tmp_path / "x")


def test_errors_come_before_work(
    data_dir: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    config, model = EvaluationConfig(), ModelConfig(path=str(tiny_model), device="cpu")
    with pytest.raises(DataError, match=r"mine\.jsonl"):
        evaluate(model, None, [str(tmp_path / "mine.jsonl")], data_dir, tmp_path / "out", config)
    with pytest.raises(ConfigError, match="each once"):
        evaluate(model, None, ["gsm8k", "gsm8k"], data_dir, tmp_path / "out", config)
    other = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                         num_attention_heads=2, num_key_value_heads=2))  # fmt: skip
    foreign = LanguageModel(model=other, tokenizer=SimpleNamespace(), device=torch.device("cpu"), dtype=torch.float32)
    attach_adapter(foreign, AdapterConfig(rank=2), seed=0).model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"another model|shape"):
        evaluate(model, tmp_path / "adapter", ["gsm8k"], data_dir, tmp_path / "out", config)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"gistselect\[eval\]"):
        evaluate(model, None, ["gsm8k"], data_dir, tmp_path / "out", config)


def test_every_protocol_has_a_task_file() -> None:
    pytest.importorskip("lm_eval")
    for name in PROTOCOLS:
        facts = task_facts(name)
        assert facts.version == "1"
        assert facts.average in ("items", "groups")


# Intervals and verdicts


def test_bootstrap_interval_matches_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    interval = bootstrap_mean(values, draws=4000, rng=np.random.default_rng(1))
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.05)


def test_group_means_count_equally() -> None:
    values, groups = np.array([0.0, 0.0, 0.0, 1.0, 1.0]), np.array([0, 0, 0, 1, 1])
    interval = bootstrap_mean(values, groups=groups, rng=np.random.default_rng(0))
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.5, 0.5, 0.5))
    alone = bootstrap_mean(np.array([0.0, 1.0]), groups=np.array([0, 1]), rng=np.random.default_rng(0))
    assert alone.low < 0.5 < alone.high
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_mean(np.array([1.0, np.nan]), rng=np.random.default_rng(0))


@pytest.mark.parametrize("seed_spread", [0.0, 0.05, 0.3])
@pytest.mark.parametrize(("n_gist", "n_random"), [(3, 3), (1, 3), (2, 5)])
def test_null_cases_are_rarely_called_different(n_gist: int, n_random: int, seed_spread: float) -> None:
    rng = np.random.default_rng(7)
    trials, wrong = 400, 0
    for _ in range(trials):
        item = rng.normal(4, 1, 60)
        first, second = (
            item + rng.normal(0, seed_spread, (n, 1)) + rng.normal(0, 0.2, (n, 60)) for n in (n_gist, n_random)
        )
        one = difference_of_runs(first, second, draws=400, rng=rng)
        wrong += not one.low <= 0 <= one.high
    assert wrong / trials < 0.10


def test_planted_effects_are_found_with_the_right_direction() -> None:
    rng = np.random.default_rng(3)
    item = rng.normal(4, 1, 80)

    def arm(name: str, effect: float, n: int, trained: bool = True) -> Arm:
        runs = item + effect + rng.normal(0, 0.02, (n, 1)) + rng.normal(0, 0.1, (n, 80))
        return Arm(name=name, runs=runs, trained=trained)

    arms = [arm("before", 0.9, 1, False), arm("random", 0.5, 3), arm("gist", 0.0, 3), arm("full", -0.5, 2)]
    table = compare("gsm8k", "loss", arms, higher_is_better=False, rng=rng)
    assert [row.arm for row in table.rows] == ["before", "random", "gist", "full"]
    assert table.verdicts[0].startswith("gist: better than before on gsm8k (loss -0.9")
    assert table.verdicts[1].startswith("gist: better than random on gsm8k (loss -0.")
    assert table.verdicts[2].startswith("gist: worse than full on gsm8k (loss +0.")
    flipped = compare("gsm8k", "f1", arms[1:3], higher_is_better=True, rng=rng)
    assert flipped.verdicts[0].startswith("gist: worse than random")
    for row in table.rows:
        assert row.interval.low < row.interval.mean < row.interval.high


def test_verdict_sentences() -> None:
    facts = {
        "task": "bbh",
        "metric": "exact_match",
        "candidate": "gist",
        "baseline": "random",
        "higher_is_better": True,
    }
    sure = Interval(mean=0.1, low=0.05, high=0.15)
    assert verdict(sure, **facts, n_runs=(3, 3)) == (
        "gist: better than random on bbh (exact_match +0.100 ± 0.050, seeds 3 against 3)"
    )
    assert "not distinguishable from random" in verdict(
        Interval(mean=0.1, low=-0.05, high=0.25), **facts, n_runs=(3, 3)
    )
    assert "not judged" in verdict(sure, **facts, n_runs=(1, 1))


def test_more_seeds_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for n in (2, 4, 16):
        one = mean_of_runs(rng.normal(0, 1, (n, 1)) + np.zeros((n, 50)), rng=np.random.default_rng(1))
        widths.append(one.high - one.low)
    assert widths[0] > widths[1] > widths[2]


def test_arms_on_different_items_are_refused() -> None:
    arms = [Arm(name="gist", runs=np.zeros((1, 3))), Arm(name="random", runs=np.zeros((1, 4)))]
    with pytest.raises(DataError, match="different items"):
        compare("bbh", "loss", arms, higher_is_better=False, rng=np.random.default_rng(0))
