"""How fast the gradient engine is, against the published loop and against plain backward passes."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from gistselect.errors import DataError, ModelError
from gistselect.run.progress import duration
from gistselect.types import Example, Record, Rejected

if TYPE_CHECKING:
    import torch

    from gistselect.model.forward import Forward
    from gistselect.model.gradients import Basis, GradientEngine
    from gistselect.model.loading import LanguageModel

LENGTHS, TOKENS = range(2)
"""Names of the random streams."""

_QWEN = {"model_type": "qwen2", "vocab_size": 151936, "num_key_value_heads": 2, "tie_word_embeddings": True}
_LLAMA = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8, "head_dim": 128}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-17m": {
        "model_type": "llama",
        "vocab_size": 8192,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "tie_word_embeddings": True,
    },
    "pythia-31m": {
        "model_type": "gpt_neox",
        "vocab_size": 50304,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "tie_word_embeddings": False,
    },
    "qwen2.5-0.5b": {
        **_QWEN,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
    },
    "qwen2.5-1.5b": {
        **_QWEN,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
    },
    "llama-3.2-3b": {
        **_LLAMA,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}
"""Published model shapes, and `llama-17m` of our own with the vocabulary of a small language; all with random
weights."""
Shape = Literal["llama-17m", "pythia-31m", "qwen2.5-0.5b", "qwen2.5-1.5b", "llama-3.2-3b", "llama-3.1-8b"]


class BenchConfig(BaseModel):
    """What `gistselect bench` measures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: Shape = "llama-17m"
    """Shape of the model; its weights are random."""
    rows: int = Field(default=128, ge=1)
    """Examples in each measurement."""
    repeats: int = Field(default=5, ge=1)
    """Interleaved repeats; the table shows medians."""
    adapter_rank: int = Field(default=16, ge=1)
    """LoRA rank on the attention projections."""
    subspace_rank: int = Field(default=32, ge=1)
    """Directions per target."""
    lengths: Path | None = None
    """Where token lengths come from: a text file of `tokens supervised` lines, or a pool; by default the demo pool."""
    max_length: int = Field(default=2048, ge=2)
    """Longer examples are cut."""
    device: str = "auto"
    """`cpu`, `cuda`, …; `auto` takes CUDA if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the model; `auto` is bfloat16 on CUDA and float32 on CPU."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens per batch of our arms and floor (iii), by default the engine's own choice; floor (ii) takes its best."""
    packing: Literal["auto", "packed", "padded", "single"] = "auto"
    """Batch layout of our arms."""
    seed: int = 0
    """Decides weights, rows and tokens."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to do the work, measured."""

    name: str
    seconds: tuple[float, ...]
    """Of each repeat."""
    peak_bytes: int
    """Highest memory in use above what the model takes; 0 where it cannot be measured."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """All arms of one run, on the same examples."""

    config: BenchConfig
    machine: str
    on_cuda: bool
    mode: str
    padded_tokens: int
    """Tokens per batch of floor (ii): the fastest of those tried."""
    n_tokens: int
    n_supervised: int
    n_parameters: int
    """Of the base model, without the input embedding unless it is also the output head."""
    n_adapter: int
    peak_flops: float
    """Measured matrix-multiplication rate of the device, FLOP/s."""
    arms: tuple[Arm, ...]

    def ratio(self, over: int, under: int) -> float:
        """Median over repeats of the time of one arm over another's in the same repeat."""
        pairs = zip(self.arms[over].seconds, self.arms[under].seconds, strict=True)
        return statistics.median(a / b for a, b in pairs)


