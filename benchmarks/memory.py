"""Memory of gradient passes and of training: by the formulas of docs/memory.md, and as it is.

    python benchmarks/memory.py                                  the tables of docs/memory.md, without any weight
    python benchmarks/memory.py --measure smollm2-135m qwen2.5-0.5b [--batch-tokens 512] [--dtype float32]

Measured are a random model of that shape on random rows on this machine, each in a process of its own: memory after
the model is there, and at the worst moment of a pass over the bases of one target.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gistselect.bench.shapes import SHAPES
from gistselect.errors import ConfigError
from gistselect.model.sketch_size import SketchBudget, parse_sketch, sketch_bytes, sketch_numbers

_QWEN = {"model_type": "qwen2", "vocab_size": 152064, "num_key_value_heads": 8, "tie_word_embeddings": False}
MORE: dict[str, dict[str, Any]] = {
    "qwen2.5-14b": {
        **_QWEN,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
    },
    "qwen2.5-32b": {
        **_QWEN,
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
    },
    "llama-3.1-70b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}
BATCH, RANKS, SUBSPACE = 32768, (16, 128), 64
WIDTH, SKETCHES = 32, ("1GB", "4GB", "16GB", "1%")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the formulas read of a model."""

    parameters: int
    embeddings: int
    """Of these, in tables of words: never quantized."""
    adapted: tuple[tuple[int, int], ...]
    """Outputs and inputs of q, k, v, o of every layer."""
    layers: int
    hidden: int
    heads: int
    """Width of all query heads, and of key and value heads."""
    inner: int
    vocabulary: int

    @property
    def adapter(self) -> int:
        """Parameters of an adapter of rank 1."""
        return sum(out + inner for out, inner in self.adapted)

    def matrices(self, rank: int) -> list[tuple[int, int]]:
        """Shapes of an adapter's factors."""
        return [shape for out, inner in self.adapted for shape in ((rank, inner), (out, rank))]

    def weights(self, n_bytes: float) -> float:
        """Bytes of the frozen model; in 4 bits there are 0.5 for a weight and a float32 for every 64."""
        if n_bytes >= 1:
            return self.parameters * n_bytes
        return self.embeddings * 2 + (self.parameters - self.embeddings) * (n_bytes + 4 / 64)

    def basis(self, rank: int, directions: int, n_bytes: float) -> float:
        """Bytes of one target's basis at one checkpoint."""
        return self.adapter * rank * directions * n_bytes

    def activations(self, tokens: int, n_bytes: float, rank: int) -> float:
        """Bytes that a batch keeps for its backward pass: of every layer its input twice (and both normed), what
        attention reads and gives, and of the feed-forward part gate, up, their product and the activation."""
        layer = 6 * self.hidden + 2 * self.heads + 4 * self.inner + 4 * rank
        return tokens * self.layers * layer * n_bytes

    def training(self, rank: int) -> float:
        """Bytes of an adapter in float32 with its gradients and two moments."""
        return 16 * self.adapter * rank

    def full_training(self) -> float:
        """Bytes of all weights in float32 with gradients and two moments."""
        return 16 * self.parameters


