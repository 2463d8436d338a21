"""Train the demo model shipped with the package, from scratch on the CPU: a byte-level BPE and a small Llama.

It is a *base* model in the tulu format. Mathematics, every pool row of the demo and every evaluation item
are held out, by id and by text, so a mathematics target is new to it and the rest of the pool is not.

    MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 \\
    python tools/train_demo_model.py --data <corpus folder> [--demo <demo data>] [--output <model folder>]

The two variables keep freed activations in the process, which is worth a tenth of the speed. An interrupted
run continues from its checkpoint with the same batches; a finished one is exported, evaluated and described.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import os
import platform
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from build_demo_data import DEFAULT_OUTPUT as DEMO_DATA
from build_demo_data import SOURCES, is_mathematics, read_lines, write_text

TULU_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' }}"
    "{% generation %}{{ message['content'] | trim + eos_token + '\\n' }}{% endgeneration %}"
    "{% else %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] | trim + '\\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
"""Without the BOS: the text is tokenised as one string, and the tokenizer itself puts the BOS in front."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights, apart from the corpus and the versions of the libraries."""

    seed: int = 20_260
    vocabulary: int = 4_096
    tokenizer_characters: int = 16_000_000
    """Text the tokenizer is fitted on: a prefix of the shuffled training rows."""
    hidden_size: int = 256
    intermediate_size: int = 512
    layers: int = 4
    heads: int = 4
    max_positions: int = 2_048
    tokens: int = 8_000_000
    """All rows of every source but p3 are read once; p3, by far the largest, fills up to this many tokens."""
    micro_batch_tokens: int = 2_560
    micro_batches_per_step: int = 3
    learning_rate: float = 2e-3
    final_learning_rate: float = 1e-4
    warmup_steps: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    validation_share: float = 0.01
    """Share of the distinct first user messages kept for validation."""


Conversation = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Row:
    id: str
    source: str
    messages: Conversation

    @property
    def question(self) -> str:
        return self.messages[0]["content"].strip()


@dataclass(kw_only=True)
class Corpus:
    """Rows by purpose; `held_out` counts what was kept from training, by reason."""

    training: list[Row] = field(default_factory=list)
    validation: list[Row] = field(default_factory=list)
    pool: list[Row] = field(default_factory=list)
    held_out: Counter[str] = field(default_factory=Counter)


def read_rows(path: Path) -> Iterator[tuple[Row, dict]]:
    for line in read_lines(path):
        record = json.loads(line)
        yield Row(id=record["id"], source=record["dataset"], messages=record["messages"]), record


def pool_rows(demo: Path) -> list[Row]:
    return [row for path in sorted(demo.glob("train/processed/*/*_data.jsonl")) for row, _ in read_rows(path)]


def evaluation_texts(data: Path) -> set[str]:
    """Every GSM8K and BBH question of the full corpus, not only those in the demo."""
    gsm8k = [
        json.loads(line)["question"]
        for name in ("target", "test")
        for line in read_lines(data / f"eval/gsm8k/{name}.jsonl")
    ]
    tasks = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((data / "eval/bbh/bbh").glob("*.json"))]
    return {text.strip() for text in gsm8k} | {item["input"].strip() for task in tasks for item in task["examples"]}


