"""Seconds for 100,000 rows, by the shape of the model: `python benchmarks/speed_table.py --shapes smollm2-135m`.

Random weights, token lengths of the full pool. One backward pass for GIST with 1, 3 and 57 targets, with LESS, with
EK-FAC, and sketched, beside the published loop over single rows; interleaved repeats, medians. On CUDA the shapes of
0.5, 1.5, 3 and 8 B are meant, and the goals of docs/engine-log.md are printed beside:
`--shapes qwen2.5-0.5b qwen2.5-1.5b llama-3.2-3b llama-3.1-8b --rows 512`. On a shared CPU seconds are those that the
process had.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cyclopts
import torch

from gistselect.bench.arms import published_loop, random_examples, random_model
from gistselect.bench.config import BenchConfig
from gistselect.bench.measure import matrix_parameters, peak_flops
from gistselect.bench.shapes import Shape
from gistselect.data.pool import open_pool
from gistselect.data.templates import load_template
from gistselect.data.tokens import encode
from gistselect.files import read_json, write_json
from gistselect.model.basis import Basis
from gistselect.model.config import ModelConfig
from gistselect.model.directions import DirectionSink
from gistselect.model.engine_config import ProjectionConfig, SketchConfig
from gistselect.model.gradients import GradientEngine
from gistselect.model.loading import load_tokenizer
from gistselect.model.sinks import Collector, ProjectionSink, SketchSink
from gistselect.types import Example, Record
from study_setup import RESULTS, SHARED, WORK, circumstances, drawn_rows, model_folder, pool_lines, write_lines

app = cyclopts.App(help=__doc__, default_parameter=cyclopts.Parameter(consume_multiple=True))
SEED, REPORTED = 0, 100_000
LOOP, ONE, THREE = "published loop, 1 target", "GIST, 1 target", "GIST, 3 targets"
FOUR = 4
"""Products of two numbers a parameter and token in a pass whose weights are frozen."""


@app.default
def main(
    *,
    shapes: tuple[Shape, ...] = ("smollm2-135m",),
    rows: int = 6,
    repeats: int = 3,
    adapter_rank: int = 16,
    subspace_rank: int = 64,
    of_many: int = 5,
    device: str = "auto",
    data: Path = SHARED / "full",
    work: Path = WORK,
    threads: int = 1,
    results: Path = RESULTS,
) -> None:
    """Measure, and merge what is found into the JSON file of this kind of device.

    Parameters
    ----------
    shapes:
        Shapes of models.
    rows:
        Rows of each measurement; 512 on a GPU.
    repeats:
        Interleaved repeats.
    adapter_rank:
        LoRA rank on the attention projections.
    subspace_rank:
        Directions of each of 1 or 3 targets.
    of_many:
        Directions of each of 57 targets: MMLU has five queries a subject.
    device:
        cpu, cuda, or what there is.
    data:
        LESS-style folder, for the token lengths.
    work:
        Where the lengths are kept.
    threads:
        CPU threads.
    results:
        Folder for the JSON file.
    """
    torch.set_num_threads(threads)
    lengths = pool_lengths(data, work)
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    path = results / f"speed-{kind}.json"
    table: dict[str, Any] = read_json(path)["shapes"] if path.exists() else {}
    options = {
        "rows": rows,
        "repeats": repeats,
        "adapter_rank": adapter_rank,
        "subspace_rank": subspace_rank,
        "directions_of_each_of_57": of_many,
        "threads": threads,
    }
    for shape in shapes:
        config = BenchConfig(
            shape=shape,
            rows=rows,
            adapter_rank=adapter_rank,
            subspace_rank=subspace_rank,
            lengths=lengths,
            device=device,
            seed=SEED,
        )
        table[shape] = measure(config, repeats, of_many)
        print(told(shape, table[shape], kind == "cuda"))
        made = circumstances("speed_table.py --shapes " + " ".join(table), "random weights", options)
        write_json(path, {"made": made, "shapes": table})
        gc.collect()


def pool_lengths(data: Path, work: Path, n: int = 4000) -> Path:
    """`tokens supervised` of rows drawn from the full pool, as SmolLM2's tokenizer and the Tulu template make them."""
    path = work / "lengths-full-pool.txt"
    if not path.exists():
        lines = [line for _, line in pool_lines(data / "train" / "processed")]
        write_lines(part := work / "lengths-pool.jsonl", [lines[row] for row in drawn_rows(len(lines), n, SEED)])
        tokenizer = load_tokenizer(ModelConfig(path=model_folder(demo=False)))
        records = [row for row in open_pool([part]).rows() if isinstance(row, Record)]
        encoded = encode(records, load_template("tulu", tokenizer), tokenizer, 2048)
        sizes = [f"{row.n_tokens} {row.n_supervised}" for row in encoded if isinstance(row, Example)]
        write_lines(path, [size.encode() for size in sizes])
    return path


