"""Kill a command again and again, let it resume, and compare every file with an uninterrupted run.

    python benchmarks/kill.py --kills 100 --output /tmp/kill                  # the embedded model, all stages
    python benchmarks/kill.py --kills 20 --output /tmp/local -- --engine local --devices cpu:2
    python benchmarks/kill.py --kills 20 --output /tmp/study --command compare
    python benchmarks/kill.py --kills 8 --output /tmp/read --at records tokens -- --until ingest
    python benchmarks/kill.py --kills 8 --output /tmp/read --record read      # into benchmarks/results/kills.json

What follows `--` is added to the command line; it may override all but the output. The process group gets SIGKILL at a
random moment: of the work on an artifact drawn among those not done, of the writing of a result, or of the whole
run. The command is given again, in the same folder, until it ends; then a new folder is begun. Every file but those of
times and paths must be the same to the byte, and no shard that was there before a kill may be written again.

Kills are counted in OUTPUT/kills.json once their run has ended and was compared, so the same command on the same folder
goes on counting (`--seconds 150` does it in pieces).
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gistselect

RESULTS = Path(__file__).parent / "results" / "kills.json"
DEMO = Path(gistselect.__file__).parent / "demo"
LAUNCH = "from gistselect.run import ingest; ingest.SHARD_ROWS = 64; from gistselect.cli import main; main()"
"""The command, with shards so small that a run of seconds has several."""
TIMES = {
    "manifest.json",
    "run.yaml",
    "study.yaml",
    "validate.yaml",
    "seconds.jsonl",
    "events.jsonl",
    ".lock",
    "report.html",
}
"""Files that hold times or paths."""
TIMED = {"comparison.json", "trainer_state.json", "curve.json", "complete.json", "study.json", "validation.json"}
"""JSON of which parts are times."""
TABLES = {"study.md", "study.csv", "validation.md", "validation.csv"}
"""Tables whose numbers stand in the JSON files too, beside what each arm took."""
PUBLISHED = ("scores.parquet", "selected.jsonl", "comparison.json", "report.html", "manifest.json")
MOST_KILLS_OF_A_RUN = 8
OPTIONS = {
    "run": {"evaluate": True, "budget": "10"},
    "compare": {"budgets": ["5", "10"], "selectors": ["top_k", "round_robin"]},
    "validate": {"measures": ["lds", "qld"], "subsets": 5, "validation-rows": 48},
}


@dataclass(frozen=True, kw_only=True)
class Whole:
    """An uninterrupted run."""

    seconds: float
    files: dict[str, str]
    work: dict[str, float]
    """Seconds between the beginning and the end of each artifact, by its folder within the run's, in their order."""


def command(name: str, output: Path, pool: Path, more: list[str]) -> list[str]:
    """Every stage on the embedded model, in a size of seconds."""
    given = {
        "model": DEMO / "model",
        "pool": pool,
        "target": "gsm8k",
        "data-dir": DEMO / "data",
        "representation": ["gist", "less:dimension=256", "bm25"],
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
        **OPTIONS[name],
    }
    arguments = [sys.executable, "-c", LAUNCH, name]
    for option, value in given.items():
        if f"--{option}" not in more:
            values = [] if value is True else value if isinstance(value, list) else [value]
            arguments += [f"--{option}", *map(str, values)]
    return [*arguments, *more, "--output", str(output)]


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a run folder that must not depend on when it was made."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in TIMES | TABLES and not path.name.endswith("-cost.svg"):
            content = path.read_bytes()
            if path.name in TIMED:
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


def kind(artifact: str) -> str:
    """The stage that makes an artifact."""
    return artifact.rpartition("/")[2].rpartition("-")[0].lstrip(".")


def artifacts(folder: Path) -> list[Path]:
    """Folders of the store, and of the one that `validate` fills beside it for planted rows."""
    return [*(folder / "artifacts").glob("*"), *(folder / "planted" / "artifacts").glob("*")]


def missing(folder: Path, whole: Whole) -> list[str]:
    """Artifacts that a run does not have yet."""
    return [name for name in whole.work if not (folder / name / "complete.json").is_file()]


def place(folder: Path) -> str:
    """Where a run stands, from what it has begun and not ended."""
    begun = [path for path in artifacts(folder) if not (path / "complete.json").is_file()]
    return "+".join(sorted({kind(path.name) for path in begun})) or "between artifacts"


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as stream:
        return subprocess.Popen(
            arguments, stdout=stream, stderr=stream, start_new_session=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )


def ended(process: subprocess.Popen[bytes], awaited: Path | None, seconds: float | None) -> bool:
    """Whether the command ended by itself before it was killed: so long after a file was there, or after its start."""
    while awaited is not None and process.poll() is None and not awaited.exists():
        time.sleep(0.005)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    if status:
        raise SystemExit(f"the command failed with status {status}; see the log")
    return True