def hash_fraction(text: str, purpose: str, seed: int) -> float:
    """A uniform number in [0, 1) that is a function of the text alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{purpose}\n{text}".encode()).digest()[:7]) / 2**56


def reason_to_hold_out(row: Row, record: dict, texts: dict[str, set[str]]) -> str | None:
    user_texts = {message["content"].strip() for message in row.messages if message["role"] == "user"}
    if is_mathematics(record):
        return "mathematics"
    if row.id in texts["pool ids"]:
        return "pool row"
    if user_texts & texts["pool questions"]:
        return "same question as a pool row"
    if user_texts & texts["evaluation"]:
        return "evaluation item"
    return None


def read_corpus(data: Path, demo: Path, recipe: Recipe) -> Corpus:
    """Sort every permissively licensed row into training, validation or held out."""
    corpus = Corpus(pool=pool_rows(demo))
    texts = {
        "pool ids": {row.id for row in corpus.pool},
        "pool questions": {row.question for row in corpus.pool},
        "evaluation": evaluation_texts(data),
    }
    for source in sorted(SOURCES):
        for row, record in read_rows(data / "train/processed" / source / f"{source}_data.jsonl"):
            if reason := reason_to_hold_out(row, record, texts):
                corpus.held_out[reason] += 1
            elif hash_fraction(row.question, "validation", recipe.seed) < recipe.validation_share:
                corpus.validation.append(row)
            else:
                corpus.training.append(row)
    corpus.training.sort(key=lambda row: hash_fraction(row.id, "order", recipe.seed))
    return corpus


def train_tokenizer(texts: Iterable[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits; the tulu markers are ordinary text, as to any base model."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=recipe.max_positions,
        clean_up_tokenization_spaces=False,
        chat_template=TULU_TEMPLATE,
    )


def render(tokenizer: PreTrainedTokenizerFast, messages: Conversation) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False)


def tokenizer_texts(rows: Sequence[Row], recipe: Recipe) -> Iterator[str]:
    """Message texts with their markers, without the EOS: a special token is no text to learn merges from."""
    characters = 0
    for row in rows:
        for message in row.messages:
            text = f"<|{message['role']}|>\n{message['content'].strip()}\n"
            characters += len(text)
            yield text
        if characters > recipe.tokenizer_characters:
            return


def encode(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row], recipe: Recipe) -> list[list[int]]:
    texts = [render(tokenizer, row.messages) for row in rows]
    return [ids[: recipe.max_positions] for ids in tokenizer(texts)["input_ids"]]


def rows_within_budget(rows: Sequence[Row], encoded: Sequence[list[int]], recipe: Recipe) -> list[int]:
    """Indices of the rows to train on, in order: every source in full, but p3 up to the token budget.

    The budget is filled from the front, so p3 ends about half-way through the run and the model is weakest on it.
    """
    left = recipe.tokens - sum(len(ids) for row, ids in zip(rows, encoded, strict=True) if row.source != "p3")
    kept = []
    for index, row in enumerate(rows):
        if row.source == "p3":
            left -= len(encoded[index])
            if left < 0:
                continue
        kept.append(index)
    return kept


def micro_batches(
    encoded: Sequence[list[int]], order: Sequence[int], recipe: Recipe, window: int = 1_024
) -> list[list[int]]:
    """Indices by micro-batch; within a window of the order, rows of like length share one.

    Every row starts at its own BOS and attends to itself only, as the model is used later. Packing rows
    end to end would need a block-diagonal mask for the same effect.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        batches_of_window: list[list[int]] = [[]]
        for index in sorted(order[start : start + window], key=lambda i: len(encoded[i])):
            batch = batches_of_window[-1]
            if batch and (len(batch) + 1) * len(encoded[index]) > recipe.micro_batch_tokens:
                batches_of_window.append(batch := [])
            batch.append(index)
        permutation = torch.randperm(len(batches_of_window), generator=generator).tolist()
        batches += [batches_of_window[i] for i in permutation]
    return batches