def measure(config: BenchConfig, repeats: int, of_many: int) -> dict[str, Any]:
    """Seconds of every arm in each repeat, on one random model and the same rows."""
    language_model = random_model(config)
    examples = random_examples(config)
    on_cuda = language_model.device.type == "cuda"
    clock = time.perf_counter if on_cuda else time.process_time
    with GradientEngine(language_model) as engine:
        seconds = timed(arms(engine, examples, config, of_many), repeats, clock)
        return {
            "device": torch.cuda.get_device_name() if on_cuda else f"{torch.get_num_threads()} CPU threads",
            "dtype": str(language_model.dtype).removeprefix("torch."),
            "rows": len(examples),
            "tokens": sum(example.n_tokens for example in examples),
            "supervised": sum(example.n_supervised for example in examples),
            "parameters": matrix_parameters(language_model),
            "adapter": sum(block.size for block in engine.parameters),
            "peak_flops": peak_flops(language_model, clock=clock),
            "seconds": seconds,
        }


def arms(
    engine: GradientEngine, examples: Sequence[Example], config: BenchConfig, of_many: int
) -> dict[str, Callable[[], object]]:
    """What is measured; directions of bases and moments are random: the time does not depend on them."""
    generator = torch.Generator(engine.device).manual_seed(SEED)
    names = tuple(block.name for block in engine.parameters)

    def basis(rank: int) -> Basis:
        blocks = tuple(
            torch.randn(block.size, rank, generator=generator, device=engine.device).to(engine.basis_dtype)
            for block in engine.parameters
        )
        return Basis(names=names, blocks=blocks)

    def passed(*sinks: Collector) -> Callable[[], object]:
        return lambda: engine.collect(examples, sinks)

    gist = [ProjectionSink(basis(config.subspace_rank)) for _ in range(3)]
    shaped = {block.name: torch.rand(block.shape) for block in engine.parameters}
    moments: Any = SimpleNamespace(exp_avg=shaped, exp_avg_sq=shaped, step=100)

    def less(nonzeros: int | None) -> DirectionSink:
        return DirectionSink(ProjectionConfig(dimension=8192, nonzeros=nonzeros, seed=SEED), moments)

    dense = torch.cat(basis(config.subspace_rank).blocks)
    found: dict[str, Callable[[], object]] = {
        LOOP: lambda: published_loop(engine, examples, dense),
        ONE: passed(gist[0]),
        THREE: passed(*gist),
        "GIST, 57 targets": passed(ProjectionSink(basis(57 * of_many))),
        "GIST, 3 targets, and EK-FAC": passed(*gist, ProjectionSink(basis(3))),
        "GIST, 3 targets, and LESS, 8 entries a row": passed(*gist, less(8)),
        "GIST, sketched 32 wide": passed(SketchSink(SketchConfig(dimension=32, seed=SEED))),
    }
    if engine.device.type == "cuda":
        found["GIST, 3 targets, and LESS as published"] = passed(*gist, less(None))
    return found


def timed(works: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each work in each repeat, after one round that is not counted; none of a work that does not fit."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in list(works.items()):
            start = clock()
            try:
                work()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
            except torch.OutOfMemoryError:
                del works[name]
                seconds[name].clear()
                continue
            if repeat:
                seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    """Median over repeats of the time of one arm over another's in the same repeat."""
    return statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))


def told(shape: str, found: dict[str, Any], on_cuda: bool) -> str:
    """The table of one shape, with the goals."""
    useful = FOUR * found["parameters"] * found["tokens"]
    lines = [
        f"{shape}: {found['rows']} rows, {found['tokens']:,} tokens, {found['supervised']:,} supervised; "
        f"{found['adapter']:,} adapter parameters; {found['device']}, {found['dtype']}, "
        f"{found['peak_flops'] / 1e9:,.0f} GFLOP/s in a matrix product",
        f"{'arm':46} {'seconds / 100,000 rows':>24} {'tokens/s':>10} {'MFU':>6}",
    ]
    for name, times in found["seconds"].items():
        if not times:
            lines.append(f"{name:46} {'does not fit':>24}")
            continue
        median = statistics.median(times)
        share = useful / median / found["peak_flops"]
        lines.append(
            f"{name:46} {median / found['rows'] * REPORTED:24,.0f} {found['tokens'] / median:10,.0f} {share:6.1%}"
        )
    goals = (">= 10", ">= 25") if on_cuda else (">= 2.5", ">= 6")
    lines.append(f"published loop / GIST: {ratio(found['seconds'], LOOP, ONE):.2f} (goal {goals[0]})")
    lines.append(
        f"3 published loops / GIST, 3 targets: {3 * ratio(found['seconds'], LOOP, THREE):.2f} (goal {goals[1]})"
    )
    if on_cuda:
        lines.append("MFU: goal >= 50 % at 1.5 B parameters")
    return "\n".join(lines)


if __name__ == "__main__":
    app()
