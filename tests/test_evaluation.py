"""A model on protocols and own targets: the loop through lm-eval, what is written and read again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
)

from gistselect.errors import ConfigError, DataError, MissingDependencyError, ModelError
from gistselect.evaluation import catalog, harness
from gistselect.evaluation.catalog import task_facts
from gistselect.evaluation.config import EvaluationConfig
from gistselect.evaluation.results import TaskResult, item_values, items_path, read_values, write_items
from gistselect.evaluation.session import evaluate
from gistselect.evaluation.verdict import compare_values
from gistselect.files import read_json_lines
from gistselect.model.adapters import AdapterConfig, attach_adapter
from gistselect.model.loading import LanguageModel, ModelConfig, load_model
from gistselect.tasks import PROTOCOLS


@pytest.fixture(scope="module")
def language_model(tiny_model: Path) -> LanguageModel:
    return load_model(ModelConfig(path=str(tiny_model), device="cpu"))


# Through lm-eval


def test_all_protocols_run_offline(less_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
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
        less_folder,
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


def test_mmlu_likelihoods_equal_the_models_own(
    less_folder: Path, language_model: LanguageModel, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    config = EvaluationConfig(limit=2, draws=100)
    evaluate(language_model, None, ["mmlu"], less_folder, tmp_path, config)
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
    less_folder: Path, language_model: LanguageModel, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    config = EvaluationConfig(limit=1, max_length=200, max_new_tokens=4, draws=100)
    (task,) = evaluate(language_model, None, ["gsm8k"], less_folder, tmp_path, config).tasks
    (row,) = [json.loads(line) for line in (tmp_path / "prompts" / "gsm8k.jsonl").open(encoding="utf-8")]
    assert (task.n_fewer_shots, task.n_cut) == (1, 0)
    assert 0 < row["n_shots"] < 8
    assert row["prompt"].count("Question:") == row["n_shots"] + 1
    assert len(language_model.tokenizer(row["prompt"])["input_ids"]) <= 196


def test_same_seed_same_results(less_folder: Path, language_model: LanguageModel, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    config = EvaluationConfig(limit=2, max_new_tokens=4, draws=100)
    results = [
        evaluate(language_model, None, ["gsm8k"], less_folder, tmp_path / name, config.model_copy(update=changed)).tasks
        for name, changed in (("a", {}), ("b", {"batch_size": 1}))
    ]
    assert results[0][0].metrics["loss"].mean == pytest.approx(results[1][0].metrics["loss"].mean, rel=1e-6)
    assert results[0][0].prompt_digest == results[1][0].prompt_digest
    assert results[0][0].metrics["exact_match"] == results[1][0].metrics["exact_match"]


def test_tasks_of_lm_eval_itself(
    less_folder: Path, language_model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task under a name of its own stands in for lm-eval's, whose data sets need the network."""
    pytest.importorskip("lm_eval")
    config = EvaluationConfig(limit=2, max_new_tokens=4, draws=100)
    (ours,) = evaluate(language_model, None, ["gsm8k"], less_folder, tmp_path, config).tasks

    def load_other_tasks(names: list[str], seed: int) -> dict[str, object]:
        return {names[0]: harness.load_own_task("gsm8k", tmp_path / "prompts" / "gsm8k.jsonl")}

    def with_shots(names: list[str], seed: int) -> dict[str, Any]:
        loaded: dict[str, Any] = load_other_tasks(names, seed)
        loaded[names[0]].set_config(key="num_fewshot", value=1)
        return loaded

    monkeypatch.setattr(harness, "load_other_tasks", load_other_tasks)
    name = harness.PREFIX + "gsm8k"
    (theirs,) = evaluate(language_model, None, [name], None, tmp_path / "other", config).tasks
    assert theirs.metrics["exact_match"].mean == ours.metrics["exact_match"].mean
    assert theirs.aggregates == {"exact_match,none": ours.metrics["exact_match"].mean}
    assert theirs.n_items == 2
    monkeypatch.setattr(harness, "load_other_tasks", with_shots)
    evaluate(language_model, None, [name], None, tmp_path / "shots", config)
    assert {item["n_shots"] for item in read_json_lines(items_path(tmp_path / "shots", name))} == {1}
    assert {item["n_shots"] for item in read_json_lines(items_path(tmp_path / "other", name))} == {0}


