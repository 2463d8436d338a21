"""What is measured: a random model on random tokens, and the ways to take its gradients."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

from gistselect.bench.config import BenchConfig
from gistselect.bench.shapes import SHAPES
from gistselect.data.pool import open_pool
from gistselect.data.templates import load_template
from gistselect.data.tokens import encode
from gistselect.errors import DataError, ModelError
from gistselect.model.adapters import AdapterConfig, adapter_parameters, attach_adapter
from gistselect.model.basis import Basis
from gistselect.model.batches import plan_batches, trimmed_lengths
from gistselect.model.config import ModelConfig
from gistselect.model.forward import Forward, example_means
from gistselect.model.gradients import GradientEngine
from gistselect.model.loading import LanguageModel, load_tokenizer, resolve_device, resolve_dtype
from gistselect.types import Example, Record, Rejected

LENGTHS, TOKENS = range(2)
"""Names of the random streams."""


def random_model(config: BenchConfig) -> LanguageModel:
    """A model of the asked shape with an adapter whose second factor is not zero."""
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    torch.manual_seed(config.seed)
    with device:
        shape = AutoConfig.for_model(**SHAPES[config.shape])
        model = AutoModelForCausalLM.from_config(shape, dtype=dtype)
    bare = LanguageModel(model=model.to(device), tokenizer=None, device=device, dtype=dtype)
    adapter = AdapterConfig(rank=config.adapter_rank, alpha=config.adapter_rank)
    adapted = attach_adapter(bare, adapter, config.seed)
    for name, value in adapter_parameters(adapted.model).items():
        if ".lora_B." in name:
            torch.nn.init.normal_(value, std=0.01)
    return adapted


def random_examples(config: BenchConfig) -> list[Example]:
    """Random tokens, with the lengths and label counts of real rows; labels at the end."""
    sizes = _sizes(config)
    rng = np.random.default_rng([config.seed, TOKENS])
    return [
        Example(
            id=str(row),
            input_ids=rng.integers(0, SHAPES[config.shape]["vocab_size"], length, dtype=np.int32),
            supervised=np.arange(length) >= max(1, length - labels),
        )
        for row, (length, labels) in enumerate(sizes)
    ]


def random_bases(engine: GradientEngine, config: BenchConfig) -> list[Basis]:
    """Bases of one target and of three, of random directions: the time does not depend on which."""
    generator = torch.Generator(engine.device).manual_seed(config.seed)
    names = tuple(block.name for block in engine.parameters)

    def basis(rank: int) -> Basis:
        blocks = [
            torch.randn(block.size, rank, generator=generator, device=engine.device).to(engine.basis_dtype)
            for block in engine.parameters
        ]
        return Basis(names=names, blocks=tuple(blocks))

    return [basis(config.subspace_rank), basis(3 * config.subspace_rank)]


def _sizes(config: BenchConfig) -> NDArray[np.int64]:
    """(rows, 2) tokens and supervised tokens of rows drawn with replacement."""
    rng = np.random.default_rng([config.seed, LENGTHS])
    source = config.lengths
    if source is not None and source.suffix == ".txt":
        try:
            table = np.loadtxt(source, dtype=np.int64, ndmin=2)[:, :2]
        except (ValueError, IndexError, OSError) as error:
            raise DataError(f"{source} must hold lines of 'tokens supervised': {error}") from error
        sizes = np.minimum(rng.choice(table, config.rows), config.max_length)
    else:
        sizes = _pool_sizes(config, rng)
    if sizes.shape[1] != 2 or sizes.min() < 1 or sizes[:, 0].min() < 2:
        raise DataError(f"{source}: every row needs at least 2 tokens, 1 of them supervised.")
    return sizes


def _pool_sizes(config: BenchConfig, rng: np.random.Generator) -> NDArray[np.int64]:
    demo = Path(str(files("gistselect.demo")))
    tokenizer = load_tokenizer(ModelConfig(path=str(demo / "model")))
    source = config.lengths or demo / "data" / "train"
    records = [record for record in open_pool([source]).rows() if isinstance(record, Record)]
    if not records:
        raise DataError(f"no row of {source} can be used.")
    chosen = [records[row] for row in rng.integers(0, len(records), 2 * config.rows)]
    encoded = encode(chosen, load_template("tulu", tokenizer), tokenizer, config.max_length)
    sizes = [(row.n_tokens, row.n_supervised) for row in encoded if isinstance(row, Example)]
    if len(sizes) < config.rows:
        reason = next(row.reason for row in encoded if isinstance(row, Rejected))
        raise DataError(f"fewer than half of the rows of {source} can be used; the first that cannot: {reason}")
    return np.array(sizes[: config.rows])


def arms(
    engine: GradientEngine, examples: Sequence[Example], bases: Sequence[Basis], padded_tokens: int
) -> dict[str, Callable[[], object]]:
    dense = torch.cat(bases[0].blocks)
    plain = Forward(engine.language_model, engine.config.packing, engine.forward.batch_tokens)
    return {
        "(i) published loop, 1 target": lambda: published_loop(engine, examples, dense),
        "(ii) floor: padded LoRA step, all logits": lambda: ordinary_steps(engine, examples, padded_tokens),
        "(iii) floor: our batches and loss": lambda: activation_backward(plain, examples),
        "(iv) ours, 1 target": lambda: engine.features(examples, bases[0]),
        "(v) ours, 3 targets": lambda: engine.features(examples, bases[1]),
    }


def published_loop(engine: GradientEngine, examples: Sequence[Example], dense: Any) -> NDArray[np.float32]:
    """One row at a time: all logits, autograd of the adapter, flatten, one matrix-vector product, two host reads."""
    weights = _trainable(engine)
    rows = []
    for example in examples:
        ids, labels = _own_inputs(engine, [example])
        loss = engine.model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        gradient = torch.cat([weight.grad.reshape(-1) for weight in weights])
        loss.item()
        rows.append((gradient.to(dense.dtype) @ dense).float().cpu().numpy())
        engine.model.zero_grad()
    _frozen(weights)
    return np.stack(rows)


def fastest_padding(engine: GradientEngine, examples: Sequence[Example], say: Callable[[str], None]) -> int:
    """Tokens per padded batch that `ordinary_steps` is fastest with, among ours, twice it and down to a sixteenth.

    With all logits a batch as large as ours may not fit on the device.
    """
    seconds: dict[int, float] = {}
    for tokens in (engine.forward.batch_tokens * 2 // 2**halvings for halvings in range(6)):
        try:
            ordinary_steps(engine, examples[:8], tokens)
            start = time.perf_counter()
            ordinary_steps(engine, examples, tokens)
        except torch.OutOfMemoryError:
            say(f"floor (ii): {tokens} tokens a batch do not fit")
            continue
        finally:
            engine.model.zero_grad()
            torch.cuda.empty_cache()
        seconds[tokens] = time.perf_counter() - start
        say(f"floor (ii): {tokens} tokens a batch, {seconds[tokens]:.2f} s")
    if not seconds:
        raise ModelError("not even the smallest padded batch fits on the device; take a smaller shape.")
    return min(seconds, key=seconds.__getitem__)


def ordinary_steps(engine: GradientEngine, examples: Sequence[Example], batch_tokens: int) -> None:
    """Forward and backward of an ordinary LoRA training step, length-sorted and padded, with all logits."""
    weights = _trainable(engine)
    lengths = np.array([example.n_tokens for example in examples])
    for rows in plan_batches(lengths, batch_tokens, "padded"):
        batch = [examples[row] for row in rows]
        ids, labels = _own_inputs(engine, batch)
        mask = (np.arange(ids.shape[1]) < lengths[rows][:, None]).astype(np.int64)
        inputs = {"input_ids": ids, "labels": labels, "attention_mask": torch.from_numpy(mask).to(engine.device)}
        engine.model(**inputs, use_cache=False).loss.backward()
        engine.model.zero_grad()
    _frozen(weights)
    _synchronize(engine.device)


def activation_backward(forward: Forward, examples: Sequence[Example]) -> None:
    """Our batches and our loss through PEFT's own layers; gradients of activations only, nothing per example."""

    def require_grad(module: Any, inputs: Any, output: Any) -> None:
        output.requires_grad_(True)

    hook = forward.causal.get_input_embeddings().register_forward_hook(require_grad)
    with forward.running():
        for batch in forward.batches(examples, trimmed_lengths(examples)):
            example_means(forward.token_losses(batch), batch).sum().backward()
    hook.remove()
    _synchronize(forward.device)


def _own_inputs(engine: GradientEngine, examples: Sequence[Example]) -> tuple[Any, Any]:
    width = max(example.n_tokens for example in examples)
    ids = np.zeros((len(examples), width), dtype=np.int64)
    labels = np.full_like(ids, -100)
    for row, example in enumerate(examples):
        ids[row, : example.n_tokens] = example.input_ids
        labels[row, : example.n_tokens][example.supervised] = example.input_ids[example.supervised]
    return torch.from_numpy(ids).to(engine.device), torch.from_numpy(labels).to(engine.device)


def _trainable(engine: GradientEngine) -> list[Any]:
    weights = list(adapter_parameters(engine.model).values())
    for weight in weights:
        weight.requires_grad_(True)
    return weights


def _frozen(weights: Sequence[Any]) -> None:
    for weight in weights:
        weight.requires_grad_(False)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
