"""Memory and time of scoring and selecting a large pool, on synthetic features.

    python benchmarks/scoring.py [rows] [features] [groups] [folder]

Writes the token table and the feature shards that a pass would leave (rows x features, random; 20 sources, every tenth
text twice), then scores them against one target of so many groups and selects 5 % with `top_k` and `round_robin`,
plainly and under constraints: a budget in tokens, limits of every source, no repeats. Says the resident memory above
start-up and the seconds of each stage. Needs about 800 bytes of disk a row, in a temporary folder; with a folder given
what was made is kept there, and read by the next command.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from gistselect.data.pool import Pool
from gistselect.representations.gist import Gist
from gistselect.representations.queries import Queries
from gistselect.run.cells import ARRAYS, FOLDER, Checkpoint, Keys, lay_out
from gistselect.run.choosing import Select
from gistselect.run.ingest import SHARD_ROWS, TOKENS_SCHEMA, RecordRows, TokenRows
from gistselect.run.progress import SilentReporter
from gistselect.run.scoring import Score
from gistselect.run.store import Artifact, Store, write_table
from gistselect.run.texts import REPEATED, TextPass
from gistselect.run.warmup import Given
from gistselect.selection.options import SelectionOptions

SOURCES, TOKENS = 20, 100
PLAIN = SelectionOptions(budget="5%")


def constrained(n_rows: int) -> SelectionOptions:
    """As many tokens as 5 % of the rows have, limits that bite, and no repeats."""
    budget = f"{n_rows * TOKENS // 20}-tokens"
    return SelectionOptions(budget=budget, source_max=["*=5.2%"], source_min=["*=4.8%"], dedup="exact")


def main(n_rows: int, width: int, n_groups: int, kept: str | None = None) -> None:
    with tempfile.TemporaryDirectory(prefix="gistselect-scoring-") as temporary:
        folder = kept or temporary
        store = Store(Path(folder))
        rng = np.random.default_rng(0)
        checkpoint = Checkpoint(name="synthetic", key="synthetic")
        queries = Queries(target="synthetic", records=(), examples=(), groups=())
        keys = Keys(records="r", tokens="t", model={}, queries={"synthetic": "q"})
        columns = tuple(lay_out(store, Gist(), [queries], [checkpoint], keys))
        ((fit, cell),) = columns[0].entries
        assert cell.measured is not None

        if not fit.artifact.is_complete:
            fit.artifact.begin()
            (fit.artifact / FOLDER).mkdir(exist_ok=True)
            save_file({"target_features": rng.standard_normal((n_groups, width))}, fit.artifact / FOLDER / ARRAYS)
            fit.artifact.complete(groups=[f"group {index}" for index in range(n_groups)])

        tokens = TokenRows(store.artifact("tokens", 0))
        n_shards = -(-n_rows // SHARD_ROWS)
        for shard in range(n_shards) if not tokens.artifact.is_complete else ():
            rows = np.arange(shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, n_rows))
            n = len(rows)
            identity = {
                "id": [f"row {row}" for row in rows],
                "source": [f"source {row % SOURCES}" for row in rows],
                "row": rows,
                "reason": pa.nulls(n, pa.string()),
                "n_tokens": rng.integers(1, 2 * TOKENS, size=n, dtype=np.int32),
                "n_supervised": np.full(n, 50, dtype=np.int32),
                "n_cut": np.zeros(n, dtype=np.int32),
                "unshown": pa.nulls(n, pa.string()),
                "input_ids": pa.nulls(n, pa.list_(pa.int32())),
                "supervised": pa.nulls(n, pa.list_(pa.bool_())),
            }
            write_table(tokens.artifact.shard(shard), pa.table(identity, schema=TOKENS_SCHEMA))
            values = rng.standard_normal((n, width), dtype=np.float32)
            features = pa.FixedSizeListArray.from_arrays(values.reshape(-1), width)
            write_table(cell.features.shard(shard), pa.table({"row": rows, "features": features}))
            ones = np.full(n, width, dtype=np.float32)
            measured = {
                "row": rows,
                "loss": ones,
                "n_supervised": np.full(n, 50, dtype=np.int32),
                "gradient_norm": ones,
            }
            write_table(cell.measured.shard(shard), pa.table(measured))
        if not tokens.artifact.is_complete:
            # With checksums, which are proved at the first reading.
            cell.features.complete(n_shards=n_shards)
            cell.measured.complete(n_shards=n_shards)
            tokens.artifact.complete(n_rows=n_rows, n_usable=n_rows, n_rejected=0, n_shards=n_shards)

        score = Score(
            label="gist",
            representation=Gist(),
            columns=columns,
            rows=tokens,
            warmup=Given(checkpoints=(checkpoint,), adapters=(None,), weights=None),
            strict=False,
            seed=0,
            artifact=store.artifact("scores", 0),
        )
        start = resident()
        clock = Clock()
        score.run(SilentReporter())
        print(f"scored {n_rows:,} x {width} against {n_groups}: {clock}, {above(start)}", flush=True)
        for selector in ("top_k", "round_robin"):
            for name, options in (("plainly", PLAIN), ("under constraints", constrained(n_rows))):
                texts = TextPass.planned(store, RecordRows(tokens.artifact), options.dedup, None)
                if texts.digests and not texts.digests.is_complete:
                    repeat(texts.digests, n_rows)
                clock = Clock()
                select = Select(
                    score=score,
                    records=RecordRows(tokens.artifact),
                    pool=Pool(parts=()),
                    options=options.model_copy(update={"selector": selector}),
                    output_format="pool",
                    texts=texts,
                    artifact=store.artifact("selection", 0),
                )
                table, refused, _ = select.ranked()
                counts = f"{table.num_rows:,} selected, {refused.num_rows:,} refused"
                print(f"{selector} {name}: {counts}: {clock}, {above(start)}", flush=True)


def repeat(digests: Artifact, n_rows: int) -> None:
    """What a pass over the text would leave: the rows of every tenth pair say the same."""
    digests.begin()
    first = np.arange(0, n_rows - 1, 20)
    pairs = np.stack([first, first + 1], axis=1).reshape(-1)
    groups = np.repeat(np.arange(len(first), dtype=np.int32), 2)
    write_table(digests / REPEATED, pa.table({"row": pairs, "group": groups}))
    digests.complete(n_shards=0, n_rows=n_rows, n_repeats=len(first))


class Clock:
    """Seconds since it was made, on the wall and of all cores: on a busy machine they differ."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def __str__(self) -> str:
        return f"{time.monotonic() - self._wall:.1f} s ({time.process_time() - self._cpu:.1f} s of cores)"


def resident() -> int:
    """Peak resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def above(start: int) -> str:
    return f"{(resident() - start) / 1e9:.2f} GB above the start's {start / 1e9:.2f} GB"


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:4]] + [1_000_000, 64, 57][len(sys.argv[1:4]) :]
    main(*numbers, *sys.argv[4:])
