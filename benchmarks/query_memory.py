"""Memory that fitting a task subspace takes beyond the model: `python benchmarks/query_memory.py` (see --help).

By default the published worst case, MMLU: 285 queries, Qwen2.5-1.5B, LoRA rank 128, whose gradients together take
40 GB in float32. What is held does not depend on the length of the queries beyond their activations, so they are
short here.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import cyclopts
import numpy as np

from gistselect.bench.arms import random_examples, random_model
from gistselect.bench.config import BenchConfig
from gistselect.bench.measure import peak_bytes
from gistselect.bench.shapes import Shape
from gistselect.linalg.subspace import factor_gram
from gistselect.model.gradients import Basis, EngineConfig, GradientEngine

app = cyclopts.App(help=__doc__)


@app.default
def main(
    *,
    shape: Shape = "qwen2.5-1.5b",
    queries: int = 285,
    tokens: int = 4,
    adapter_rank: int = 128,
    subspace_rank: int = 150,
    engine: Annotated[EngineConfig | None, cyclopts.Parameter(name="*")] = None,
    dtype: str = "bfloat16",
) -> None:
    """Take the Gram matrix, then stream the basis to a temporary folder, and print the peak of each."""
    with tempfile.TemporaryDirectory() as folder:
        lengths = Path(folder) / "lengths.txt"
        lengths.write_text(f"{tokens} {tokens - 1}\n")
        config = BenchConfig.model_validate(
            {"shape": shape, "rows": queries, "adapter_rank": adapter_rank, "lengths": lengths, "dtype": dtype}
        )
        language_model = random_model(config)
        examples = random_examples(config)
        with GradientEngine(language_model, engine or EngineConfig()) as gradients:
            n_parameters = sum(block.size for block in gradients.parameters)
            print(f"{n_parameters:,} adapter parameters; {queries * n_parameters * 4 / 1e9:.1f} GB of query gradients")
            found: list[np.ndarray] = []
            start = time.perf_counter()
            peak = peak_bytes(lambda: found.append(gradients.gram(examples)), language_model)
            print(f"Gram matrix: {peak / 1e9:.2f} GB beyond the model, {time.perf_counter() - start:.0f} s")
            subspace = factor_gram(found[0], rank=subspace_rank, rtol=1e-6)
            parts = gradients.basis_parts(examples, subspace.basis_weights)
            start = time.perf_counter()
            peak = peak_bytes(lambda: Basis.save_parts(parts, Path(folder)), language_model)
            print(f"basis: {peak / 1e9:.2f} GB beyond the model, {time.perf_counter() - start:.0f} s")
            size = sum(part.stat().st_size for part in Path(folder).glob("*.safetensors"))
            print(f"rank {subspace.rank}, {size / 1e9:.1f} GB on disk")


if __name__ == "__main__":
    app()
