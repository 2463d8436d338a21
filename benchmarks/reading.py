"""One large file of JSON lines read and tokenised by this process, and by workers: seconds, memory, and the same bytes.

    python benchmarks/reading.py FOLDER [--megabytes 200] [--workers 0 1 2] [--repeats 3] [--read-only]

The file repeats the rows of a folder under other ids, with another number before each text. 0 workers are one process
without `--engine`. Every run is a process of its own, in turn with the others, one thread each. Reading begins after
the digest of the file, which all need; it holds the start of workers, the counting of lines and the putting together of
ranges. Two workers need two idle cores, but seconds of cores hold on a busy machine too; those of a worker are of the
one that took most. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from statistics import median
from typing import Any

from gistselect.demo import demo_config
from gistselect.run.config import RunConfig
from gistselect.run.plan import make_plan
from gistselect.run.progress import SilentReporter
from gistselect.run.staffing import opened


def rows_of(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a folder with messages, without end, each with another id and text."""
    for repeat in itertools.count():
        for path in sorted(folder.rglob("*.jsonl")):
            with path.open("rb") as lines:
                for number, line in enumerate(lines):
                    row = json.loads(line)
                    row["id"] = f"{path.stem}-{repeat}-{number}"
                    row["messages"][0]["content"] = f"({repeat}.{number}) {row['messages'][0]['content']}"
                    yield row


def write_pool(path: Path, folder: Path, n_bytes: int) -> int:
    """A file of about so many bytes; its rows."""
    n_rows, rows = 0, rows_of(folder)
    with path.open("wb") as file:
        while file.tell() < n_bytes:
            file.write(json.dumps(next(rows), ensure_ascii=False).encode() + b"\n")
            n_rows += 1
    return n_rows


def measure(n_workers: int, n_stages: int, pool: Path, output: Path) -> dict[str, Any]:
    """What reading and tokenising took, of this process and of its workers, and a digest of what came of both."""
    devices = {"engine_kind": "local", "devices": f"cpu:{n_workers}"} if n_workers else {}
    found: dict[str, Any] = {}
    with as_file(files("gistselect.demo")) as data:
        values = demo_config(data, output).model_dump(mode="json") | {"pool": [str(pool)], "evaluate": False} | devices
        config = RunConfig.from_values(values)
        plan = make_plan(config, "ingest", None)
        with opened(config, None) as (engine, _):
            for name, stages in (("read", (plan.records,)), ("tokenise", plan.tokenisings))[:n_stages]:
                before = used()
                started = time.perf_counter()
                for stage in stages:
                    stage.run(SilentReporter(), engine)
                found[f"{name}, s"] = time.perf_counter() - started
                found |= {
                    f"{name}, s of cores, {who}": s - before.get(who, (0, 0))[0] for who, (s, _) in used().items()
                }
                found |= {f"{name}, GB at the most, {who}": gb for who, (_, gb) in used().items()}
    digest = hashlib.sha256()
    for path in sorted(output.glob("artifacts/*/shard-*.parquet")):
        digest.update(path.read_bytes())
    return found | {"digest": digest.hexdigest()}


def used() -> dict[str, tuple[float, float]]:
    """Seconds of cores so far and GB at the most, of this process, and of the worker with the most of each."""
    main, *workers = map(_used, [os.getpid(), *_children()])
    return {"this process": main} | ({"a worker": tuple(map(max, *workers, (0.0, 0.0)))} if workers else {})


def _children() -> list[int]:
    return [int(one) for path in Path("/proc/self/task").glob("*/children") for one in path.read_text().split()]


def _used(process: int) -> tuple[float, float]:
    """`VmHWM` rather than what the system says of children: that holds what they had from their parent."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK"), int(peak) / 1e6


def main() -> None:
    """Print a table with the median of every quantity, and its least and most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--read-only", action="store_true", help="do not tokenise")
    arguments = parser.parse_args()
    found: dict[int, list[dict[str, Any]]] = {n: [] for n in arguments.workers}
    with tempfile.TemporaryDirectory(prefix="gistselect-reading-") as folder:
        pool, output = Path(folder) / "pool.jsonl", Path(folder) / "run"
        n_rows = write_pool(pool, arguments.folder, arguments.megabytes * 10**6)
        print(f"{n_rows:,} rows, {pool.stat().st_size:,} bytes", flush=True)
        for _ in range(arguments.repeats):
            for n in arguments.workers:
                shutil.rmtree(output, ignore_errors=True)
                command = [
                    sys.executable,
                    __file__,
                    MEASURE,
                    str(n),
                    str(2 - arguments.read_only),
                    str(pool),
                    str(output),
                ]
                told = subprocess.run(
                    command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True
                )
                found[n].append(json.loads(told.stdout))
                print(f"{n} workers, load {os.getloadavg()[0]:.1f}: {told.stdout.decode().strip()}", flush=True)
    print(f"| | {' | '.join(f'{n} workers' for n in found)} |\n|---|{'---:|' * len(found)}")
    for name in found[arguments.workers[-1]][0]:
        if name != "digest":
            values = [[one[name] for one in took if name in one] for took in found.values()]
            cells = (f"{median(one):.2f} ({min(one):.2f} to {max(one):.2f})" if one else "–" for one in values)
            print(f"| {name} | {' | '.join(cells)} |")
    digests = {one["digest"] for took in found.values() for one in took}
    print("the same bytes everywhere" if len(digests) == 1 else f"{len(digests)} different results")


MEASURE = "measure"

if __name__ == "__main__":
    if sys.argv[1] == MEASURE:
        print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))))
    else:
        main()
