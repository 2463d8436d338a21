"""The losses of the demo model, the log of its training and its card."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from datasets import Dataset, Features, Value
from torch import Tensor
from torch.nn import functional
from transformers import EvalPrediction, PreTrainedTokenizerBase, Trainer

from build_demo_data import SOURCES, write_text
from demo_corpus import FILLER, Corpus, Row, share_by_tenth
from demo_recipe import Recipe
from demo_tokenizer import IGNORED, Example, encode, gsm8k_examples

EXPORTED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What the training left behind beside the weights."""

    parameters: int
    steps: int
    tokens: int
    seconds: float
    train_curve: list[tuple[int, float]]
    """(step, nats per token since the last entry)"""
    validation_curve: list[tuple[int, float]]
    """(step, nats per token on a fixed part of the validation rows)"""


def predicted_tokens(examples: Iterable[Example]) -> int:
    """Labelled tokens but the first of each conversation, which nothing predicts."""
    return sum(label != IGNORED for example in examples for label in example["labels"][1:])


def keep_token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Nats (b, t - 1) of each predicted token, from logits (b, t, v); 0 where there is no label."""
    return functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
    )


def mean_token_loss(prediction: EvalPrediction) -> dict[str, float]:
    """Nats per token over the whole set: long conversations count by their tokens."""
    labelled = np.asarray(prediction.label_ids)[:, 1:] != IGNORED
    return {"token_loss": float(np.asarray(prediction.predictions)[labelled].mean(dtype=np.float64))}


def as_dataset(examples: Sequence[Example]) -> Dataset:
    tokens = [Value("int64")]
    columns = {name: [example[name] for example in examples] for name in ("input_ids", "labels")}
    return Dataset.from_dict(columns, features=Features(dict.fromkeys(columns, tokens)))


def mean_loss(shipped: Trainer, examples: Sequence[Example]) -> float:
    longest_first = sorted(examples, key=lambda example: -len(example["input_ids"]))
    dataset = as_dataset(longest_first)
    # The annotation of `evaluate` leaves out the data sets that `Trainer` itself takes.
    return shipped.evaluate(dataset)["eval_token_loss"]  # pyright: ignore[reportArgumentType]


def unigram_loss(training: Iterable[Example], held_out: Iterable[Example], vocabulary: int) -> float:
    """Nats per held-out token (BOS excluded) under the add-one unigram distribution of the training text."""
    counts = torch.ones(vocabulary, dtype=torch.float64)
    for example in training:
        counts += torch.bincount(torch.tensor(example["input_ids"][1:]), minlength=vocabulary)
    log_probability = (counts / counts.sum()).log()
    tokens = torch.tensor([token for example in held_out for token in example["input_ids"][1:]])
    return -log_probability[tokens].mean().item()


def measure(
    shipped: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    trained: Sequence[Example],
    demo: Path,
    vocabulary: int,
) -> dict[str, float]:
    """Losses of the shipped bf16 weights in float32 arithmetic, as a run on a CPU has them, in nats per token."""
    validation = encode(tokenizer, corpus.validation)
    pool = {
        mathematics: encode(tokenizer, [row for row in corpus.pool if SOURCES[row.source].mathematics is mathematics])
        for mathematics in (False, True)
    }
    by_source = {
        source: [example for row, example in zip(corpus.validation, validation, strict=True) if row.source == source]
        for source in sorted({row.source for row in corpus.validation})
    }
    return {
        "validation": mean_loss(shipped, validation),
        "validation_unigram": unigram_loss(trained, validation, vocabulary),
        "pool_other": mean_loss(shipped, pool[False]),
        "pool_other_unigram": unigram_loss(trained, pool[False], vocabulary),
        "pool_mathematics": mean_loss(shipped, pool[True]),
        "gsm8k_test_supervised": mean_loss(shipped, gsm8k_examples(tokenizer, demo)),
    } | {f"validation/{source}": mean_loss(shipped, examples) for source, examples in by_source.items()}


def row_bitmap(ids: Iterable[str]) -> str:
    """The n of ids `<source>_<n>` as a deflated bitmap in base64: bit n % 8, lowest first, of byte n // 8."""
    numbers = [int(row_id.rsplit("_", 1)[1]) for row_id in ids]
    bitmap = bytearray(max(numbers, default=0) // 8 + 1)
    for number in numbers:
        bitmap[number // 8] |= 1 << number % 8
    return base64.b64encode(zlib.compress(bytes(bitmap), 9)).decode()


def id_digest(ids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def describe_data(corpus: Corpus, trained: Sequence[Row]) -> dict:
    """Which rows were trained on, exactly enough to check that another row was not."""
    ids_of: dict[str, list[str]] = {}
    for row in trained:
        ids_of.setdefault(row.source, []).append(row.id)
    return {
        "licences": {source: SOURCES[source].licence for source in sorted(ids_of)},
        "rows_by_source": {source: len(ids_of[source]) for source in sorted(ids_of)},
        "rows": len(trained),
        "ids_sha256": id_digest(row.id for row in trained),
        "row_numbers_bitmap": {source: row_bitmap(ids_of[source]) for source in sorted(ids_of)},
        f"{FILLER}_share_by_tenth": [round(share, 4) for share in share_by_tenth(trained, FILLER)],
        "held_out_rows": dict(sorted(corpus.held_out.items())),
        "validation_rows": len(corpus.validation),
        "validation_rows_by_source": dict(sorted(Counter(row.source for row in corpus.validation).items())),
        "validation_ids_sha256": id_digest(row.id for row in corpus.validation),
    }


CARD = """\
# Demo model

A Llama of {parameters:,} parameters ({layers} layers, width {hidden_size}, {heads} heads, tied embeddings,
{max_positions:,} positions) with a byte-level BPE of {vocabulary:,} entries, trained from scratch so that
`gistselect` can be tried offline, on a CPU, in minutes, with gradients that mean something. It has learned
English, the form of question and answer, and the tulu chat format. It is **not** a useful assistant: its
answers are fluent at best.

Weights are bf16 (`model.safetensors`), the tokenizer adds `<s>` in front, digits are single tokens, and
`<|user|>`, `<|assistant|>`, `<|system|>` are ordinary text. The chat template is the tulu format with the
supervised part marked; it holds no BOS, because the tokenizer adds it.

## Losses of the shipped weights

Nats per token over whole conversations in the tulu format, BOS excluded; for GSM8K over the worked solutions
only. The weights are bf16, the arithmetic float32.

| text | model | unigram |
|---|---:|---:|
| {validation_rows:,} validation rows, no mathematics | {validation:.2f} | {validation_unigram:.2f} |
| demo pool without its mathematics | {pool_other:.2f} | {pool_other_unigram:.2f} |
| demo pool, mathematics only | {pool_mathematics:.2f} | |
| GSM8K, the demo's test questions, supervised tokens | {gsm8k_test_supervised:.2f} | |

The unigram column is the add-one distribution of the training tokens on the same text. Losses by source and
the curves are in `training_log.json`.

## Data

{rows:,} rows, {tokens_seen:,} predicted tokens, each row read once, from sources whose repositories state
Apache-2.0 or MIT:

| source | rows trained on | licence |
|---|---:|---|
{sources}

`p3` is the largest source and fills up what the others leave of the token budget, with the rows whose hash is
smallest. All rows are read in one shuffled order; `p3` is {smallest_share:.0%} to {largest_share:.0%} of the
rows in each tenth of it, and its validation loss is {p3_loss:.2f}. Terms beyond the repository licence: `p3`
holds text of many public data sets, each with its own; `alpaca_*` and `gpteacher_*` were generated with OpenAI
models, whose terms apply upstream.

Held out, by id and by text: {held_out}.
{evaluation_rows} rows outside these held a GSM8K or BBH question. *Mathematics* means the sources and tasks named in
`../data/README.md`; words were not inspected, so a stray sum in another source was read. Different rows may
share a passage (`p3` asks one passage in several wordings), so the first two losses are a little kinder than
those on unseen passages would be. The numbers of all rows trained on are in `training_log.json`.

## Rebuild

`python tools/train_demo_model.py --data <corpus folder>`. These weights took {minutes:.0f} minutes at
{tokens_per_second:,} tokens/s on two cores that other work kept busy. The recipe, seed and versions are in the log.
Data, tokenizer and batches are a function of these; the last bits of the weights also depend on the processor and
its threads.
"""


def model_card(log: dict) -> str:
    data = log["data"]
    rows = data["rows_by_source"].items()
    shares = data[f"{FILLER}_share_by_tenth"]
    return CARD.format(
        **log["recipe"],
        **log["losses_nats_per_token"],
        parameters=log["parameters"],
        validation_rows=data["validation_rows"],
        rows=data["rows"],
        tokens_seen=log["tokens_seen"],
        sources="\n".join(f"| {source} | {count:,} | {data['licences'][source]} |" for source, count in rows),
        smallest_share=min(shares),
        largest_share=max(shares),
        held_out=", ".join(f"{count:,} rows ({reason})" for reason, count in data["held_out_rows"].items()),
        minutes=log["wall_seconds"] / 60,
        p3_loss=log["losses_nats_per_token"][f"validation/{FILLER}"],
        evaluation_rows=data["held_out_rows"].get("evaluation item", 0),
        tokens_per_second=log["tokens_per_second"],
    )


def replace_text(path: Path, text: str) -> None:
    """Write beside the path and rename, so that a reader never sees half a file."""
    part = path.with_name(path.name + ".part")
    write_text(part, text)
    os.replace(part, path)


def describe(
    shipped: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    rows: Sequence[Row],
    examples: Sequence[Example],
    run: TrainingRun,
    recipe: Recipe,
    demo: Path,
    output: Path,
) -> dict[str, float]:
    """Measure the exported model and write its log and card beside it; returns the losses."""
    losses = measure(shipped, tokenizer, corpus, examples, demo, recipe.vocabulary)
    log = {
        "recipe": asdict(recipe),
        "parameters": run.parameters,
        "data": describe_data(corpus, rows),
        "tokens_seen": run.tokens,
        "steps": run.steps,
        "wall_seconds": round(run.seconds),
        "tokens_per_second": round(run.tokens / run.seconds),
        "threads_at_end": torch.get_num_threads(),
        "losses_nats_per_token": {name: round(loss, 4) for name, loss in losses.items()},
        "train_curve": run.train_curve,
        "validation_curve": run.validation_curve,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "sha256": {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in EXPORTED},
    }
    replace_text(output / "training_log.json", json.dumps(log, indent=1) + "\n")
    replace_text(output / "README.md", model_card(log))
    return losses
