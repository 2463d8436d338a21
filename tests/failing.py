"""A representation and a training that fail as they are told to, in a module so that a worker process can load them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from gistselect.representations.interface import Features, Fitted, FloatArray, Prepared, Representation, Scores
from gistselect.representations.queries import Queries
from gistselect.run.store import Artifact
from gistselect.types import Record


class Failing(Representation):
    """The score of a row is its length; on the way a worker dies, hangs, raises or runs out of memory."""

    name: ClassVar[str] = "failing"
    title: ClassVar[str] = "Failing"
    reads: ClassVar = "text"
    definition: ClassVar[str] = "characters"
    unscored: ClassVar[str] = "it failed"

    how: Literal["dies", "hangs", "raises", "memory", "nan", "nothing"]
    row: int
    """The pool row at which it fails."""
    times: int
    """How often, over all processes."""
    folder: Path
    """Where processes leave a mark: a file for each attempt at a shard, and for each failure."""

    def fit(self, queries: Queries, at: Any, folder: Path, prepared: Prepared | None) -> Fitted:
        return Fitted(groups=("",), arrays={})

    def collector(self, fitted: Fitted | None, at: Any) -> Any:
        return _Collector(self)

    def score(self, shard: Sequence[Features], fitted: Sequence[Fitted], weights: FloatArray) -> Scores:
        return Scores(values=shard[0].values.astype(np.float64))


class _Collector:
    def __init__(self, options: Failing) -> None:
        self.options = options

    def take(self, records: Sequence[Record]) -> np.ndarray:
        rows = [record.row for record in records]
        lengths = np.array([[len(record.messages[-1].content)] for record in records], dtype=np.float64)
        mark(self.options.folder, f"at-{rows[0]}-{os.getpid()}")
        if self.options.row in rows and len(list(self.options.folder.glob("failed-*"))) < self.options.times:
            mark(self.options.folder, f"failed-{os.getpid()}")
            lengths[rows.index(self.options.row)] = fail(self.options.how)
        return lengths


@dataclass(frozen=True, kw_only=True)
class FailingTraining:
    """Four steps, before which its worker fails once."""

    artifact: Artifact
    folder: Path
    """Where attempts leave a mark."""
    how: Literal["dies", "raises", "nothing"] = "nothing"
    seconds: float = 0.0
    title: str = "nothing"
    n_steps: int = 4

    def train(self, reach: Callable[[int], None]) -> None:
        self.folder.mkdir(exist_ok=True)
        mark(self.folder, f"at-{os.getpid()}")
        time.sleep(self.seconds)
        if self.how != "nothing" and not list(self.folder.glob("failed-*")):
            mark(self.folder, f"failed-{os.getpid()}")
            fail(self.how)
        for step in range(1, self.n_steps + 1):
            reach(step)
        self.artifact.begin()
        self.artifact.complete()


def mark(folder: Path, name: str) -> None:
    """Leave a file of a name of its own."""
    (folder / f"{name}-{time.monotonic_ns()}").touch()


def fail(how: str) -> float:
    """Do what a broken worker does; not-a-number if it goes on."""
    match how:
        case "dies":
            print("the last words of a worker", flush=True)  # noqa: T201 - what its log is to show
            os.kill(os.getpid(), signal.SIGKILL)
        case "hangs":
            time.sleep(600)
        case "raises":
            raise RuntimeError("a device went away")
        case "memory":
            raise MemoryError("no room")
    return float("nan")
