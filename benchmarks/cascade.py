"""What a prefilter spares and what it costs: `python benchmarks/cascade.py --data-dir FOLDER --output runs/cascade`.

GIST for one task on the embedded demo model, without a prefilter and with several, all at the same warm-up. Of each the
CPU seconds from the read pool to the scores (prefilter, queries, pass), the loss as the cascade measures it from its
sample, and the true one from the run without. Finished runs are kept: the command continues, and prints the table.
"""

from __future__ import annotations

import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import cyclopts

from gistselect.run.config import RunConfig
from gistselect.run.pipeline import execute
from gistselect.run.progress import Reporter
from gistselect.run.store import read_table

app = cyclopts.App(help=__doc__)
WHOLE = "none"
TOOK = "cpu_seconds.json"


@app.default
def main(
    *,
    data_dir: Path,
    output: Path,
    target: str = "gsm8k",
    budget: str = "5%",
    prefilters: Annotated[tuple[str, ...], cyclopts.Parameter(consume_multiple=True)] = (
        "bm25:10%",
        "bm25:20%",
        "bm25:50%",
        "random:20%",
    ),
    sample: int | None = None,
    adapter_rank: int = 16,
) -> None:
    """Run what is missing, and print a row of the table for each prefilter."""
    common = {
        "model": str(files("gistselect.demo") / "model"),
        "pool": (str(data_dir / "train" / "processed"),),
        "target": (target,),
        "data_dir": data_dir,
        "budget": budget,
        "warmup": {"adapter": {"rank": adapter_rank, "alpha": 4 * adapter_rank}},
    }
    first = RunConfig.from_values({**common, "output": output / "warm-up"})
    execute(first, Reporter(), last="warmup")
    checkpoint = min(
        output.glob("warm-up/artifacts/warmup-*/training/checkpoint-*"), key=lambda path: int(path.name[11:])
    )
    found = {}
    for prefilter in (WHOLE, *prefilters):
        name = prefilter.replace(":", "-").replace("%", "")
        options = {"output": output / name, "adapter": checkpoint, "prefilter": prefilter, "prefilter_sample": sample}
        run = RunConfig.from_values({**common, **options})
        if not (run.output / TOOK).is_file():
            execute(run, Reporter(), last="ingest")
            started = time.process_time()
            execute(run, Reporter(), last="score")
            took = time.process_time() - started
            execute(run, Reporter(), last="select")
            (run.output / TOOK).write_text(json.dumps(took), encoding="utf-8")
        found[prefilter] = run.output
    _print(found)


def _print(found: dict[str, Path]) -> None:
    whole = _selected(found[WHOLE])
    seconds = {name: json.loads((folder / TOOK).read_text(encoding="utf-8")) for name, folder in found.items()}
    print("| prefilter | rows read by GIST | CPU seconds | of none | loss measured (95 % interval) | true loss |")
    print("|---|---:|---:|---:|---|---:|")
    for name, folder in found.items():
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        told = [f"{manifest['pool']['n_usable']:,}", f"{seconds[name]:.0f}", f"{seconds[name] / seconds[WHOLE]:.2f}"]
        if name != WHOLE:
            facts = manifest["prefilter"]
            lost = facts["lost"]["gist"]
            told[0] = f"{facts['kept']:,} + {facts['sampled']:,}"
            told.append(f"{lost['share']:.1%} ({lost['low']:.1%} to {lost['high']:.1%})")
            told.append(f"{1 - len(whole & _selected(folder)) / len(whole):.1%}")
        print(f"| {name} | {' | '.join(told)} |")


def _selected(folder: Path) -> set[str]:
    return set(read_table(folder / "selection.parquet", ["id"])["id"].to_pylist())


if __name__ == "__main__":
    app()
