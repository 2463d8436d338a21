"""Fixtures shared by the tests."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import reference_errors
from tiny_runs import WARMUP, write_pool, write_target

# Tiny models gain nothing from threads, and two test processes with two each would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Begun in the background of a shell, tests would ignore Ctrl-C, and so would the commands that some of them interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--reference-errors`: print how far each formula is from its reference; in one process."""
    parser.addoption("--reference-errors", action="store_true", help="print errors against references; one process")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What the tests have measured, if that was asked for."""
    if config.getoption("--reference-errors"):
        terminalreporter.write_line("\n".join(reference_errors.lines()))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real data sets (`small/`, `full/`); the test is skipped where it is absent."""
    folder = Path(os.environ.get("GISTSELECT_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "small").is_dir():
        pytest.skip(f"no data sets at {folder}; set GISTSELECT_DATA")
    return folder


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A server that speaks S3 on this machine, with a bucket named `pool`."""
    server_of = pytest.importorskip("moto.server", reason="moto is not installed")
    s3fs = pytest.importorskip("s3fs")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "unheard-of-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("NO_PROXY", host)
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("pool")
        yield "s3://pool"
    server.stop()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama model with two layers of 32 units and a byte-level BPE tokenizer, both seeded."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(["<|user|>\nWhat is the sum of the numbers?\n<|assistant|>\nThe answer is 42."], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a seeded BERT with two layers of 16 units, 24 positions and a vocabulary of letters."""
    import string

    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny encoder"
    letters = [*string.ascii_lowercase, *string.digits, "?", "."]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    BertTokenizer(vocab={name: index for index, name in enumerate(names)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(names),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _span(language: str, number: int) -> dict[str, object]:
    return {
        "id": f"{language}-{number}",
        "context": f"word {number} " * 5,
        "question": f"what number {number} in {language}?",
        "answers": [{"text": f"{number}", "answer_start": 5}],
    }


@pytest.fixture
def less_folder(tmp_path: Path) -> Path:
    """A small LESS-style folder with files of every published task."""
    from gistselect.tasks.tydiqa import PHRASES

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
    _write_json(folder / "bbh" / "bbh-three-shot.json", prompts)
    for task in prompts:
        examples = [{"input": f"{task} {i}", "target": f"({i})"} for i in range(3)]
        _write_json(folder / "bbh" / "bbh" / f"{task}.json", {"examples": examples})
    _write_json(folder / "tydiqa" / "tydiqa-one-shot.json", {name: [_span(name, 99)] for name in PHRASES})
    gold = [{"paragraphs": [{"context": one.pop("context"), "qas": [one]}]} for one in
            (_span(name, i) for name in PHRASES for i in range(3))]  # fmt: skip
    _write_json(folder / "tydiqa" / "tydiqa-goldp-v1.1-dev.json", {"data": gold})
    (folder / "gsm8k").mkdir()
    for name, start, count in (("target", 0, 10), ("test", 50, 3)):
        rows = [
            json.dumps({"question": f"how many {start + i}?", "answer": f"It is {i}.\n#### {i}"}) for i in range(count)
        ]
        (folder / "gsm8k" / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder.parent


@pytest.fixture
def pool_file(tmp_path: Path) -> Path:
    """See `tiny_runs.write_pool`."""
    return write_pool(tmp_path / "pool.jsonl")


@pytest.fixture
def target_file(tmp_path: Path) -> Path:
    """See `tiny_runs.write_target`."""
    return write_target(tmp_path / "sums.jsonl")


@pytest.fixture
def config(tiny_model: Path, pool_file: Path, target_file: Path, tmp_path: Path) -> dict[str, Any]:
    """Options of a run that takes a second."""
    return {
        "model": str(tiny_model),
        "pool": (str(pool_file),),
        "target": (str(target_file),),
        "budget": 10,
        "output": tmp_path / "run",
        "warmup": WARMUP,
        "warmup_share": 0.3,
        "device": "cpu",
    }
