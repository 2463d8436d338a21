"""How fast the gradient engine is, against the published loop and against plain backward passes."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

from gistselect.bench.arms import arms, fastest_padding, random_bases, random_examples, random_model
from gistselect.bench.config import BenchConfig
from gistselect.model.engine_config import EngineConfig
from gistselect.model.gradients import GradientEngine
from gistselect.model.loading import LanguageModel


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
    language_model = random_model(config)
    examples = random_examples(config)
    settings = EngineConfig(packing=config.packing, batch_tokens=config.batch_tokens)
    with GradientEngine(language_model, settings) as engine:
        bases = random_bases(engine, config)
        padded_tokens = fastest_padding(engine, examples, say)
        measured = _measure(arms(engine, examples, bases, padded_tokens), language_model, config.repeats, say)
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
            n_parameters=matrix_parameters(language_model),
            n_adapter=sum(block.size for block in engine.parameters),
            peak_flops=peak_flops(language_model),
            arms=measured,
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
        say(f"repeat {repeat} of {repeats}: {latest}; {left:.0f} s left")
    return tuple(Arm(name=name, seconds=tuple(seconds[name]), peak_bytes=peaks[name]) for name in arms)


def peak_bytes(run: Callable[[], object], language_model: LanguageModel) -> int:
    """Memory at the worst moment of `run` above what was in use before it."""
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


def peak_flops(
    language_model: LanguageModel,
    size: int = 2048,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Best rate of a square matrix product in the model's number format, FLOP/s, in the seconds of `clock`."""
    size = 8192 if language_model.device.type == "cuda" else size
    left = torch.randn(size, size, device=language_model.device, dtype=language_model.dtype)
    best = float("inf")
    for _ in range(repeats):
        start = clock()
        (left @ left)[0, 0].item()
        best = min(best, clock() - start)
    return 2 * size**3 / best


def matrix_parameters(language_model: LanguageModel) -> int:
    model = language_model.model.get_base_model()
    total = sum(value.numel() for name, value in model.named_parameters() if "lora_" not in name)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    return total if tied else total - model.get_input_embeddings().weight.numel()