def aim(rng: random.Random, folder: Path, whole: Whole, at: Sequence[str]) -> tuple[Path | None, float | None]:
    """When to kill: the file to wait for, and the seconds after it. Of stages `at` alone, if some are named."""
    undone = [name for name in missing(folder, whole) if not at or kind(name) in at]
    if at:
        name = rng.choice(undone) if undone else None
        return (None, None) if name is None else (folder / name, rng.uniform(0, 1.1 * whole.work[name] + 0.02))
    unpublished = [name for name in PUBLISHED if not (folder / name).exists()]
    choice = rng.random()
    if choice < 0.6 and undone:
        of_kind = rng.choice(sorted({kind(name) for name in undone}))
        name = rng.choice([name for name in undone if kind(name) == of_kind])
        return folder / name, rng.uniform(0, 1.1 * whole.work[name] + 0.02)
    if choice < 0.8 and unpublished:
        return folder / rng.choice(unpublished), rng.uniform(0, 0.05)
    return None, rng.uniform(0.1, 0.9) * whole.seconds


def uninterrupted(options: argparse.Namespace, pool: Path, more: list[str], log: Path) -> Whole:
    """The run that all others are compared with, made once a folder."""
    stored, folder = options.output / "whole.json", options.output / "whole"
    if not stored.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        ended(start(command(options.command, folder, pool, more), log), None, None)
        seconds = time.monotonic() - began
        work = {
            path.relative_to(folder).as_posix(): (
                (path / "complete.json").stat().st_mtime_ns - (path / "inputs.json").stat().st_mtime_ns
            )
            / 1e9
            for path in sorted(artifacts(folder), key=lambda path: (path / "inputs.json").stat().st_mtime_ns)
        }
        stored.write_text(json.dumps({"seconds": seconds, "files": files(folder), "work": work}))
    return Whole(**json.loads(stored.read_text()))


def one_run(
    rng: random.Random, options: argparse.Namespace, whole: Whole, most: int, arguments: list[str], log: Path
) -> Counter[str]:
    """Kills of one folder by place; the folder is compared and removed. Ends the program at any difference."""
    folder, places = options.output / "run", Counter()
    shutil.rmtree(folder, ignore_errors=True)
    while True:
        before = shards(folder)
        awaited, seconds = aim(rng, folder, whole, options.at) if places.total() < most else (None, None)
        process = start(arguments, log)
        done = ended(process, awaited, seconds)
        again = [path for path, changed in before.items() if not path.is_file() or path.stat().st_mtime_ns != changed]
        if again := [path for path in again if not path.parent.name.startswith("records")]:
            raise SystemExit(f"done twice after {places.total()} kills: {again[:5]}")
        if done:
            break
        places[place(folder)] += 1
    found = files(folder)
    names = whole.files.keys() | found.keys()
    if different := sorted(name for name in names if whole.files.get(name) != found.get(name)):
        raise SystemExit(f"{folder} differs after {places.total()} kills ({dict(places)}): {different[:5]}")
    if left := list(folder.rglob("*.part")):
        raise SystemExit(f"{folder} keeps leftovers: {left[:3]}")
    shutil.rmtree(folder)
    return places


def record(name: str, counted: dict[str, Any]) -> None:
    """Put the counts of a folder among those of the repository."""
    known = json.loads(RESULTS.read_text(encoding="utf-8"))
    known["parts"][name] = counted
    RESULTS.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in all, those of earlier calls on the folder counted")
    parser.add_argument("--command", choices=OPTIONS, default="run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=300, help="rows of the embedded pool")
    parser.add_argument("--at", nargs="+", default=[], help="kill at work on artifacts of these stages alone")
    parser.add_argument("--record", help="only put the counts of the folder into benchmarks/results, by this name")
    parser.add_argument("--seconds", type=float, help="begin no further run after this time")
    parser.add_argument("--output", type=Path, required=True, help="folder; one that was begun is continued")
    options, more = parser.parse_known_args()
    more = more[1:] if more[:1] == ["--"] else more
    began = time.monotonic()
    if options.record:
        record(options.record, json.loads((options.output / "kills.json").read_text(encoding="utf-8")))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    pool, log, stored = (options.output / name for name in ("pool.jsonl", "log", "kills.json"))
    lines = [line for path in sorted(DEMO.rglob("*_data.jsonl")) for line in path.read_bytes().splitlines()]
    if not pool.is_file():
        pool.write_bytes(b"\n".join(lines[:: max(1, len(lines) // options.rows)]) + b"\n")
    whole = uninterrupted(options, pool, more, log)
    print(f"uninterrupted: {whole.seconds:.1f} s, {len(whole.files)} files", flush=True)
    counted: dict[str, Any] = {"kills": 0, "runs": 0, "killed_in": {}, "seconds": 0.0}
    if stored.is_file():
        counted = json.loads(stored.read_text())
    while counted["kills"] < options.kills and (options.seconds is None or time.monotonic() - began < options.seconds):
        rng, since = random.Random(f"{options.seed} {counted['runs']}"), time.monotonic()
        most = min(MOST_KILLS_OF_A_RUN, options.kills - counted["kills"])
        arguments = command(options.command, options.output / "run", pool, more)
        places = one_run(rng, options, whole, most, arguments, log)
        counted = {
            "command": [options.command, *more],
            "kills": counted["kills"] + places.total(),
            "runs": counted["runs"] + 1,
            "killed_in": dict((Counter(counted["killed_in"]) + places).most_common()),
            "seconds": round(counted["seconds"] + time.monotonic() - since, 1),
            "files_compared": len(whole.files),
        }
        stored.write_text(json.dumps(counted, indent=2) + "\n")
        print(f"{counted['kills']} kills, {counted['runs']} runs the same; {counted['killed_in']}", flush=True)


if __name__ == "__main__":
    main()
