"""Workers as processes of this machine, one a device."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import IO, Any

from gistselect.errors import ConfigError
from gistselect.run import ingest
from gistselect.run.crew import Advanced, Event, Failed, Opened, answered
from gistselect.run.jobs import Job
from gistselect.run.scheduling import Assignment
from gistselect.run.threads import usable_cores

LOG_BYTES = 8192
"""End of a worker's log that is kept in an error."""
LAST_WORDS = 5.0
"""Seconds in which a process that closed its end is expected to have ended."""


def devices(names: str, *, cuda: bool, cards: int = 1) -> list[str]:
    """`auto`, `0,1` or `cpu:2` as the devices they stand for: `cuda:0`, `cpu:1`; one worker each.

    `cuda` says whether `auto` may take GPUs. A worker that is to have several gets neighbours, `cuda:0+1`; those that
    `auto` finds beyond a multiple stay idle. Raises `ConfigError` for anything else.
    """
    found = _single_devices(names, cuda=cuda)
    if cards == 1:
        return found
    numbers = [name.removeprefix("cuda:") for name in found if name.startswith("cuda:")]
    if len(numbers) < cards or (names != "auto" and len(numbers) % cards):
        raise ConfigError(
            f"--cards {cards} with --devices {names}: {len(numbers)} GPUs are no workers of {cards} each; name a "
            "multiple."
        )
    groups = [numbers[first : first + cards] for first in range(0, len(numbers) - cards + 1, cards)]
    return [f"cuda:{'+'.join(group)}" for group in groups]


def _single_devices(names: str, *, cuda: bool) -> list[str]:
    if names == "auto":
        if cuda:
            import torch

            return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu:0"]
        return ["cpu:0"]
    if names == "cpu":
        names = "cpu:1"
    if names.startswith("cpu:") and names[4:].isdecimal() and int(names[4:]):
        return [f"cpu:{index}" for index in range(int(names[4:]))]
    numbers = names.replace(" ", "").split(",")
    if not all(number.isdecimal() for number in numbers) or len(set(numbers)) < len(numbers):
        raise ConfigError(f"--devices {names!r}: give auto, the numbers of GPUs (0,1), or cpu:N for N CPU workers.")
    return [f"cuda:{number}" for number in numbers]


def environment(device: str, n_workers: int) -> dict[str, str]:
    """What a worker's process is told of its device: the only GPUs that it sees, or its share of the cores."""
    kind, _, number = device.partition(":")
    if kind == "cuda":
        visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
        numbers = [int(one) for one in number.split("+")]
        if visible and max(numbers) >= len(visible):
            raise ConfigError(f"--devices {number}: CUDA_VISIBLE_DEVICES shows {len(visible)} devices.")
        return {"CUDA_VISIBLE_DEVICES": ",".join(visible[one] if visible else str(one) for one in numbers)}
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, usable_cores() // n_workers))
    return {"OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}


class LocalCrew:
    """Worker processes, started when they are first needed and again when one has ended."""

    elsewhere = False

    def __init__(self, names: Sequence[str]) -> None:
        """`names` are devices as `devices` gives them."""
        if os.name == "nt":
            raise ConfigError("--engine local needs Linux or macOS; use --engine inline, or WSL.")
        self._environments = {name: environment(name, len(names)) for name in names}
        self._processes: dict[str, _Process] = {}
        self._job = b""

    def now(self) -> float:
        """See `Crew`."""
        return time.monotonic()

    def begin(self, job: Job) -> Sequence[str]:
        """See `Crew`."""
        self._job = pickle.dumps(("job", job))
        for process in self._processes.values():
            process.say(self._job)
        return list(self._environments)

    def give(self, worker: str, assignment: Assignment) -> None:
        """See `Crew`."""
        process = self._processes.get(worker)
        if process is None or not process.is_alive:
            self.stop(worker)
            process = self._processes[worker] = _Process(self._environments[worker])
            process.say(self._job)
        process.say(pickle.dumps(("part", assignment.index, assignment.share)))

    def stop(self, worker: str) -> str:
        """See `Crew`."""
        process = self._processes.pop(worker, None)
        return process.end() if process else ""

    def wait(self, until: float | None) -> Sequence[Event]:
        """See `Crew`."""
        by_connection = {process.connection: worker for worker, process in self._processes.items()}
        seconds = None if until is None else max(0.0, until - self.now())
        ready = wait_for(list(by_connection), seconds)
        return [event for one in ready if (event := self._event(by_connection[one])) is not None]  # pyright: ignore[reportArgumentType]

    def close(self) -> None:
        """See `Crew`."""
        for worker in list(self._processes):
            self.stop(worker)

    def _event(self, worker: str) -> Event | None:
        process = self._processes[worker]
        try:
            word, *facts = process.connection.recv()
        except (EOFError, OSError):
            del self._processes[worker]
            status = process.status()
            text = f"{status}\n{process.end()}"
            return Failed(worker=worker, cause="died", text=text)
        match word:
            case "opened":
                return Opened(worker=worker)
            case "advanced":
                return Advanced(worker=worker, amount=facts[0])
            case _:
                event = answered(worker, (word, *facts))
                if isinstance(event, Failed) and event.error is None:
                    # Memory that ran out, or a device in an unknown state: what comes next is done by a new process.
                    self.stop(worker)
                return event


class _Process:
    """One worker process, our end of its socket, and its log, which no folder ever sees."""

    def __init__(self, more: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs.fileno())],
            env={**os.environ, **more, "PYTHONPATH": _path()},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        theirs.close()
        self.connection: Any = Connection(ours.detach())
        self.say(pickle.dumps((sys.path, ingest.SHARD_ROWS)))

    @property
    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def say(self, message: bytes) -> None:
        """Send; a process that has ended is noticed when its answer is waited for."""
        try:
            self.connection.send_bytes(message)
        except OSError:
            return

    def status(self) -> str:
        """How the process ended."""
        try:
            code = self._popen.wait(LAST_WORDS)
        except subprocess.TimeoutExpired:
            return "its process does not answer"
        if code >= 0:
            return f"its process ended with status {code}"
        hint = ", as when the machine's memory runs out" if code == -9 else ""
        return f"its process was ended by signal {-code}{hint}"

    def end(self) -> str:
        """End the process, whatever it is at; the end of its log."""
        self._popen.kill()
        self._popen.wait()
        self.connection.close()
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - LOG_BYTES))
        text = self._log.read().decode(errors="replace")
        self._log.close()
        return text


_START = "import sys; from gistselect.run.worker import main; main(int(sys.argv[1]))"


def _path() -> str:
    """PYTHONPATH with the folder from which this very package is imported before all else."""
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
