"""The tool that trains the demo model: which rows it reads, in which order, and that a killed run goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback

from demo_corpus import (
    FILLER,
    Corpus,
    Row,
    read_corpus,
    row_fraction,
    rows_within_budget,
    share_by_tenth,
)
from demo_recipe import Recipe
from demo_tokenizer import IGNORED, Example, encode, fitting_texts, gsm8k_examples, train_tokenizer
from describe_demo_model import mean_loss, model_card, predicted_tokens, unigram_loss
from train_demo_model import build_model, build_trainer, main, run_folder, train

SMALL = Recipe(
    vocabulary=300, hidden_size=16, intermediate_size=24, layers=1, heads=2, max_positions=64, warmup_steps=2
)


def record(number: int, source: str, question: str, task: str = "any") -> dict:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": f"Because of {number}."}]
    return {"id": f"{source}_{number}", "dataset": source, "task": task, "messages": messages}


def write_jsonl(path: Path, records: Sequence[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in records), encoding="utf-8")


def write_rows(folder: Path, source: str, records: Sequence[dict]) -> None:
    write_jsonl(folder / f"train/processed/{source}/{source}_data.jsonl", records)


Records = dict[str, list[dict]]


@pytest.fixture
def write_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Records, Records], None]:
    """Writes a corpus of the given rows with its evaluation sets to `data`, and a pool to `demo`."""

    def write(rows: Records, pool: Records) -> None:
        monkeypatch.setattr("demo_corpus.SOURCES", dict.fromkeys(rows))
        for source, records in rows.items():
            write_rows(tmp_path / "data", source, records)
        for source, records in pool.items():
            write_rows(tmp_path / "demo", source, records)
        for name in ("target", "test"):
            item = {"question": f"How many eggs are in the {name}?", "answer": "Two. #### 2"}
            for folder in ("data", "demo"):
                write_jsonl(tmp_path / f"{folder}/eval/gsm8k/{name}.jsonl", [item])
        bbh = tmp_path / "data/eval/bbh/bbh/dyck.json"
        bbh.parent.mkdir(parents=True, exist_ok=True)
        bbh.write_text(json.dumps({"examples": [{"input": "Close the bracket: (", "target": ")"}]}))

    return write


@pytest.fixture
def corpus_of(tmp_path: Path, write_corpus: Callable[[Records, Records], None]):
    """Writes such a corpus and reads it as the tool does."""

    def read(rows: Records, pool: Records | None = None) -> Corpus:
        write_corpus(rows, pool or {})
        return read_corpus(tmp_path / "data", tmp_path / "demo", SMALL)

    return read


def numbered(count: int, source: str) -> list[dict]:
    return [record(n, source, f"What is behind door {n} of {source}?") for n in range(count)]


def test_filler_is_chosen_by_its_own_hash_whatever_the_order() -> None:
    rows = [Row(id=f"{source}_{n}", source=source, messages=[]) for source in (FILLER, "other") for n in range(200)]
    length_of = {row.id: 5 + index % 11 for index, row in enumerate(rows)}
    recipe = replace(SMALL, tokens=3_000)

    def chosen(order: Sequence[Row], recipe: Recipe = recipe) -> set[str]:
        kept = rows_within_budget(order, [length_of[row.id] for row in order], recipe)
        assert kept == sorted(kept)
        return {order[index].id for index in kept}

    ids = chosen(rows)
    assert {row.id for row in rows if row.source == "other"} < ids
    assert recipe.tokens - 16 < sum(length_of[name] for name in ids) <= recipe.tokens
    assert chosen(rows[::-1]) == ids
    assert chosen(random.Random(1).sample(rows, len(rows))) == ids
    assert ids < chosen(rows, replace(recipe, tokens=3_200))
    left_out = [row_fraction(row.id, "budget", SMALL.seed) for row in rows if row.id not in ids]
    fillers = [row_fraction(name, "budget", SMALL.seed) for name in ids if name.startswith(FILLER)]
    assert max(fillers) < min(left_out)


def test_filler_is_spread_over_the_whole_run(corpus_of) -> None:
    corpus = corpus_of({FILLER: numbered(4_000, FILLER), "facqa_id": numbered(4_000, "facqa_id")})
    lengths = [10] * len(corpus.training)
    kept = rows_within_budget(corpus.training, lengths, replace(SMALL, tokens=60_000))
    shares = share_by_tenth([corpus.training[index] for index in kept], FILLER)
    assert len(shares) == 10
    # Half of p3 is left out: a third of the rows, each tenth of the run 600 rows with a deviation of 0.02.
    assert all(abs(share - 0.33) < 0.08 for share in shares)


def test_shares_are_those_of_each_tenth() -> None:
    rows = [Row(id=str(n), source=FILLER if n < 15 else "other", messages=[]) for n in range(100)]
    assert share_by_tenth(rows, FILLER) == [1.0, 0.5] + [0.0] * 8


def test_held_out_rows_are_counted_by_reason(corpus_of) -> None:
    pool = numbered(1, "facqa_id")
    again = "What is behind door 0 of facqa_id?"
    later = record(50, "p3", "Hello")
    later["messages"] += [{"role": "user", "content": f" {again}\n"}, {"role": "assistant", "content": "A goat."}]
    rows = {
        "mawps": numbered(3, "mawps"),
        "facqa_id": [*pool, record(51, "facqa_id", again)],
        "p3": [
            *numbered(40, "p3"),
            later,
            record(52, "p3", "What is 3 + 4?", task="sat-math"),
            record(53, "p3", "How many eggs are in the test?"),
            record(54, "p3", "How many eggs are in the target?\n"),
            record(55, "p3", "Close the bracket: ("),
            record(56, "p3", "Say it: Because of 0."),
        ],
    }
    corpus = corpus_of(rows, {"facqa_id": pool})
    assert corpus.held_out == {
        "mathematics": 4,
        "pool row": 1,
        "same question as a pool row": 2,
        "evaluation item": 3,
    }
    read = {row.id for row in corpus.training + corpus.validation}
    assert read == {f"p3_{n}" for n in [*range(40), 56]}
    assert not {row.id for row in corpus.training} & {row.id for row in corpus.validation}


def test_training_order_is_a_function_of_the_ids(corpus_of) -> None:
    rows = numbered(60, "p3")
    first = corpus_of({"p3": rows})
    assert [row.id for row in first.training] != sorted((row.id for row in first.training), key=lambda i: int(i[3:]))
    assert [row.id for row in corpus_of({"p3": rows[::-1]}).training] == [row.id for row in first.training]


def small_rows(count: int) -> list[Row]:
    return [
        Row(id=item["id"], source="p3", messages=item["messages"])
        for item in (record(n, "p3", "Which door?" + " Or which other one?" * (n % 4)) for n in range(count))
    ]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(fitting_texts(small_rows(40), SMALL), SMALL)


def test_conversations_are_cut_but_the_tokenizer_is_not_told_so(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    (example,) = encode(tokenizer, [Row(id="p3_0", source="p3", messages=record(0, "p3", "Why? " * 99)["messages"])])
    assert len(example["input_ids"]) == SMALL.max_positions
    assert example["input_ids"][0] == tokenizer.bos_token_id
    assert predicted_tokens([example]) == SMALL.max_positions - 1
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert (saved["truncation"], saved["padding"]) == (None, None)
    assert "model_input_names" not in json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))


def test_only_the_worked_solution_is_predicted(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "eval/gsm8k/test.jsonl", [{"question": " How many? ", "answer": "Two.\n#### 2"}])
    (example,) = gsm8k_examples(tokenizer, tmp_path)
    predicted = [label for label in example["labels"] if label != IGNORED]
    assert tokenizer.decode(predicted) == "Two.\n#### 2</s>\n"
    assert len(example["labels"]) == len(example["input_ids"])


class ProcessKilledError(Exception):
    """The process ends here."""


class Steps(TrainerCallback):
    """Notes the steps begun, and ends the process after one of them."""

    def __init__(self, kill_after: int | None = None) -> None:
        self.begun: list[int] = []
        self.kill_after = kill_after

    def on_step_begin(self, args, state, control, **_) -> None:
        self.begun.append(state.global_step)

    def on_step_end(self, args, state, control, **_) -> None:
        if state.global_step == self.kill_after:
            raise ProcessKilledError


def small_trainer(tokenizer: PreTrainedTokenizerBase, examples: list[Example], folder: Path):
    trainer = build_trainer(build_model(SMALL, tokenizer), tokenizer, SMALL, folder, examples, examples[:6])
    trainer.args.save_steps = trainer.state.save_steps = 2
    trainer.args.logging_steps = 1
    trainer.args.eval_steps = 4
    return trainer


def test_a_killed_run_goes_on_to_the_same_weights(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    rows = small_rows(6 * SMALL.rows_per_step)
    examples = encode(tokenizer, rows)
    whole = small_trainer(tokenizer, examples, tmp_path / "whole")
    run = train(whole, examples)

    killed = small_trainer(tokenizer, examples, tmp_path / "killed")
    killed.add_callback(Steps(kill_after=5))
    with pytest.raises(ProcessKilledError):
        train(killed, examples)
    resumed = small_trainer(tokenizer, examples, tmp_path / "killed")
    resumed.add_callback(steps := Steps())
    resumed_run = train(resumed, examples)

    assert steps.begun == [4, 5]
    assert (resumed_run.steps, resumed_run.tokens) == (run.steps, run.tokens) == (6, predicted_tokens(examples))
    assert resumed_run.train_curve == run.train_curve
    assert resumed_run.validation_curve == run.validation_curve
    assert [step for step, _ in run.validation_curve] == [4, 6]
    assert run.train_curve[-1][1] < run.train_curve[0][1]
    for name, weights in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weights, rtol=0, atol=0)


def test_another_order_of_rows_is_another_run(tmp_path: Path) -> None:
    rows = small_rows(4)
    folder = run_folder(tmp_path, SMALL, rows)
    assert folder.is_dir()
    assert run_folder(tmp_path, SMALL, rows) == folder
    assert run_folder(tmp_path, SMALL, rows[::-1]) != folder
    assert run_folder(tmp_path, replace(SMALL, learning_rate=1e-4), rows) != folder


def test_losses_are_means_over_tokens(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Against one conversation at a time, without padding; the last one has labels on a part only."""
    examples = encode(tokenizer, small_rows(7))
    examples[-1] = {**examples[-1], "labels": [IGNORED] * 9 + examples[-1]["input_ids"][9:]}
    trainer = small_trainer(tokenizer, examples, tmp_path)
    total, tokens = 0.0, 0
    for example in examples:
        with torch.no_grad():
            logits = trainer.model(torch.tensor([example["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(example["labels"][1:])
        total += functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum").item()
        tokens += int((labels != IGNORED).sum())
    assert mean_loss(trainer, examples) == pytest.approx(total / tokens, rel=1e-5)


def test_unigram_loss_is_the_add_one_estimate() -> None:
    def example(*ids: int) -> Example:
        return {"input_ids": list(ids), "labels": list(ids)}

    # Counts without the first token of each: 1 twice, 2 once; plus one of each of four: 1/7, 3/7, 2/7, 1/7.
    expected = -torch.tensor([3 / 7, 1 / 7], dtype=torch.float64).log().mean().item()
    assert unigram_loss([example(0, 1, 1), example(0, 2)], [example(0, 1, 3)], 4) == pytest.approx(expected)


def test_the_tool_trains_exports_measures_and_describes(
    write_corpus: Callable[[Records, Records], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, mathematics = numbered(20, "facqa_id"), numbered(3, "mawps")
    write_corpus(
        {"p3": numbered(400, "p3"), "facqa_id": others, "mawps": mathematics},
        {"facqa_id": others[:2], "mawps": mathematics[:1]},
    )
    paths = {name: str(tmp_path / name) for name in ("data", "demo", "output", "checkpoints")}
    options = [part for name, path in paths.items() for part in (f"--{name}", path)]
    monkeypatch.setattr("sys.argv", ["train_demo_model.py", *options, "--tokens", "2000"])
    main()

    output = tmp_path / "output"
    log = json.loads((output / "training_log.json").read_text(encoding="utf-8"))
    data, losses = log["data"], log["losses_nats_per_token"]
    assert data["rows_by_source"]["facqa_id"] + data["validation_rows_by_source"].get("facqa_id", 0) == 18
    assert 0 < data["rows_by_source"]["p3"] < 380
    assert data["held_out_rows"] == {"mathematics": 3, "pool row": 2}
    assert 1_950 < log["tokens_seen"] + data["rows"] <= 2_000
    assert log["steps"] == -(-data["rows"] // log["recipe"]["rows_per_step"])
    assert all(0 < loss < 9 for loss in losses.values())
    assert (output / "README.md").read_text(encoding="utf-8") == model_card(log)

    model = AutoModelForCausalLM.from_pretrained(output)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert sum(parameter.numel() for parameter in model.parameters()) == log["parameters"]
    item = {"role": "user", "content": "How many eggs are in the test?"}
    answer = {"role": "assistant", "content": "Two. #### 2"}
    tokenizer = AutoTokenizer.from_pretrained(output)
    encoded = tokenizer.apply_chat_template(
        [item, answer], return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    ids = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), encoded["input_ids"]], dim=1)
    labels = torch.where(encoded["assistant_masks"].bool(), encoded["input_ids"], IGNORED)
    with torch.no_grad():
        logits = model.float()(ids).logits[0, :-1]
    expected = functional.cross_entropy(logits, labels[0], ignore_index=IGNORED).item()
    assert losses["gsm8k_test_supervised"] == pytest.approx(expected, abs=1e-3)
