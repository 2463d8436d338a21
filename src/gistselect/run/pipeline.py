"""The published steps in order, up to the stage that was asked for, and the manifest that proves nothing was lost."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from gistselect import __version__
from gistselect.run import ranking
from gistselect.run.agreement import measure_agreement
from gistselect.run.checkpoints import checkpoints
from gistselect.run.comparison import compare
from gistselect.run.config import Stage
from gistselect.run.context import Run
from gistselect.run.features import features
from gistselect.run.ingest import TokenizedPool, ingest
from gistselect.run.plan import forecast
from gistselect.run.progress import duration
from gistselect.run.spectrum import draw_spectrum
from gistselect.run.store import replacing, write_json
from gistselect.run.targets import queries

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "numpy", "pyarrow", "datasets")
SHOWN_SOURCES = 8


def execute(run: Run, *, last: Stage | None = None) -> None:
    """Run the stages up to `last` (by default the configuration's last stage). Finished work is reused.

    Writes the files of the output contract into the run folder; see docs/architecture.md.
    """
    clock = _Clock()
    with replacing(run.path("run.yaml")) as part:
        part.write_text(run.config.to_yaml(), encoding="utf-8")
    pool, counts = _stages(run, last or run.config.last_stage, clock)
    _write_manifest(run, pool, clock, counts)
    run.say(f"Results are in {run.output}")


def _stages(run: Run, last: Stage, clock: _Clock) -> tuple[TokenizedPool, dict[str, int]]:
    """The tokenised pool, and the counts of the stages that ran."""
    # Queries come first: a misspelt target or an unreadable file must fail before the pool is read.
    targets = queries(run)
    with clock("ingest"):
        pool = ingest(run)
    run.say(forecast(run, pool, targets))
    if last == "ingest":
        return pool, {}
    with clock("warmup"):
        at = checkpoints(run, pool)
    if last == "warmup":
        return pool, {}
    with clock("features"):
        found = features(run, pool, targets, at)
    if last == "features":
        return pool, {}
    with clock("score"):
        matrix = ranking.score(run, pool, found, targets)
        draw_spectrum(run)
        if run.config.sketch:
            measure_agreement(run, pool, found, targets)
    counts = {"scored": len(matrix.ids), "quarantined": pool.facts["n_rows"] - len(matrix.ids)}
    if last == "score":
        return pool, counts
    with clock("select"):
        selection = ranking.select(run, pool, matrix)
    run.say(_mix(pool, selection))
    if last != "select":
        with clock("train and evaluate"):
            compare(run, pool, selection, evaluate=last == "evaluate")
    return pool, counts | {"selected": selection.num_rows}


def _mix(pool: TokenizedPool, selection: pa.Table) -> str:
    """Where the selection came from, against the pool's own mix, largest share first."""
    of_pool, chosen = Counter(pool.rows()["source"].to_pylist()), Counter(selection["source"].to_pylist())
    lines = [f"Selected {chosen.total():,} of {of_pool.total():,} rows. Sources, share of the selection (of the pool):"]
    for source, count in sorted(chosen.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_SOURCES]:
        lines.append(f"  {source:<24} {count / chosen.total():6.1%}  ({of_pool[source] / of_pool.total():.1%})")
    if len(chosen) > SHOWN_SOURCES:
        lines.append(f"  and {len(chosen) - SHOWN_SOURCES} more sources")
    return "\n".join(lines)


class _Clock:
    """Wall seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 2)


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _write_manifest(run: Run, pool: TokenizedPool, clock: _Clock, counts: dict[str, int]) -> None:
    write_json(
        run.path("manifest.json"),
        {
            "gistselect": __version__,
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "seed": run.config.seed,
            "pool_digest": run.pool.digest,
            **run.text_inputs,
            **run.model_inputs,
            "pool": pool.facts,
            **counts,
            "wall_seconds": clock.seconds,
            "wall": duration(sum(clock.seconds.values())),
            "peak_memory_bytes": peak_memory_bytes(),
        },
    )