def collate(sequences: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids (b, t) and labels (b, t), -100 at padding; causal attention needs no mask for it."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pad)
    labels = torch.full((len(sequences), width), -100)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = labels[row, : len(sequence)] = torch.tensor(sequence)
    return ids, labels


def summed_loss(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the labelled tokens, each predicted from those before it."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )


@torch.no_grad()
def mean_loss(
    model: nn.Module, sequences: Sequence[list[int]], masks: Sequence[list[bool]] | None = None, pad: int = 2
) -> float:
    """Nats per token over all sequences; with masks, over their true positions only."""
    total, tokens = 0.0, 0
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    for start in range(0, len(order), 8):
        chunk = order[start : start + 8]
        ids, labels = collate([sequences[i] for i in chunk], pad)
        if masks is not None:
            for row, i in enumerate(chunk):
                labels[row, : len(masks[i])][~torch.tensor(masks[i])] = -100
        total += summed_loss(model, ids, labels).item()
        tokens += int((labels[:, 1:] != -100).sum())
    return total / tokens


def unigram_loss(training: Iterable[list[int]], held_out: Iterable[list[int]], vocabulary: int) -> float:
    """Nats per held-out token (BOS excluded) under the add-one unigram distribution of the training text."""
    counts = torch.ones(vocabulary, dtype=torch.float64)
    for ids in training:
        counts += torch.bincount(torch.tensor(ids[1:]), minlength=vocabulary)
    log_probability = (counts / counts.sum()).log()
    tokens = torch.tensor([token for ids in held_out for token in ids[1:]])
    return -log_probability[tokens].mean().item()


def gsm8k_items(tokenizer: PreTrainedTokenizerFast, demo: Path) -> tuple[list[list[int]], list[list[bool]]]:
    """Tokens of the demo's GSM8K test items in the tulu format, and which of them are supervised."""
    sequences, masks = [], []
    for line in read_lines(demo / "eval/gsm8k/test.jsonl"):
        item = json.loads(line)
        prompt = [{"role": "user", "content": item["question"]}]
        text = render(tokenizer, [*prompt, {"role": "assistant", "content": item["answer"]}])
        start = len(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
        encoding = tokenizer(text, return_offsets_mapping=True)
        sequences.append(encoding["input_ids"])
        masks.append([begin >= start for begin, _ in encoding["offset_mapping"]])
    return sequences, masks


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocabulary,
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=recipe.max_positions,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Weight decay on matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to the final rate."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, steps - recipe.warmup_steps)
    drop = recipe.learning_rate - recipe.final_learning_rate
    return recipe.final_learning_rate + drop * (1 + math.cos(math.pi * progress)) / 2


@dataclass(kw_only=True)
class Progress:
    """What a checkpoint holds beside the weights and the optimizer state."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    train_curve: list[tuple[int, float]] = field(default_factory=list)
    """(step, nats per token since the last entry)"""
    validation_curve: list[tuple[int, float]] = field(default_factory=list)
    """(step, nats per token on a fixed part of the validation rows)"""


def replace_with(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the path and rename, so that a reader never sees half a file."""
    part = path.with_name(path.name + ".part")
    write(part)
    os.replace(part, path)


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, recipe: Recipe
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
        "recipe": asdict(recipe),
    }
    replace_with(path, partial(torch.save, state))


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe) -> Progress:
    if not path.exists():
        return Progress()
    state = torch.load(path, weights_only=True)
    if state["recipe"] != asdict(recipe):
        raise ValueError(f"{path} belongs to another recipe; delete it or name another --checkpoint.")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[tuple[Tensor, Tensor]],
    clip_norm: float,
) -> tuple[float, int]:
    """One update on the mean over the tokens of all micro-batches; returns the summed loss and the tokens."""
    tokens = sum(int((labels[:, 1:] != -100).sum()) for _, labels in batches)
    total = 0.0
    for ids, labels in batches:
        with torch.autocast("cpu", torch.bfloat16):
            loss = summed_loss(model, ids, labels)
        (loss / tokens).backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total, tokens


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """bf16 weights, configuration and tokenizer, each file replaced in one move."""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as name:
        folder = Path(name)
        shipped = LlamaForCausalLM(model.config)
        shipped.load_state_dict(model.state_dict())
        shipped.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        output.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            path.chmod(0o644)
            os.replace(path, output / path.name)


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
        "held_out_rows": dict(sorted(corpus.held_out.items())),
        "validation_rows": len(corpus.validation),
        "validation_rows_by_source": dict(sorted(Counter(row.source for row in corpus.validation).items())),
        "validation_ids_sha256": id_digest(row.id for row in corpus.validation),
    }


def evaluate_export(
    corpus: Corpus, trained: Sequence[list[int]], demo: Path, output: Path, recipe: Recipe
) -> dict[str, float]:
    """Losses of the shipped bf16 weights, in nats per token, as a user would load them."""
    model = AutoModelForCausalLM.from_pretrained(output).eval()
    tokenizer = AutoTokenizer.from_pretrained(output)
    validation = encode(tokenizer, corpus.validation, recipe)
    mathematics = [SOURCES[row.source].mathematics for row in corpus.pool]
    pool = encode(tokenizer, corpus.pool, recipe)
    other_pool = [ids for ids, is_math in zip(pool, mathematics, strict=True) if not is_math]
    mathematics_pool = [ids for ids, is_math in zip(pool, mathematics, strict=True) if is_math]
    gsm8k, masks = gsm8k_items(tokenizer, demo)
    return {
        "validation": mean_loss(model, validation),
        "validation_unigram": unigram_loss(trained, validation, recipe.vocabulary),
        "pool_other": mean_loss(model, other_pool),
        "pool_other_unigram": unigram_loss(trained, other_pool, recipe.vocabulary),
        "pool_mathematics": mean_loss(model, mathematics_pool),
        "gsm8k_test_supervised": mean_loss(model, gsm8k, masks),
    } | {
        f"validation/{source}": loss for source, loss in losses_by_source(model, corpus.validation, validation).items()
    }


