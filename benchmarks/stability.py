"""Time and memory of the stability of a selection, on synthetic features.

    python benchmarks/stability.py [rows] [rank] [draws] [folder]

Three targets with the groups of MMLU (57 of 5 queries), BBH (27 of 3) and GSM8K (100 queries), each with its own
features of a row; 5 % of the rows are selected by `top_k` and by `round_robin`, and selected again in every draw.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from gistselect.data.pool import Pool
from gistselect.linalg.similarity import cosine_scores
from gistselect.linalg.subspace import group_means
from gistselect.representations.gist import Gist
from gistselect.representations.queries import Queries
from gistselect.run.cells import ARRAYS, FOLDER, Checkpoint, Keys, lay_out
from gistselect.run.choosing import SELECTION, Select
from gistselect.run.ingest import SHARD_ROWS, RecordRows, TokenRows
from gistselect.run.progress import SilentReporter
from gistselect.run.scored import ScoredPool
from gistselect.run.scoring import SCORE, SCORES, Score, target_name
from gistselect.run.stability import Stability
from gistselect.run.store import Store, write_table
from gistselect.run.texts import TextPass
from gistselect.run.warmup import Given
from gistselect.selection.gates import Room, choose
from gistselect.selection.options import SelectionOptions
from scoring import above, resident

TARGETS = {"mmlu": (57, 5), "bbh": (27, 3), "gsm8k": (1, 100)}
SIGNAL = 0.3
"""Length of what the queries of a group share, in units of the standard deviation of a coordinate."""


def main(n_rows: int, rank: int, draws: int, folder: Path) -> None:
    store, rng = Store(folder), np.random.default_rng(0)
    checkpoint = Checkpoint(name="synthetic", key="synthetic")
    asked = [
        Queries(target=name, records=(), examples=(), groups=tuple(f"g{g}" for g in range(n) for _ in range(m)))
        for name, (n, m) in TARGETS.items()
    ]
    keys = Keys(records="r", tokens="t", model={}, queries={name: name for name in TARGETS})
    columns = tuple(lay_out(store, Gist(), asked, [checkpoint], keys))
    scores: dict[str, np.ndarray] = {}
    for column in columns:
        ((fit, cell),) = column.entries
        groups = list(fit.queries.groups)
        features = rng.standard_normal((len(groups), rank))
        features += SIGNAL * rng.standard_normal((len(set(groups)), rank))[fit.queries.group_of]
        names, means = group_means(features, groups)
        fit.artifact.begin()
        (fit.artifact / FOLDER).mkdir(exist_ok=True)
        save_file({"query_features": features, "target_features": means}, fit.artifact / FOLDER / ARRAYS)
        fit.artifact.complete(groups=list(names))
        cell.features.begin()
        found = []
        for start in range(0, n_rows, SHARD_ROWS):
            rows = np.arange(start, min(start + SHARD_ROWS, n_rows))
            values = rng.standard_normal((len(rows), rank), dtype=np.float32)
            found.append(cosine_scores(values, means))
            kept = pa.FixedSizeListArray.from_arrays(values.reshape(-1), rank)
            write_table(cell.features.shard(start // SHARD_ROWS), pa.table({"row": rows, "features": kept}))
            assert cell.measured is not None
            ones = np.ones(len(rows), dtype=np.float32)
            write_table(
                cell.measured.shard(start // SHARD_ROWS), pa.table({"row": rows, "loss": ones, "gradient_norm": ones})
            )
        cell.features.complete()
        of_target = np.concatenate(found)
        scores |= {target_name(column.target, name): of_target[:, index] for index, name in enumerate(names)}
    score = Score(
        label="gist",
        representation=Gist(),
        columns=columns,
        rows=TokenRows(store.artifact("tokens", 0)),
        warmup=Given(checkpoints=(checkpoint,), adapters=(None,), weights=None),
        strict=False,
        seed=0,
        artifact=store.artifact("scores", 0),
    )
    best = np.max(list(scores.values()), axis=0)
    score.artifact.begin()
    table = {"id": [f"row {row}" for row in range(n_rows)], "row": np.arange(n_rows), "score": best}
    write_table(score.artifact / SCORES, pa.table({**table, **{SCORE + name: one for name, one in scores.items()}}))
    score.artifact.complete(targets=list(scores), n_scored=n_rows, n_rejected=0)
    for selector in ("top_k", "round_robin"):
        options = SelectionOptions(budget="5%", selector=selector)
        select = Select(
            score=score,
            records=RecordRows(score.rows.artifact),
            pool=Pool(parts=()),
            options=options,
            output_format="pool",
            texts=TextPass.planned(store, RecordRows(score.rows.artifact), None, None),
            artifact=store.artifact("selection", 0, selector=selector),
        )
        chosen = choose(options.order.order(ScoredPool(score)), Room(n_rows // 20), ()).positions
        select.artifact.begin()
        write_table(select.artifact / SELECTION, pa.table({"row": chosen}))
        select.artifact.complete(n_selected=len(chosen))
        start, seconds = resident(), time.monotonic()
        processor = time.process_time()
        stability = Stability.planned(select, (), draws=draws, most=0, seed=0, store=store)
        stability.run(SilentReporter())
        print(
            f"{selector}: {n_rows:,} rows x {rank} x {len(TARGETS)} targets, {draws} draws: "
            f"{time.monotonic() - seconds:.1f} s ({time.process_time() - processor:.1f} s of processor), {above(start)}"
        )
        print(f"  {stability.told()}", flush=True)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:4]] + [166_682, 64, 100][len(sys.argv[1:4]) :]
    with tempfile.TemporaryDirectory(prefix="gistselect-stability-") as temporary:
        main(*numbers, Path(sys.argv[4] if len(sys.argv) > 4 else temporary))