def sizes(shape: str) -> Sizes:
    """Counted on modules without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{**SHAPES, **MORE}[shape])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    ends = ("q_proj", "k_proj", "v_proj", "o_proj", "query_key_value", "attention.dense")
    adapted = [module for name, module in model.named_modules() if name.endswith(ends)]
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    words = {id(one.weight): one.weight.numel() for one in tables}
    of_heads = {name.rpartition(".")[2]: module.out_features for name, module in model.named_modules()
                if name.endswith(ends)}  # fmt: skip
    heads = sum(of_heads.get(name, 0) for name in ("q_proj", "k_proj", "v_proj", "query_key_value"))
    return Sizes(
        parameters=model.num_parameters(),
        embeddings=sum(words.values()),
        adapted=tuple((one.out_features, one.in_features) for one in adapted),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        inner=config.intermediate_size,
        vocabulary=config.vocab_size,
    )


@cache
def _known() -> dict[str, Sizes]:
    shapes = ["qwen2.5-0.5b", "qwen2.5-1.5b", "llama-3.2-3b", "llama-3.1-8b", *MORE]
    return {shape: sizes(shape) for shape in shapes}


def print_formulas() -> None:
    """The tables of docs/memory.md."""
    known = _known()
    print("| model | parameters | bfloat16 | 8 bits | 4 bits | 32,768 tokens | the same, checkpointed |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for shape, one in known.items():
        row = [one.weights(2), one.embeddings * 2 + (one.parameters - one.embeddings), one.weights(0.5)]
        row += [one.activations(BATCH, 2, 128), BATCH * one.layers * one.hidden * 2]
        print(f"| {shape} | {one.parameters / 1e9:.2f} B | " + " | ".join(f"{value / 1e9:.1f}" for value in row) + " |")
    print()
    print("| model | rank | adapter, M | basis of 64, bfloat16 | training it | training all |")
    print("|---|---:|---:|---:|---:|---:|")
    for shape, one in known.items():
        for rank in RANKS:
            row = [one.basis(rank, SUBSPACE, 2), one.training(rank), one.full_training()]
            told = [f"{value / 1e9:.1f} GB" for value in row]
            print(f"| {shape} | {rank} | {one.adapter * rank / 1e6:.1f} | {told[0]} | {told[1]} | {told[2]} |")
    print()
    print_sketches()


def print_sketches() -> None:
    """The table of widths."""
    budgets = [(text, parse_sketch(text)) for text in SKETCHES]
    print(
        "| model | rank | " + " | ".join(f"{WIDTH} wide: {what}" for what in ("numbers of a row", "of p", "device")),
        end="",
    )
    print(" | " + " | ".join(SKETCHES) + " |")
    print("|---|---:|---:|---:|---:|" + "---:|" * len(budgets))
    for shape, one in _known().items():
        for rank in RANKS:
            matrices = one.matrices(rank)
            numbers, n_bytes = int(sketch_numbers(matrices, WIDTH)), int(sketch_bytes(matrices, WIDTH))
            told = f"{numbers:,} | {numbers / (one.adapter * rank):.2%} | {n_bytes / 1e9:.2f} GB"
            widths = []
            for _, budget in budgets:
                assert isinstance(budget, SketchBudget)
                try:
                    widths.append(str(budget.width(matrices)))
                except ConfigError:
                    widths.append("—")
            print(f"| {shape} | {rank} | {told} | " + " | ".join(widths) + " |")


def measure(shape: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Bytes after the model is there, and more at the worst moment of a pass; run in a process of its own."""
    from gistselect.bench.arms import random_bases, random_examples, random_model
    from gistselect.bench.config import BenchConfig
    from gistselect.bench.measure import _status_bytes, peak_bytes
    from gistselect.model.engine_config import EngineConfig
    from gistselect.model.gradients import GradientEngine
    from gistselect.model.sinks import ProjectionSink

    before = _status_bytes("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        lengths = Path(folder) / "lengths.txt"
        lengths.write_text(f"{arguments.row_tokens} {arguments.row_tokens // 2}\n" * 2)
        given = {"shape": shape, "rows": arguments.rows, "adapter_rank": arguments.adapter_rank, "lengths": lengths}
        config = BenchConfig.model_validate({**given, "dtype": arguments.dtype, "subspace_rank": SUBSPACE})
        model = random_model(config)
        held = _status_bytes("VmRSS") - before
        examples = random_examples(config)
        settings = EngineConfig(
            batch_tokens=arguments.batch_tokens, activation_checkpointing=arguments.activation_checkpointing
        )
        with GradientEngine(model, settings) as engine:
            basis = random_bases(engine, config)[0]
            n_basis = basis.n_bytes
            sink: Any = ProjectionSink(basis)
            extra = peak_bytes(lambda: engine.collect(examples, [sink]), model)
    return {"held": held, "basis": n_basis, "pass": extra}


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="+", default=[])
    parser.add_argument("--adapter-rank", type=int, default=16)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--row-tokens", type=int, default=256)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments)))
        return
    if not arguments.measure:
        print_formulas()
    for shape in arguments.measure:
        command = [sys.executable, __file__, "--child", shape, *sys.argv[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        one, n_bytes = sizes(shape), {"float32": 4, "bfloat16": 2}[arguments.dtype]
        tokens, rank = arguments.batch_tokens, arguments.adapter_rank
        expected = one.activations(tokens, n_bytes, rank)
        if arguments.activation_checkpointing:
            expected = tokens * one.layers * one.hidden * n_bytes + expected / one.layers
        logits = 2 * tokens // 2 * one.vocabulary * 4
        print(
            f"{shape}: model {found['held'] / 1e9:.2f} GB (formula "
            f"{(one.weights(n_bytes) + one.adapter * rank * n_bytes) / 1e9:.2f}), pass {found['pass'] / 1e9:.2f} GB "
            f"(activations {expected / 1e9:.2f} + logits {logits / 1e9:.2f}), basis {found['basis'] / 1e9:.3f} GB "
            f"({one.basis(rank, SUBSPACE, 4) / 1e9:.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