def losses_by_source(model: nn.Module, rows: Sequence[Row], encoded: Sequence[list[int]]) -> dict[str, float]:
    sequences_of: dict[str, list[list[int]]] = {}
    for row, ids in zip(rows, encoded, strict=True):
        sequences_of.setdefault(row.source, []).append(ids)
    return {source: mean_loss(model, sequences_of[source]) for source in sorted(sequences_of)}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When the run reports, saves and first exports; none of it changes the weights."""

    report_steps: int = 20
    validation_steps: int = 150
    checkpoint_seconds: float = 120.0
    early_export_seconds: float = 240.0


def report(progress: Progress, steps: int, loss: float) -> None:
    progress.train_curve.append((progress.step, round(loss, 4)))
    left = progress.seconds / progress.step * (steps - progress.step)
    print(
        f"step {progress.step}/{steps}  loss {loss:.3f} nats/token  "
        f"{progress.tokens / progress.seconds:,.0f} tokens/s  "
        f"{progress.seconds / 60:.1f} min, {left / 60:.1f} min left",
        flush=True,
    )


def validate(model: nn.Module, validation: Sequence[list[int]], progress: Progress) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        progress.validation_curve.append((progress.step, round(mean_loss(model, validation), 4)))
    print(f"step {progress.step}  validation {progress.validation_curve[-1][1]} nats/token", flush=True)


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    encoded: Sequence[list[int]],
    batches: Sequence[list[int]],
    validation: Sequence[list[int]],
    recipe: Recipe,
    checkpoint: Path,
    output: Path,
    schedule: Schedule,
) -> Progress:
    """Train to the end of the batches, from the checkpoint if there is one."""
    optimizer = build_optimizer(model, recipe)
    progress = load_checkpoint(checkpoint, model, optimizer, recipe)
    per_step = recipe.micro_batches_per_step
    steps = len(batches) // per_step
    started = saved = time.monotonic() - progress.seconds
    exported = progress.seconds > schedule.early_export_seconds
    window_loss, window_tokens = 0.0, 0
    while progress.step < steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress.step, steps, recipe)
        chosen = batches[progress.step * per_step : (progress.step + 1) * per_step]
        collated = [collate([encoded[i] for i in batch], tokenizer.pad_token_id) for batch in chosen]
        loss, tokens = train_step(model, optimizer, collated, recipe.clip_norm)
        window_loss, window_tokens = window_loss + loss, window_tokens + tokens
        progress.step += 1
        progress.tokens += tokens
        progress.seconds = time.monotonic() - started
        if progress.step % schedule.report_steps == 0:
            report(progress, steps, window_loss / window_tokens)
            window_loss, window_tokens = 0.0, 0
        if progress.step % schedule.validation_steps == 0:
            validate(model, validation, progress)
        if time.monotonic() - saved > schedule.checkpoint_seconds:
            save_checkpoint(checkpoint, model, optimizer, progress, recipe)
            saved = time.monotonic()
        if not exported and progress.seconds > schedule.early_export_seconds:
            export(model, tokenizer, output)
            exported = True
    save_checkpoint(checkpoint, model, optimizer, progress, recipe)
    return progress


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def file_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the full corpus in the LESS layout")
    parser.add_argument("--demo", type=Path, default=DEMO_DATA, help="the demo data, held out of training")
    parser.add_argument("--output", type=Path, default=DEMO_DATA.with_name("model"))
    parser.add_argument("--checkpoint", type=Path, default=Path(tempfile.gettempdir()) / "gistselect_demo_model.pt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=Recipe.tokens)
    return parser.parse_args()


def describe_run(
    recipe: Recipe, model: nn.Module, progress: Progress, threads: int, data: dict, losses: dict[str, float]
) -> dict:
    """The training log, all but the digests of the files beside it."""
    return {
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": data,
        "tokens_seen": progress.tokens,
        "steps": progress.step,
        "wall_seconds": round(progress.seconds),
        "tokens_per_second": round(progress.tokens / progress.seconds),
        "threads_at_end": threads,
        "losses_nats_per_token": {name: round(loss, 4) for name, loss in losses.items()},
        "train_curve": progress.train_curve,
        "validation_curve": progress.validation_curve,
        "versions": versions(),
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
only.

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

`p3` is the largest source and fills up what the others leave of the token budget. It is read in the first half
of the run only, and the model is weakest on it (validation {p3_loss:.2f}); the losses of most other sources are
well below the mean in the table above. Terms beyond the repository
licence: `p3` holds text of many public data sets, each with its own; `alpaca_*` and `gpteacher_*` were
generated with OpenAI models, whose terms apply upstream.

Held out, by id and by text: {held_out}.
{evaluation_rows} rows outside these held a GSM8K or BBH question. *Mathematics* means the sources and tasks named in
`../data/README.md`; words were not inspected, so a stray sum in another source was read. Different rows may
share a passage (`p3` asks one passage in several wordings), so the first two losses are a little kinder than
those on unseen passages would be. The numbers of all rows trained on are in `training_log.json`.

## Rebuild

`python tools/train_demo_model.py --data <corpus folder>`. These weights took {minutes:.0f} minutes at
{tokens_per_second:,} tokens/s on two cores that other work kept busy; idle, the same two read about 5,000
tokens/s. The recipe, seed and versions are in the log. Data, tokenizer and batches are a function of these; the
last bits of the weights also depend on the processor and its threads.
"""


