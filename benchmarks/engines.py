"""Worker processes against this process: seconds of one gradient pass over the demo's pool, and its bytes.

    python benchmarks/engines.py [--rows 2000] [--repeats 2] [--shard-rows 128] [--workers 1 2] [--shards moto]

Every worker has one thread, as this process has. The first pass of each is not counted: in it the workers start and
open the model. Two workers need two idle cores, so nothing else should run. Issue 13 asks for at most 5 % more than in
this process with one worker, and for 1.7 times its speed with two.

With `--shards` every engine does the pass a second time with its shards in an object store, in turn with the first: at
a URL, or (`moto`) on a server of S3's protocol that is started here as a process of its own. That one is no S3: it is
near, keeps all in memory, and takes its share of this machine's cores.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


def prepared(folder: Path, n_rows: int, shards: str | None = None) -> Pass:
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
        values |= {"warmup_share": min(1.0, 100 / n_rows), "shards": shards}
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
        if (bucket := artifact.bucket) is not None:
            bucket.remove(artifact.folder.name, list(bucket.listed(artifact.folder.name, fresh=True)))
        artifact.begin()


def timed(job: Pass, engine: Engine) -> tuple[float, float, str]:
    """Seconds of the pass on the wall and of this process's cores, and a digest of all that it wrote."""
    clear(job)
    started, cores = time.perf_counter(), time.process_time()
    engine.run(job, "pass", SilentReporter())
    seconds, cores = time.perf_counter() - started, time.process_time() - cores
    found = hashlib.sha256()
    for artifact in job.outputs:
        for index in range(len(job.amounts)):
            place = artifact.shard(index)
            found.update(place.read_bytes() if isinstance(place, Path) else place.read(None))
    return seconds, cores, found.hexdigest()


@contextmanager
def store(url: str | None) -> Iterator[str | None]:
    """The URL to put shards at; of `moto` one on a server that lives as long as the block."""
    if url != "moto":
        yield url
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "NO_PROXY": "127.0.0.1"}
        import s3fs

        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        s3fs.S3FileSystem().mkdir("engines")
        yield "s3://engines/run"
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Print a line for every engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--shard-rows", type=int, default=128)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--shards", help="URL of a folder in an object store, or moto")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    ingest.SHARD_ROWS = arguments.shard_rows
    with store(arguments.shards) as url, tempfile.TemporaryDirectory(prefix="gistselect-engines-") as folder:
        engines: dict[str, Engine] = {"this process": Inline(Sources())}
        for n in arguments.workers:
            crew = LocalCrew(devices(f"cpu:{n}", cuda=False))
            engines[f"{n} worker{'s' * (n > 1)}"] = Scheduled(crew, Limits(), quarantine=False)
        jobs = {"": prepared(Path(folder) / "run", arguments.rows)}
        if url is not None:
            jobs[f", shards at {arguments.shards}"] = prepared(Path(folder) / "store", arguments.rows, url)
        took: dict[str, list[tuple[float, float]]] = {}
        digests = set()
        for repeat in range(1 + arguments.repeats):
            for name, engine in engines.items():
                for where, job in jobs.items():
                    seconds, cores, digest = timed(job, engine)
                    digests.add(digest)
                    if repeat:  # the first opens the model
                        took.setdefault(name + where, []).append((seconds, cores))
        for engine in engines.values():
            engine.close()
    base = statistics.median(seconds for seconds, _ in took["this process"])
    for name, passes in took.items():
        middle, cores = (statistics.median(one) for one in zip(*passes, strict=True))
        each = ", ".join(f"{seconds:.1f}" for seconds, _ in passes)
        of_cores = f"; {cores:.2f} s of this process's cores" if name.startswith("this process") else ""
        print(f"{name}: {each} s, {base / middle:.2f} times this process{of_cores}")
    print("the same bytes everywhere" if len(digests) == 1 else f"{len(digests)} different results")


if __name__ == "__main__":
    main()