def bench(config: BenchConfig, say: Callable[[str], None] = lambda text: None) -> BenchResult:
    """Measure every arm on one random model; `say` hears how it goes.

    Raises `DataError` if the lengths cannot be read, `ModelError` if nothing fits on the device.
    """
    import torch
    import transformers

    from gistselect.model.gradients import EngineConfig, GradientEngine

    language_model = random_model(config)
    examples = random_examples(config)
    settings = EngineConfig(packing=config.packing, batch_tokens=config.batch_tokens)
    with GradientEngine(language_model, settings) as engine:
        bases = random_bases(engine, config)
        padded_tokens = _fastest_padding(engine, examples, say)
        arms = _measure(_arms(engine, examples, bases, padded_tokens), language_model, config.repeats, say)
        device = language_model.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
        versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
        return BenchResult(
            config=config,
            machine=f"{name}, {language_model.dtype}, {versions}",
            on_cuda=device.type == "cuda",
            mode=engine.mode,
            padded_tokens=padded_tokens,
            n_tokens=sum(example.n_tokens for example in examples),
            n_supervised=sum(example.n_supervised for example in examples),
            n_parameters=_matrix_parameters(language_model),
            n_adapter=sum(block.size for block in engine.parameters),
            peak_flops=_peak_flops(language_model),
            arms=arms,
        )


def format_table(result: BenchResult) -> str:
    """The result as text for people."""
    useful = 4 * result.n_parameters * result.n_tokens
    lines = [
        f"{result.config.shape} ({result.n_parameters / 1e6:.0f} M parameters), LoRA rank {result.config.adapter_rank} "
        f"({result.n_adapter / 1e6:.2f} M), subspace rank {result.config.subspace_rank} per target",
        f"{result.config.rows} examples, {result.n_tokens:,} tokens, {result.n_supervised:,} supervised; "
        f"medians of {result.config.repeats} interleaved repeats",
        f"{result.machine}; {result.peak_flops / 1e9:,.0f} GFLOP/s in a matrix product",
        f"engine: {result.mode}",
        f"floor (ii): {result.padded_tokens} tokens a batch, the fastest tried",
        "",
        f"{'arm':42} {'seconds':>9} {'tokens/s':>9} {'MFU':>6} {'peak MB':>8}",
    ]
    for arm in result.arms:
        share = useful / arm.median / result.peak_flops
        peak = f"{arm.peak_bytes / 1e6:8,.0f}" if arm.peak_bytes else f"{'-':>8}"
        lines.append(f"{arm.name:42} {arm.median:9.3f} {result.n_tokens / arm.median:9,.0f} {share:6.1%} {peak}")
    lines.append("")
    for goal in _GOALS:
        measured = goal.factor * result.ratio(goal.over, goal.under)
        wanted = goal.on_cuda if result.on_cuda else goal.on_cpu
        lines.append(f"{goal.name:56} {measured:6.2f}   goal on {'CUDA' if result.on_cuda else 'a CPU'} {wanted}")
    if result.on_cuda:
        lines.append("MFU of ours, 1 target: goal on CUDA >= 50% at 1.5 B parameters")
    return "\n".join(lines)


class _Goal(NamedTuple):
    """A ratio of two arms' times, by their places in the table, and what is wanted of it."""

    name: str
    over: int
    under: int
    factor: int
    on_cpu: str
    on_cuda: str


_GOALS = (
    _Goal("published loop / ours, 1 target", 0, 3, 1, ">= 2.5", ">= 10"),
    _Goal("3 published passes / ours, 3 targets", 0, 4, 3, ">= 6", ">= 25"),
    _Goal("ours, 1 target / floor (ii)", 3, 1, 1, "<= 1.00", "<= 0.80"),
    _Goal("ours, 1 target / floor (iii)", 3, 2, 1, "<= 1.10", "<= 1.10"),
    _Goal("ours, 3 targets / ours, 1 target", 4, 3, 1, "<= 1.05", "<= 1.05"),
)


# --- what is measured on ------------------------------------------------------------------------------------


