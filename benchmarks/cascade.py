"""What a prefilter spares and what it costs, timed: `python benchmarks/cascade.py`.

GIST for GSM8K on the embedded demo model and a random part of the pool, without a prefilter and behind several, each in
a folder of its own at the same warm-up. Of each the seconds from the read pool to the scores (prefilter, queries,
pass), by the clock and of the processor; the loss as the cascade measures it from its sample, and the true one from the
run without. Finished runs are kept: the command continues, and writes cascade-demo-seedN.json once all are there.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import torch

from gistselect.files import read_json, write_json
from gistselect.run.config import RunConfig
from gistselect.run.pipeline import execute
from gistselect.run.progress import Reporter
from gistselect.run.store import read_table
from study_setup import DEMO, RESULTS, SHARED, WORK, circumstances, model_folder, model_title, pool_part

app = cyclopts.App(help=__doc__)
WHOLE = "none"
TOOK = "took.json"
PREFILTERS = ("bm25:10%", "bm25:20%", "bm25:50%")
COMMON: dict[str, Any] = {
    **{name: DEMO[name] for name in ("max_length", "warmup", "warmup_share", "template", "dtype")},
    "target": ["gsm8k"],
    "max_queries": 60,
    "budget": "5%",
    "stability_draws": 0,
}


@app.default
def main(
    *,
    data: Path = SHARED / "small",
    results: Path = RESULTS,
    work: Path = WORK / "cascade",
    rows: int = 1500,
    seed: int = 0,
    prefilters: Annotated[tuple[str, ...], cyclopts.Parameter(consume_multiple=True)] = PREFILTERS,
    threads: int = 1,
    most: int | None = None,
) -> None:
    """Run what is missing, and print a row of the table for each prefilter.

    Parameters
    ----------
    most:
        Runs to time in this call; all by default. The result is written by the call that finds all done.
    """
    torch.set_num_threads(threads)
    folder = work / f"{rows}-seed{seed}"
    common = {
        **COMMON,
        "model": model_folder(demo=True),
        "pool": [str(pool_part(data / "train" / "processed", rows, seed, folder))],
        "data_dir": data,
        "seed": seed,
    }
    execute(RunConfig.from_values({**common, "output": folder / "warm-up"}), Reporter(), last="warmup")
    checkpoint = min(
        folder.glob("warm-up/artifacts/warmup-*/training/checkpoint-*"), key=lambda path: int(path.name[11:])
    )
    runs: dict[str, Path] = {}
    for prefilter in (WHOLE, *prefilters):
        output = folder / prefilter.replace(":", "-").replace("%", "")
        if not (output / TOOK).is_file():
            if most == 0:
                continue
            most = None if most is None else most - 1
            _time(RunConfig.from_values({**common, "output": output, "adapter": checkpoint, "prefilter": prefilter}))
        runs[prefilter] = output
    if len(runs) <= len(prefilters):
        print(f"{len(runs)} of {1 + len(prefilters)} runs are there; the same command continues.")
        return
    found = [_found(name, output, runs[WHOLE]) for name, output in runs.items()]
    made = circumstances("cascade.py", model_title(demo=True), {**common, "rows": rows, "threads": threads})
    write_json(results / f"cascade-demo-seed{seed}.json", {"made": made, "runs": found})
    for one in found:
        print(one)


def _time(run: RunConfig) -> None:
    execute(run, Reporter(), last="ingest")
    started = time.monotonic(), time.process_time()
    execute(run, Reporter(), last="score")
    wall, processor = time.monotonic() - started[0], time.process_time() - started[1]
    execute(run, Reporter(), last="select")
    write_json(run.output / TOOK, {"wall_seconds": wall, "processor_seconds": processor})


def _found(prefilter: str, folder: Path, whole: Path) -> dict[str, Any]:
    """What a run read, took and lost, in itself and beside the run without a prefilter."""
    took, of_whole = read_json(folder / TOOK), read_json(whole / TOOK)
    manifest = read_json(folder / "manifest.json")
    selected, best = _selected(folder), _selected(whole)
    facts = manifest.get("prefilter")
    return {
        "prefilter": prefilter,
        "usable_rows": manifest["pool"]["n_usable"],
        "selected": len(selected),
        "kept": facts["kept"] if facts else manifest["pool"]["n_usable"],
        "sampled": facts["sampled"] if facts else 0,
        **took,
        "share_of_wall": took["wall_seconds"] / of_whole["wall_seconds"],
        "share_of_processor": took["processor_seconds"] / of_whole["processor_seconds"],
        "measured_loss": facts["lost"]["gist"] if facts else None,
        "true_loss": 1 - len(best & selected) / len(best) if facts else None,
    }


def _selected(folder: Path) -> set[str]:
    return set(read_table(folder / "selection.parquet", ["id"])["id"].to_pylist())


if __name__ == "__main__":
    app()
