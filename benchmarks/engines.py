"""Worker processes against this process: seconds of one gradient pass over the demo's pool, and its bytes.

    python benchmarks/engines.py [--rows 2000] [--repeats 2] [--shard-rows 128] [--workers 1 2]

Every worker has one thread, as this process has. The first pass of each is not counted: in it the workers start and
open the model. Two workers need two idle cores, so nothing else should run. Issue 13 asks for at most 5 % more than in
this process with one worker, and for 1.7 times its speed with two.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from importlib.resources import as_file, files
from pathlib import Path

from gistselect.demo import demo_config
from gistselect.run import ingest
from gistselect.run.config import RunConfig
from gistselect.run.engine import Engine, Inline, Scheduled
from gistselect.run.local import LocalCrew, devices
from gistselect.run.passes import Pass
from gistselect.run.pipeline import execute
from gistselect.run.plan import make_plan
from gistselect.run.progress import SilentReporter
from gistselect.run.scheduling import Limits
from gistselect.run.sources import Sources


def prepared(folder: Path, n_rows: int) -> Pass:
    """A run of the embedded data up to its warm-up, with the basis of its target: what is left is the pass."""
    with as_file(files("gistselect.demo")) as data:
        base = demo_config(data, folder)
        rows = [
            line
            for path in sorted((data / "data" / "train" / "processed").rglob("*.jsonl"))
            for line in path.read_bytes().splitlines(keepends=True)
        ][:n_rows]
        pool = folder.with_suffix(".jsonl")
        pool.write_bytes(b"".join(rows))
        values = base.model_dump(mode="json") | {"pool": [str(pool)], "evaluate": False, "until": None}
        values["warmup_share"] = min(1.0, 100 / n_rows)
        config = RunConfig.from_values(values)
        execute(config, SilentReporter(), last="features")
        plan = make_plan(config, "features", None)
    cells = tuple(plan.features.cells)
    job = Pass(source=plan.features.source("gradient", cells[0].checkpoint), cells=cells)
    clear(job)
    return job


def clear(job: Pass) -> None:
    """Take the pass back."""
    for artifact in job.outputs:
        shutil.rmtree(artifact.folder)
        artifact.begin()


def timed(job: Pass, engine: Engine) -> tuple[float, str]:
    """Seconds of the pass, and a digest of all that it wrote."""
    clear(job)
    started = time.perf_counter()
    engine.run(job, "pass", SilentReporter())
    seconds = time.perf_counter() - started
    found = hashlib.sha256()
    for artifact in job.outputs:
        for path in sorted(artifact.folder.glob("shard-*.parquet")):
            found.update(path.read_bytes())
    return seconds, found.hexdigest()


def main() -> None:
    """Print a line for every engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--shard-rows", type=int, default=128)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    ingest.SHARD_ROWS = arguments.shard_rows
    with tempfile.TemporaryDirectory(prefix="gistselect-engines-") as folder:
        job = prepared(Path(folder) / "run", arguments.rows)
        engines: dict[str, Engine] = {"this process": Inline(Sources())}
        for n in arguments.workers:
            crew = LocalCrew(devices(f"cpu:{n}", cuda=False))
            engines[f"{n} worker{'s' * (n > 1)}"] = Scheduled(crew, Limits(), quarantine=False)
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        digests = set()
        for repeat in range(1 + arguments.repeats):
            for name, engine in engines.items():
                took, digest = timed(job, engine)
                digests.add(digest)
                if repeat:  # the first opens the model
                    seconds[name].append(took)
        for engine in engines.values():
            engine.close()
    base = statistics.median(seconds["this process"])
    for name, took in seconds.items():
        middle = statistics.median(took)
        print(f"{name}: {', '.join(f'{one:.1f}' for one in took)} s, {base / middle:.2f} times this process")
    print("the same bytes everywhere" if len(digests) == 1 else f"{len(digests)} different results")


if __name__ == "__main__":
    main()