def random_model(config: BenchConfig) -> LanguageModel:
    """A model of the asked shape with an adapter whose second factor is not zero."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from gistselect.model.adapters import AdapterConfig, adapter_parameters, attach_adapter
    from gistselect.model.loading import LanguageModel, resolve_device, resolve_dtype

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
    import torch

    from gistselect.model.gradients import Basis

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
    from gistselect.data.pool import open_pool
    from gistselect.data.templates import load_template
    from gistselect.data.tokens import encode
    from gistselect.model.loading import ModelConfig, load_tokenizer

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


# --- the arms -----------------------------------------------------------------------------------------------


def _arms(
    engine: GradientEngine, examples: Sequence[Example], bases: Sequence[Basis], padded_tokens: int
) -> dict[str, Callable[[], object]]:
    import torch

    from gistselect.model.forward import Forward

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
    import torch

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


def _fastest_padding(engine: GradientEngine, examples: Sequence[Example], say: Callable[[str], None]) -> int:
    """Tokens per padded batch that `ordinary_steps` is fastest with, among ours, twice it and down to a sixteenth.

    With all logits a batch as large as ours may not fit on the device.
    """
    import torch

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
    import torch

    from gistselect.model.batches import plan_batches

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
    from gistselect.model.batches import trimmed_lengths
    from gistselect.model.forward import example_means

    def require_grad(module: Any, inputs: Any, output: Any) -> None:
        output.requires_grad_(True)

    hook = forward.causal.get_input_embeddings().register_forward_hook(require_grad)
    with forward.running():
        for batch in forward.batches(examples, trimmed_lengths(examples)):
            example_means(forward.token_losses(batch), batch).sum().backward()
    hook.remove()
    _synchronize(forward.device)


def _own_inputs(engine: GradientEngine, examples: Sequence[Example]) -> tuple[Any, Any]:
    import torch

    width = max(example.n_tokens for example in examples)
    ids = np.zeros((len(examples), width), dtype=np.int64)
    labels = np.full_like(ids, -100)
    for row, example in enumerate(examples):
        ids[row, : example.n_tokens] = example.input_ids
        labels[row, : example.n_tokens][example.supervised] = example.input_ids[example.supervised]
    return torch.from_numpy(ids).to(engine.device), torch.from_numpy(labels).to(engine.device)


def _trainable(engine: GradientEngine) -> list[Any]:
    from gistselect.model.adapters import adapter_parameters

    weights = list(adapter_parameters(engine.model).values())
    for weight in weights:
        weight.requires_grad_(True)
    return weights


def _frozen(weights: Sequence[Any]) -> None:
    for weight in weights:
        weight.requires_grad_(False)


# --- measuring ----------------------------------------------------------------------------------------------


def _measure(
    arms: dict[str, Callable[[], object]], language_model: LanguageModel, repeats: int, say: Callable[[str], None]
) -> tuple[Arm, ...]:
    """Each repeat runs every arm once, after one unmeasured round that also takes the memory."""
    peaks = {name: peak_bytes(run, language_model) for name, run in arms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(1, repeats + 1):
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
        latest = ", ".join(f"{name.partition(' ')[0]} {times[-1]:.2f} s" for name, times in seconds.items())
        left = sum(map(sum, seconds.values())) / repeat * (repeats - repeat)
        say(f"repeat {repeat} of {repeats}: {latest}; {duration(left)} left")
    return tuple(Arm(name=name, seconds=tuple(seconds[name]), peak_bytes=peaks[name]) for name in arms)


def peak_bytes(run: Callable[[], object], language_model: LanguageModel) -> int:
    """Memory at the worst moment of `run` above what was in use before it."""
    import torch

    if language_model.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    if sys.platform != "linux":
        run()
        return 0
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    run()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def _peak_flops(language_model: LanguageModel, size: int = 2048, repeats: int = 5) -> float:
    """Best rate of a square matrix product in the model's number format, FLOP/s."""
    import torch

    size = 8192 if language_model.device.type == "cuda" else size
    left = torch.randn(size, size, device=language_model.device, dtype=language_model.dtype)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        (left @ left)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _matrix_parameters(language_model: LanguageModel) -> int:
    model = language_model.model.get_base_model()
    total = sum(value.numel() for name, value in model.named_parameters() if "lora_" not in name)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    return total if tied else total - model.get_input_embeddings().weight.numel()


def _synchronize(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
