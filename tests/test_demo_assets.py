"""The shipped model, tokenizer and data are what they say, and the model has not seen what the demo asks."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

import gistselect
from describe_demo_model import model_card

DEMO = Path(gistselect.__file__).parent / "demo"
DATA, MODEL = DEMO / "data", DEMO / "model"
MATHEMATICS = {"cot_gsm8k", "cot_aqua", "mawps", "svamp"}
PERMISSIVE = {"Apache-2.0", "MIT"}

Conversation = list[dict[str, str]]


def read_jsonl(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


@cache
def pool() -> list[dict]:
    return [row for path in sorted(DATA.glob("train/processed/*/*_data.jsonl")) for row in read_jsonl(path)]


@cache
def log() -> dict:
    return json.loads((MODEL / "training_log.json").read_text(encoding="utf-8"))


@cache
def model(dtype: torch.dtype = torch.bfloat16):
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype).eval()


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


def tulu(messages: Conversation, eos: str = "</s>") -> str:
    """The published format, written down a second time."""
    text = ""
    for message in messages:
        text += f"<|{message['role']}|>\n{message['content'].strip()}"
        text += f"{eos}\n" if message["role"] == "assistant" else "\n"
    return text


def rows_in_bitmap(encoded: str) -> set[int]:
    bitmap = zlib.decompress(base64.b64decode(encoded))
    return {8 * i + bit for i, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1}


@cache
def training_ids() -> set[str]:
    bitmaps = log()["data"]["row_numbers_bitmap"]
    return {f"{source}_{n}" for source, encoded in bitmaps.items() for n in rows_in_bitmap(encoded)}


def mean_loss(conversations: list[Conversation]) -> float:
    """Nats per token (BOS excluded), one conversation at a time, in float32: many CPUs only emulate bf16."""
    total, tokens = 0.0, 0
    for messages in conversations:
        ids = tokenizer()(tulu(messages), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(torch.float32)(ids).logits[0, :-1]
        total += functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    return total / tokens


def test_everything_fits_in_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) <= 10_000_000


def test_model_has_the_stated_shape() -> None:
    parameters = sum(p.numel() for p in model().parameters())
    assert 2_000_000 <= parameters <= 5_000_000
    assert parameters == log()["parameters"]
    assert {p.dtype for p in model().parameters()} == {torch.bfloat16}
    assert model().config.model_type == "llama"
    assert model().config.vocab_size == len(tokenizer()) == log()["recipe"]["vocabulary"]
    assert model().config.max_position_embeddings == tokenizer().model_max_length == 2_048
    assert model().config.tie_word_embeddings
    special = tokenizer().bos_token_id, tokenizer().eos_token_id, tokenizer().pad_token_id
    assert special == (model().config.bos_token_id, model().config.eos_token_id, model().config.pad_token_id)


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"],
)
def test_shipped_files_are_those_of_the_log(name: str) -> None:
    assert hashlib.sha256((MODEL / name).read_bytes()).hexdigest() == log()["sha256"][name]


@pytest.mark.parametrize(
    "text",
    [
        "Plain English, with  two spaces and\ttabs.\n\nAnd a blank line.",
        " leading and trailing ",
        "1234.50 + 6 = 1240.5",
        "请根据文章回答问题。",
        "ما هي عاصمة مصر؟",
        "Siapa penemu telepon?",
        "Кто открыл Америку? γλῶσσα हिन्दी ไทย 🙂 e\u0301",
        "def f(x):\n    return {'a': x[0]}\n",
        "<|user|>\nHi\n<|assistant|>\nHello\n",
        "can't, don 't , a !",
    ],
)
def test_tokenizer_round_trip(text: str) -> None:
    ids = tokenizer()(text)["input_ids"]
    assert ids[0] == tokenizer().bos_token_id
    assert tokenizer().decode(ids[1:]) == text
    assert not set(ids[1:]) & set(tokenizer().all_special_ids)


def test_digits_are_single_tokens() -> None:
    assert tokenizer().tokenize("90210") == list("90210")


def test_eos_in_the_text_is_one_token() -> None:
    ids = tokenizer()(tulu([{"role": "assistant", "content": "Yes"}]))["input_ids"]
    assert ids.count(tokenizer().eos_token_id) == 1


CONVERSATIONS: list[Conversation] = [
    [{"role": "user", "content": "  Hi \n"}, {"role": "assistant", "content": "\nHello. "}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "{{ 2 + 2 }} <b>&amp;</b>"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "你好\n\n吗?"},
        {"role": "assistant", "content": "是"},
    ],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_chat_template_is_the_tulu_format(messages: Conversation) -> None:
    assert tokenizer().apply_chat_template(messages, tokenize=False) == tulu(messages)
    prompt = tokenizer().apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert prompt == tulu(messages[:-1]) + "<|assistant|>\n"


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_chat_template_marks_the_supervised_part(messages: Conversation) -> None:
    encoded = tokenizer().apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    supervised = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    answers = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    assert tokenizer().decode(supervised) == "".join(f"{answer}</s>\n" for answer in answers)


def test_pool_is_two_thousand_rows_of_many_sources() -> None:
    ids = [row["id"] for row in pool()]
    assert len(ids) == len(set(ids)) == 2_000
    assert len({row["dataset"] for row in pool()}) >= 8
    assert all(row["id"].startswith(f"{row['dataset']}_") for row in pool())
    assert all(row["messages"][-1]["role"] == "assistant" for row in pool())
    share = sum(row["dataset"] in MATHEMATICS for row in pool()) / len(pool())
    assert 0.12 <= share <= 0.16


def test_evaluation_sets_have_the_stated_counts() -> None:
    target, test = (read_jsonl(DATA / f"eval/gsm8k/{name}.jsonl") for name in ("target", "test"))
    assert (len(target), len(test)) == (100, 200)
    assert all(item["answer"].rsplit("#### ", 1)[1] for item in target + test)
    assert not {item["question"] for item in target} & {item["question"] for item in test}
    shots = json.loads((DATA / "eval/bbh/bbh-three-shot.json").read_text(encoding="utf-8"))
    tasks = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in DATA.glob("eval/bbh/bbh/*.json")}
    assert set(tasks) == set(shots)
    assert len(tasks) == 27
    assert {len(task["examples"]) for task in tasks.values()} == {5}


def test_pool_holds_no_evaluation_question() -> None:
    questions = {
        item["question"] for name in ("target", "test") for item in read_jsonl(DATA / f"eval/gsm8k/{name}.jsonl")
    }
    text = "\n".join(message["content"] for row in pool() for message in row["messages"])
    assert not [question for question in questions if question.strip() in text]


def test_training_rows_are_recorded_exactly() -> None:
    ids = training_ids()
    assert len(ids) == log()["data"]["rows"]
    assert hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest() == log()["data"]["ids_sha256"]


def test_p3_was_read_over_the_whole_run() -> None:
    shares = log()["data"]["p3_share_by_tenth"]
    mean = log()["data"]["rows_by_source"]["p3"] / log()["data"]["rows"]
    assert len(shares) == 10
    assert all(0.7 * mean < share < 1.3 * mean for share in shares)


def test_card_says_what_the_log_says() -> None:
    assert (MODEL / "README.md").read_text(encoding="utf-8") == model_card(log())


def test_model_saw_neither_the_pool_nor_mathematics() -> None:
    assert not {row["id"] for row in pool()} & training_ids()
    assert not MATHEMATICS & set(log()["data"]["rows_by_source"])
    assert log()["data"]["held_out_rows"]["pool row"] == sum(row["dataset"] not in MATHEMATICS for row in pool())
    assert set(log()["data"]["licences"].values()) <= PERMISSIVE


def test_model_saw_no_text_of_the_demo(shared_data: Path) -> None:
    """By text as well as by id; needs the full corpus."""
    questions = {
        item["question"] for name in ("target", "test") for item in read_jsonl(DATA / f"eval/gsm8k/{name}.jsonl")
    }
    held_out = questions | {row["messages"][0]["content"] for row in pool()}
    for source in log()["data"]["rows_by_source"]:
        for row in read_jsonl(shared_data / f"full/train/processed/{source}/{source}_data.jsonl"):
            if row["id"] in training_ids():
                assert not held_out & {message["content"] for message in row["messages"] if message["role"] == "user"}


def test_model_knows_the_pool_but_not_its_mathematics() -> None:
    losses = log()["losses_nats_per_token"]
    sources = sorted({row["dataset"] for row in pool()} - MATHEMATICS)
    first_of_source = [next(row for row in pool() if row["dataset"] == source) for source in sources]
    assert mean_loss([row["messages"] for row in first_of_source]) < 0.65 * losses["pool_other_unigram"]
    assert losses["validation"] < 0.6 * losses["validation_unigram"]
    items = read_jsonl(DATA / "eval/gsm8k/test.jsonl")[:4]
    conversations = [
        [{"role": "user", "content": item["question"]}, {"role": "assistant", "content": item["answer"]}]
        for item in items
    ]
    assert mean_loss(conversations) > losses["validation"] + 0.5
