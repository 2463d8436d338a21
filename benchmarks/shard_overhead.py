"""What a shard of a gradient pass costs beside its model: reading its tokens, writing what is kept and measured.

    python benchmarks/shard_overhead.py [--rows 1024 16384] [--tokens 400] [--width 64] [--folder DIR]

Median of `--repeats`; files are synced, so the number is one of the disk under the folder.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gistselect.run.ingest import TOKENS_SCHEMA, TokenRows
from gistselect.run.passes import _features_table
from gistselect.run.store import Store, write_table


def seconds(n: int, n_tokens: int, width: int, repeats: int, folder: Path) -> dict[str, NDArray[np.float64]]:
    """Median seconds on the wall and of all cores of each piece for one shard of n rows, whose files are new."""
    rng = np.random.default_rng(0)
    store = Store(folder)
    tokens = TokenRows(store.artifact("tokens", 0, rows=n))
    features, measured = (store.artifact(name, 0, rows=n) for name in ("features", "measured"))
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * n_tokens)
    ids = pa.array(rng.integers(50_000, size=n * n_tokens, dtype=np.int32))
    supervised = pa.array(rng.random(n * n_tokens) < 0.5)
    table = pa.table(
        {
            "id": [f"row {row}" for row in range(n)],
            "source": ["source"] * n,
            "row": np.arange(n),
            "reason": pa.nulls(n, pa.string()),
            **{name: np.full(n, n_tokens, dtype=np.int32) for name in ("n_tokens", "n_supervised", "n_cut")},
            "unshown": pa.nulls(n, pa.string()),
            "input_ids": pa.ListArray.from_arrays(offsets, ids),
            "supervised": pa.ListArray.from_arrays(offsets, supervised),
        },
        schema=TOKENS_SCHEMA,
    )
    for shard in range(repeats):
        write_table(tokens.artifact.shard(shard), table)
    tokens.artifact.complete(n_shards=repeats)  # checksums, which the first reading proves
    kept, one = rng.standard_normal((n, width), dtype=np.float32), np.ones(n, dtype=np.float32)
    found: dict[str, list[NDArray[np.float64]]] = {"read": [], "write": []}
    for shard in range(repeats):
        started = clock()
        rows, examples = tokens.examples(shard)
        found["read"].append(clock() - started)
        assert len(examples) == n
        started = clock()
        write_table(features.shard(shard), _features_table(rows, kept))
        write_table(measured.shard(shard), pa.table({"row": rows, "loss": one, "n_supervised": one, "norm": one}))
        features.spend(shared=0.0, own=0.0)
        found["write"].append(clock() - started)
    return {name: np.median(values, axis=0) for name, values in found.items()}


def clock() -> NDArray[np.float64]:
    """Seconds on the wall and of all cores."""
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    """Print one line a size of shards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 16384])
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--width", type=int, default=64, help="numbers kept of a row")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    for n in arguments.rows:
        with tempfile.TemporaryDirectory(prefix="gistselect-shards-", dir=arguments.folder) as folder:
            found = seconds(n, arguments.tokens, arguments.width, arguments.repeats, Path(folder))
        said = ", ".join(f"{name} {wall:.3f} s ({cores:.3f} s of cores)" for name, (wall, cores) in found.items())
        print(f"{n:,} rows of {arguments.tokens} tokens: {said}", flush=True)


if __name__ == "__main__":
    main()
