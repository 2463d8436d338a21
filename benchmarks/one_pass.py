"""What several methods in one backward pass cost beside the dearest of them: `python benchmarks/one_pass.py`.

GIST for three targets, LESS and a sketch, on the embedded demo model with a LoRA adapter whose second factor is random,
and rows of the demo pool. A method's own arithmetic, its projection alone, is measured on gradients at hand and
taken off, so that what is compared is what the pass itself costs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import cyclopts
import numpy as np
import torch

from gistselect.data.pool import open_pool
from gistselect.data.templates import load_template
from gistselect.data.tokens import encode
from gistselect.model.adapters import AdapterConfig, adapter_parameters, attach_adapter
from gistselect.model.basis import Basis
from gistselect.model.config import ModelConfig
from gistselect.model.directions import DirectionSink
from gistselect.model.engine_config import EngineConfig, ProjectionConfig, SketchConfig
from gistselect.model.gradients import GradientEngine
from gistselect.model.loading import LanguageModel, load_model
from gistselect.model.sinks import Collector, GatheringCollector, ProjectionSink, SketchSink
from gistselect.types import Example, Record

app = cyclopts.App(help=__doc__)
SEED = 0


@app.default
def main(
    *,
    rows: int = 96,
    repeats: int = 5,
    adapter_rank: int = 16,
    subspace_rank: int = 64,
    dimension: int = 8192,
    threads: int = 1,
    engine: Annotated[EngineConfig | None, cyclopts.Parameter(name="*")] = None,
) -> None:
    """Print medians of interleaved repeats, in CPU seconds (machines are shared), and ratios within a repeat."""
    torch.set_num_threads(threads)
    adapted, examples = demo_model(adapter_rank, rows)
    with GradientEngine(adapted, engine) as gradients:
        arms = sinks(gradients, subspace_rank, dimension)
        every = [sink for one in arms.values() for sink in one]
        dense = torch.from_numpy(gradients.gradients(examples))
        print(f"{rows} rows, {sum(example.n_tokens for example in examples):,} tokens; {gradients.mode}")
        print(f"{dense.shape[1]:,} adapter parameters, {threads} threads, {repeats} interleaved repeats")
        works: dict[str, Callable[[], object]] = {"loss and norm alone": lambda: gradients.collect(examples, [])}
        for name, one in arms.items():
            works[name] = lambda one=one: gradients.collect(examples, one)
            works[f"{name}: own arithmetic"] = lambda one=one: arithmetic(gradients, dense, one)
        works["all in one pass"] = lambda: gradients.collect(examples, every)
        report(list(arms), measured(works, repeats))


def demo_model(adapter_rank: int, rows: int) -> tuple[LanguageModel, list[Example]]:
    """The demo's model with an adapter that has gradients in both factors, and rows of its pool."""
    demo = Path(str(files("gistselect.demo")))
    bare = load_model(ModelConfig(path=str(demo / "model"), device="cpu"))
    adapted = attach_adapter(bare, AdapterConfig(rank=adapter_rank, alpha=adapter_rank), SEED)
    for name, value in adapter_parameters(adapted.model).items():
        if ".lora_B." in name:
            torch.nn.init.normal_(value, std=0.01)
    return adapted, pool_examples(demo / "data" / "train", adapted.tokenizer, rows)


def pool_examples(folder: Path, tokenizer: object, rows: int) -> list[Example]:
    """Seeded rows of the demo pool."""
    records = [record for record in open_pool([folder]).rows() if isinstance(record, Record)]
    order = np.random.default_rng(SEED).permutation(len(records))[: 2 * rows]
    encoded = encode([records[row] for row in order], load_template("tulu", tokenizer), tokenizer, 2048)  # pyright: ignore[reportArgumentType]
    return [row for row in encoded if isinstance(row, Example)][:rows]


def sinks(engine: GradientEngine, rank: int, dimension: int) -> dict[str, list[Collector]]:
    """The arms; directions of bases and moments are random: the time does not depend on them."""
    generator = torch.Generator().manual_seed(SEED)
    names = tuple(block.name for block in engine.parameters)

    def basis() -> Basis:
        blocks = tuple(torch.randn(block.size, rank, generator=generator) for block in engine.parameters)
        return Basis(names=names, blocks=blocks)

    shaped = {block.name: torch.rand(block.shape, generator=generator) for block in engine.parameters}
    moments = SimpleNamespace(exp_avg=shaped, exp_avg_sq=shaped, step=100)
    return {
        "gist, 3 targets": [ProjectionSink(basis()) for _ in range(3)],
        "less": [DirectionSink(ProjectionConfig(dimension=dimension, seed=SEED), moments)],
        "sketch": [SketchSink(SketchConfig(dimension=16, seed=SEED))],
    }


def arithmetic(engine: GradientEngine, dense: torch.Tensor, one: Sequence[Collector]) -> None:
    """What is left of a pass if gradients (n, p) are at hand: the sinks' own products."""
    parts = dense.split([block.size for block in engine.parameters], dim=1)
    for sink in one:
        if isinstance(sink, GatheringCollector):
            sink.start(len(dense), engine.site)
            sink.begin(torch.arange(len(dense)))
            for some in torch.arange(len(dense)).split(sink.rows_wanted):
                for block, part in enumerate(parts):
                    sink.take(block, part[some[0] : some[-1] + 1].contiguous(), some)


def measured(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each work in each repeat, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            start = time.process_time()
            work()
            if repeat:
                seconds[name].append(time.process_time() - start)
    return seconds


def report(arms: Sequence[str], seconds: dict[str, list[float]]) -> None:
    """Print the table and the ratios that are to be judged."""
    for name, times in seconds.items():
        print(f"{name:36} {statistics.median(times):8.2f} s")
    together, separate, beyond = [], [], []
    for repeat, whole in enumerate(seconds["all in one pass"]):
        alone = [seconds[name][repeat] for name in arms]
        own = [seconds[f"{name}: own arithmetic"][repeat] for name in arms]
        together.append(whole / max(alone))
        separate.append(whole / sum(alone))
        dearest = alone.index(max(alone))
        beyond.append((whole - sum(own)) / (alone[dearest] - own[dearest]))
    print(f"one pass / the dearest alone         {statistics.median(together):8.2f}")
    print(f"one pass / separate passes           {statistics.median(separate):8.2f}")
    print(f"the same beyond own arithmetic       {statistics.median(beyond):8.2f}   goal <= 1.15 of the dearest alone")


if __name__ == "__main__":
    app()
