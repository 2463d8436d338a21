"""Kill a command again and again, let it resume, and compare every file with an uninterrupted run.

    python benchmarks/kill.py --kills 100 --output /tmp/kill                 # the embedded model, all stages
    python benchmarks/kill.py --kills 20 --output /tmp/kill -- --engine local --representation gist less

What follows `--` is added to the command line of `gistselect run`; it may override all but the output. The process
group gets SIGKILL at a random moment of the time that an uninterrupted run takes; a run that was killed is started
again, in the same folder, until it ends. Then a new folder is begun. Every file but those of times and paths must be
the same to the byte, and no shard that was there before a kill may be written again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import gistselect

DEMO = Path(gistselect.__file__).parent / "demo"
LAUNCH = "from gistselect.run import ingest; ingest.SHARD_ROWS = 64; from gistselect.cli import main; main()"
"""The command, with shards so small that a run of seconds has several."""
TIMES = {"manifest.json", "run.yaml", "seconds.jsonl", ".lock"}
"""Files that hold times or paths."""


def command(output: Path, pool: Path, more: list[str]) -> list[str]:
    """Every stage on the embedded model, in a size of seconds."""
    given = {
        "model": DEMO / "model",
        "pool": pool,
        "target": "gsm8k",
        "data-dir": DEMO / "data",
        "representation": ["gist", "less:dimension=256", "bm25"],
        "budget": "10",
        "max-length": 128,
        "max-queries": 8,
        "warmup-share": 0.05,
        "warmup.epochs": 2,
        "warmup.global-batch-size": 8,
        "warmup.adapter.rank": 4,
        "finetune.epochs": 1,
        "finetune.global-batch-size": 4,
        "finetune.adapter.rank": 4,
        "train-seeds": "0",
        "heldout-items": 8,
    }
    arguments = [sys.executable, "-c", LAUNCH, "run", "--evaluate"]
    for name, value in given.items():
        if f"--{name}" not in more:
            arguments += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return [*arguments, *more, "--output", str(output)]


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a run folder that must not depend on when it was made."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in TIMES:
            content = path.read_bytes()
            if path.name in ("comparison.json", "trainer_state.json", "curve.json", "complete.json"):
                content = without_times(content)
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def without_times(content: bytes) -> bytes:
    """JSON without what a clock wrote into it."""

    def kept(value: object) -> object:
        if isinstance(value, dict):
            return {
                key: kept(one)
                for key, one in value.items()
                if not any(word in str(key) for word in ("second", "runtime", "per_second", "cost", "time"))
                and not str(key).endswith(("trainer_state.json", "seconds.jsonl"))
                and key != "checksum"
            }
        return [kept(one) for one in value] if isinstance(value, list) else value

    return json.dumps(kept(json.loads(content)), sort_keys=True).encode()


def shards(folder: Path) -> dict[Path, int]:
    """Whole shards, with the time of their last change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("shard-*.parquet")}


def stage(folder: Path) -> str:
    """Where a run stands, from what it wrote last."""
    artifacts = [path for path in (folder / "artifacts").glob("*") if not (path / "complete.json").is_file()]
    names = sorted({path.name.rpartition("-")[0].lstrip(".") for path in artifacts})
    return "+".join(names) or "between stages"


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as stream:
        return subprocess.Popen(
            arguments, stdout=stream, stderr=stream, start_new_session=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )


def ended(process: subprocess.Popen[bytes], seconds: float | None) -> bool:
    """Whether the command ended by itself within this time; its group is killed otherwise."""
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    if status:
        raise SystemExit(f"the command failed with status {status}; see the log")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=300, help="rows of the embedded pool")
    parser.add_argument("--seconds", type=float, help="begin no further run after this time")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    options, more = parser.parse_known_args()
    more = more[1:] if more[:1] == ["--"] else more
    options.output.mkdir(parents=True)
    pool, log = options.output / "pool.jsonl", options.output / "log"
    lines = [line for path in sorted(DEMO.rglob("*_data.jsonl")) for line in path.read_bytes().splitlines()]
    pool.write_bytes(b"\n".join(lines[:: max(1, len(lines) // options.rows)]) + b"\n")
    rng = random.Random(options.seed)
    began = time.monotonic()
    whole = options.output / "whole"
    ended(start(command(whole, pool, more), log), None)
    takes, expected = time.monotonic() - began, files(whole)
    print(f"uninterrupted: {takes:.1f} s, {len(expected)} files", flush=True)
    kills = runs = 0
    places: Counter[str] = Counter()
    while kills < options.kills and (options.seconds is None or time.monotonic() - began < options.seconds):
        folder = options.output / f"run-{runs}"
        while True:
            before = shards(folder)
            wait = rng.uniform(0.2, 0.7) * takes if kills < options.kills else None
            done = ended(start(command(folder, pool, more), log), wait)
            again = [
                path for path, changed in before.items() if not path.is_file() or path.stat().st_mtime_ns != changed
            ]
            assert not [path for path in again if not path.parent.name.startswith("records")], again
            if done:
                break
            kills += 1
            places[stage(folder)] += 1
        runs += 1
        found = files(folder)
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if different:
            raise SystemExit(f"{folder} differs after {kills} kills: {different[:5]}")
        if left := list(folder.rglob("*.part")):
            raise SystemExit(f"{folder} keeps leftovers: {left[:3]}")
        shutil.rmtree(folder)
        print(f"{kills} kills, {runs} runs the same; killed in: {dict(places.most_common(6))}", flush=True)
    print(
        f"{kills} kills in {runs} runs; every file of every run as in the uninterrupted one. By stage: {dict(places)}"
    )


if __name__ == "__main__":
    main()