def model_card(log: dict) -> str:
    data = log["data"]
    rows = data["rows_by_source"].items()
    return CARD.format(
        **log["recipe"],
        **log["losses_nats_per_token"],
        parameters=log["parameters"],
        validation_rows=data["validation_rows"],
        rows=data["rows"],
        tokens_seen=log["tokens_seen"],
        sources="\n".join(f"| {source} | {count:,} | {data['licences'][source]} |" for source, count in rows),
        held_out=", ".join(f"{count:,} rows ({reason})" for reason, count in data["held_out_rows"].items()),
        minutes=log["wall_seconds"] / 60,
        p3_loss=log["losses_nats_per_token"]["validation/p3"],
        evaluation_rows=data["held_out_rows"].get("evaluation item", 0),
        tokens_per_second=log["tokens_per_second"],
    )


def write_documents(log: dict, output: Path) -> None:
    names = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ]
    log = log | {"sha256": file_digests(output, names)}
    for name, text in {
        "training_log.json": json.dumps(log, indent=1) + "\n",
        "README.md": model_card(log),
    }.items():
        replace_with(output / name, partial(write_text, text=text))


def main() -> None:
    arguments = parse_arguments()
    recipe = Recipe(tokens=arguments.tokens)
    torch.set_num_threads(arguments.threads)
    corpus = read_corpus(arguments.data, arguments.demo, recipe)
    print(f"{len(corpus.training):,} rows eligible, {len(corpus.validation):,} for validation", flush=True)
    tokenizer = train_tokenizer(tokenizer_texts(corpus.training, recipe), recipe)
    encoded = encode(tokenizer, corpus.training, recipe)
    batches = micro_batches(encoded, rows_within_budget(corpus.training, encoded, recipe), recipe)
    batches = batches[: len(batches) // recipe.micro_batches_per_step * recipe.micro_batches_per_step]
    trained = [index for batch in batches for index in batch]
    print(f"{len(trained):,} rows to train on, {sum(len(encoded[i]) for i in trained):,} tokens", flush=True)
    model = build_model(recipe, tokenizer)
    interim = encode(tokenizer, corpus.validation[::5], recipe)
    progress = train(
        model,
        tokenizer,
        encoded,
        batches,
        interim,
        recipe,
        arguments.checkpoint,
        arguments.output,
        Schedule(),
    )
    export(model, tokenizer, arguments.output)
    losses = evaluate_export(corpus, [encoded[i] for i in trained], arguments.demo, arguments.output, recipe)
    data = describe_data(corpus, [corpus.training[i] for i in trained])
    log = describe_run(recipe, model, progress, arguments.threads, data, losses)
    write_documents(log, arguments.output)
    print(json.dumps(log["losses_nats_per_token"], indent=1))


if __name__ == "__main__":
    main()