def test_errors_come_before_work(
    less_folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    config, model = EvaluationConfig(), ModelConfig(path=str(tiny_model), device="cpu")
    with pytest.raises(DataError, match=r"mine\.jsonl"):
        evaluate(model, None, [str(tmp_path / "mine.jsonl")], less_folder, tmp_path / "out", config)
    with pytest.raises(ConfigError, match="each once"):
        evaluate(model, None, ["gsm8k", "gsm8k"], less_folder, tmp_path / "out", config)
    other = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                         num_attention_heads=2, num_key_value_heads=2))  # fmt: skip
    foreign = LanguageModel(model=other, tokenizer=SimpleNamespace(), device=torch.device("cpu"), dtype=torch.float32)
    attach_adapter(foreign, AdapterConfig(rank=2), seed=0).model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"another model|shape"):
        evaluate(model, tmp_path / "adapter", ["gsm8k"], less_folder, tmp_path / "out", config)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(catalog, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"gistselect\[eval\]"):
        evaluate(model, None, ["gsm8k"], less_folder, tmp_path / "out", config)


def test_every_protocol_has_a_task_file() -> None:
    pytest.importorskip("lm_eval")
    for name in PROTOCOLS:
        facts = task_facts(name)
        assert facts.version == "1"
        assert facts.average in ("items", "groups")


# What is written, read again and compared


def write_own(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def own_rows(groups: str) -> list[dict[str, str]]:
    return [{"prompt": f"say {i}", "completion": f"{i} and", "group": group} for i, group in enumerate(groups)]


def test_a_mean_is_the_same_in_results_and_comparison(
    language_model: LanguageModel, less_folder: Path, tmp_path: Path
) -> None:
    """Groups of one's own targets count equally, MMLU's items do, whoever reads them."""
    pytest.importorskip("lm_eval")
    own = write_own(tmp_path / "mine.jsonl", own_rows("aaaab"))
    output = tmp_path / "out"
    result = evaluate(language_model, None, ["mmlu", str(own)], less_folder, output, EvaluationConfig(draws=100))
    read = read_values(output)
    assert list(read) == ["mmlu", "mine"]
    for task in result.tasks:
        assert [values.metric for values in read[task.name]] == list(task.metrics)
        for values in read[task.name]:
            compared = compare_values(
                [("gist", [values, values]), ("before", [values])],
                rng=np.random.default_rng(0),
                candidate="gist",
                untrained="before",
                draws=100,
                level=0.5,
            )
            assert compared.level == 0.5
            for row in compared.rows:
                assert row.interval.mean == pytest.approx(task.metrics[values.metric].mean, rel=1e-12)
    losses = read["mine"][0].values
    assert result.tasks[1].average == "groups"
    assert result.tasks[1].metrics["loss"].mean == pytest.approx((losses[:4].mean() + losses[4]) / 2)
    assert result.tasks[1].metrics["loss"].mean != pytest.approx(losses.mean())
    assert result.tasks[0].metrics["loss"].mean == pytest.approx(read["mmlu"][1].values.mean())


def test_items_that_do_not_fit_are_left_out_of_every_arm_and_named(
    language_model: LanguageModel, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    rows = own_rows("aabb")
    rows[2] |= {"prompt": "long " * 1024, "id": "the long one"}
    rows[3] |= {"completion": "long " * 1024}
    own = write_own(tmp_path / "mine.jsonl", rows)
    options = EvaluationConfig(draws=100)
    for arm in ("first", "second"):
        (task,) = evaluate(language_model, None, [str(own)], None, tmp_path / arm, options).tasks
    first, second = (read_values(tmp_path / arm)["mine"][0] for arm in ("first", "second"))
    assert len(first.ids) == 3
    assert "the long one" not in first.ids
    assert first.ids == second.ids
    assert task.without_loss == ("the long one",)
    assert (task.n_items, "no loss for 1 items" in task.summary, "'the long one'" in task.summary) == (4, True, True)
    assert task.n_cut_references == 1
    assert "the loss of 1 items is that of the part that fits" in task.summary
    lines = read_json_lines(tmp_path / "first" / "items" / "mine.jsonl")
    assert "no supervised token is left" in lines[2]["no_loss"]


def test_line_separators_in_text_survive(language_model: LanguageModel, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = [
        {"id": f"{i}\u2028", "prompt": "a\x85b\u2029", "completion": "c\u2028d", "group": "g\u2028\x0b\x1e"}
        for i in range(3)
    ]
    own = write_own(tmp_path / "mine.jsonl", rows)
    options = EvaluationConfig(draws=100, exact_match=True, max_new_tokens=2)
    evaluate(language_model, None, [str(own)], None, tmp_path / "out", options)
    exact, loss = read_values(tmp_path / "out")["mine"]
    assert exact.ids == loss.ids == ("0\u2028", "1\u2028", "2\u2028")
    assert loss.groups == ("g\u2028\x0b\x1e",) * 3
    prompts = read_json_lines(tmp_path / "out" / "prompts" / "mine.jsonl")
    assert [one["answers"] for one in prompts] == [["c\u2028d</s>"]] * 3


def test_every_own_target_keeps_its_prompts(language_model: LanguageModel, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    files = [write_own(tmp_path / f"{name}.v2.jsonl", own_rows(name)) for name in ("ab", "cde")]
    options = EvaluationConfig(draws=100, exact_match=True, max_new_tokens=2)
    result = evaluate(language_model, None, [str(one) for one in files], None, tmp_path / "out", options)
    assert [task.name for task in result.tasks] == ["ab", "cde"]
    for task in result.tasks:
        prompts = read_json_lines(tmp_path / "out" / "prompts" / f"{task.name}.jsonl")
        assert [one["group"] for one in prompts] == list(task.name)


def test_an_item_without_a_value_is_an_error_that_names_it() -> None:
    items = [{"id": "first", "group": "", "f1": 1.0}, {"id": "second", "group": ""}]
    with pytest.raises(DataError, match=r"'second' has no finite 'f1' \(found None\)"):
        item_values("mine", "f1", items, average="items", higher_is_better=True)
    items[1]["f1"] = float("nan")
    with pytest.raises(DataError, match=r"'second' has no finite 'f1' \(found nan\)"):
        item_values("mine", "f1", items, average="items", higher_is_better=True)


def test_arms_on_other_items_are_refused_by_their_ids() -> None:
    one, other = (
        item_values("mine", "f1", [{"id": id, "group": "", "f1": 1.0}], average="items", higher_is_better=True)
        for id in ("a", "b")
    )
    with pytest.raises(DataError, match="'gist' and 'random' were evaluated on different items"):
        compare_values([("gist", [one]), ("random", [other])], rng=np.random.default_rng(0), candidate="gist")


def test_a_likelihood_that_is_not_a_number_chooses_nothing(tiny_model: Path, less_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    broken = load_model(ModelConfig(path=str(tiny_model), device="cpu"))
    with torch.no_grad():
        broken.model.get_output_embeddings().weight[5] = float("nan")
    options = EvaluationConfig(limit=1, draws=100, losses=False)
    with pytest.raises(DataError, match=r"mmlu, item 'mmlu/anatomy/\d': the likelihood of an answer is not a number"):
        evaluate(broken, None, ["mmlu"], less_folder, tmp_path / "out", options)
    assert not (tmp_path / "out" / "results.json").exists()


def test_data_of_lm_eval_that_cannot_be_had_is_a_sentence(
    language_model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")

    def load(names: list[str]) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(harness, "lm_eval_index", lambda: SimpleNamespace(all_tasks=["arc_easy"], load=load))
    with pytest.raises(DataError, match="data of lm-eval's arc_easy: no network"):
        evaluate(language_model, None, ["arc_easy"], None, tmp_path / "out", EvaluationConfig())


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    write_items(tmp_path, "mine", [{"id": "a", "group": "", "loss": 1.0}])
    before = items_path(tmp_path, "mine").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_items(tmp_path, "mine", [{"id": "a", "group": "", "loss": 2.0}, {"id": "b", "loss": float("nan")}])
    assert items_path(tmp_path, "mine").read_bytes() == before
    assert [path.name for path in items_path(tmp_path, "mine").parent.iterdir()] == ["mine.jsonl"]


def test_a_name_of_lm_eval_is_never_a_path(tmp_path: Path) -> None:
    assert items_path(tmp_path, "../../x/y").parent == tmp_path / "items"


# Tasks of lm-eval

OTHER = """
task: {name}
custom_dataset: !function gistselect.evaluation.harness.read_prompts
test_split: test
doc_to_text: prompt
doc_to_target: reference
num_fewshot: 0
metadata: {{version: 3}}
"""
TWO_FILTERS = """
output_type: generate_until
generation_kwargs: {until: ["\\n"], max_gen_toks: 2, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: strict, filter: [{function: regex, regex_pattern: "never (x)", fallback: ""}, {function: take_first}]}
  - {name: flexible, filter: [{function: regex, regex_pattern: "never (x)", fallback: "yes"}, {function: take_first}]}
"""
PERPLEXITY = """
output_type: loglikelihood
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


def run_other(
    name: str, text: str, language_model: LanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> TaskResult:
    """A task file of its own stands in for lm-eval's, whose data sets need the network."""
    from lm_eval.tasks import TaskManager

    (folder / "tasks").mkdir()
    (folder / "tasks" / f"{name}.yaml").write_text(OTHER.format(name=name) + text, encoding="utf-8")
    documents = write_own(folder / "documents.jsonl", [{"prompt": f"say {i}", "reference": "yes"} for i in range(3)])
    manager = TaskManager(include_path=folder / "tasks", include_defaults=False, metadata={"prompts": str(documents)})
    monkeypatch.setattr(harness, "lm_eval_index", lambda: manager)
    options = EvaluationConfig(draws=100)
    (task,) = evaluate(language_model, None, [name], None, folder / "out", options).tasks
    return task


def test_each_filter_is_a_metric_and_each_item_counts_once(
    language_model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    task = run_other("two_filters", TWO_FILTERS, language_model, tmp_path, monkeypatch)
    assert task.n_items == 3
    assert {name: one.mean for name, one in task.metrics.items()} == {
        "exact_match,strict": 0.0,
        "exact_match,flexible": 1.0,
    }
    assert task.aggregates == {"exact_match,strict": 0.0, "exact_match,flexible": 1.0}
    values = read_values(tmp_path / "out")["two_filters"]
    assert [(one.metric, one.values.tolist(), one.groups) for one in values] == [
        ("exact_match,strict", [0.0] * 3, None),
        ("exact_match,flexible", [1.0] * 3, None),
    ]


def test_only_what_is_a_mean_of_items_is_averaged_over_them(
    language_model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The perplexity of a task is the exponential of its items' log-likelihoods, in which more is better."""
    pytest.importorskip("lm_eval")
    task = run_other("language", PERPLEXITY, language_model, tmp_path, monkeypatch)
    assert list(task.metrics) == ["acc"]
    assert task.aggregates.keys() == {"perplexity,none", "acc,none"}
    perplexity = task.aggregates["perplexity,none"]
    assert perplexity is not None
    assert perplexity > 1
    assert [one.metric for one in read_values(tmp_path / "out")["language"]] == ["acc"]
