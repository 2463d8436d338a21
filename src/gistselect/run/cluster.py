"""Workers as actors of a Ray cluster, one a GPU, or one a core where there is none; nodes come and go while it runs.

Only configurations and paths are passed: the run folder, the model and the data must be where every node finds them.
"""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from gistselect.errors import ConfigError, MissingDependencyError
from gistselect.run import ingest
from gistselect.run.crew import Event, Failed, Joined, Left, answered
from gistselect.run.jobs import Job
from gistselect.run.scheduling import Assignment

LOOK_EVERY = 2.0
"""Seconds between two looks at which nodes there are."""
RETRIES = 2
"""Times that Ray itself repeats what an actor was at when its process died, on the actor that it starts again."""

FLEETING = "gistselect-node-"
"""How the name begins of the folder of an actor whose node lacks that of the command."""


class RayCrew:
    """Actors, one for each slot of the cluster."""

    elsewhere = True

    def __init__(self, address: str | None, *, gpus: bool, cards: int = 1, apart: bool = False) -> None:
        """Connect to the cluster at `address` (`auto`: the one of this machine); None starts one of this machine alone.

        An actor has `cards` GPUs, which one node must have together. With `apart` a node that lacks the folder of the
        command works in one of its own: an object store has the rest.

        Raises `MissingDependencyError` without Ray, `ConfigError` if no cluster answers or no node has so many GPUs.
        """
        try:
            import ray
        except ImportError:
            raise MissingDependencyError("--engine ray needs Ray: pip install 'gistselect[ray]'.") from None
        self._ray = ray
        if not ray.is_initialized():
            try:
                ray.init(
                    address=address or "local",
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    include_dashboard=False,
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"no Ray cluster answers at --ray-address {address}: {error}. Start one with 'ray start --head', "
                    "or leave the option out."
                ) from None
        self._resource = "GPU" if gpus and ray.cluster_resources().get("GPU") else "CPU"
        self._cards = cards if gpus else 1
        if self._cards > 1:
            found = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
            # Nobody would ever get to work.
            if max(found, default=0) < self._cards:
                raise ConfigError(
                    f"--cards {cards}: an actor's GPUs are those of one node, and the nodes of the Ray cluster have "
                    f"{', '.join(map(str, found))}; use fewer, or start 'ray start' on a node that has so many."
                )
        self._type, self._apart = ray.remote(_Worker), apart
        self._actors: dict[str, Any] = {}
        self._nodes: dict[str, str] = {}
        """Node on which a worker was when it last said so."""
        self._running: dict[Any, str] = {}
        """Worker by the promise of its answer."""
        self._asked: dict[Any, str] = {}
        """Worker by the promise of its node."""
        self._job: Any = None
        self._number, self._looked = 0, 0.0

    def now(self) -> float:
        """See `Crew`."""
        return time.monotonic()

    def begin(self, job: Job) -> Sequence[str]:
        """See `Crew`."""
        # What an earlier job left unanswered is nobody's any more.
        for promise in list(self._running):
            self._replace(self._running.pop(promise))
        self._job = self._ray.put(job)
        self._look()
        return list(self._actors)

    def give(self, worker: str, assignment: Assignment) -> None:
        """See `Crew`."""
        promise = self._actors[worker].do.remote(self._job, assignment.index, assignment.share)
        self._running[promise] = worker

    def stop(self, worker: str) -> str:
        """See `Crew`."""
        self._running = {promise: other for promise, other in self._running.items() if other != worker}
        self._replace(worker)
        return "Its log is with Ray: see 'ray logs'."

    def wait(self, until: float | None) -> Sequence[Event]:
        """See `Crew`."""
        seconds = LOOK_EVERY if until is None else max(0.0, min(LOOK_EVERY, until - self.now()))
        promises = [*self._running, *self._asked]
        ready = []
        if promises:
            ready, _ = self._ray.wait(promises, timeout=seconds)
        else:
            time.sleep(seconds)
        events = [event for promise in ready if (event := self._event(promise)) is not None]
        if self.now() - self._looked >= LOOK_EVERY:
            events += self._look()
        return events

    def close(self) -> None:
        """See `Crew`."""
        for worker in list(self._actors):
            self._drop(worker)
        self._running.clear()
        self._asked.clear()

    def _event(self, promise: Any) -> Event | None:
        from ray import exceptions as errors

        if promise in self._asked:
            worker = self._asked.pop(promise)
            try:
                self._nodes[worker] = self._ray.get(promise)
            except errors.RayError:
                self._nodes.pop(worker, None)
            return None
        worker = self._running.pop(promise)
        try:
            event = answered(worker, self._ray.get(promise))
        except errors.OutOfMemoryError as error:
            event = Failed(worker=worker, cause="memory", text=str(error))
        except errors.RayError as error:
            event = Failed(worker=worker, cause="died", text=f"its actor died, {RETRIES + 1} times\n{error}")
        if isinstance(event, Failed) and event.error is None:
            self._replace(worker)
        return event

    def _look(self) -> list[Event]:
        """An actor for each new slot; those of nodes that are gone are given up, whatever Ray has in mind for them."""
        self._looked = self.now()
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        there = {node["NodeID"] for node in nodes}
        gone = [worker for worker, node in self._nodes.items() if node not in there]
        for worker in gone:
            self._running = {promise: other for promise, other in self._running.items() if other != worker}
            self._drop(worker)
        slots = sum(int(node["Resources"].get(self._resource, 0) // self._cards) for node in nodes)
        new = [self._start(self._name()) for _ in range(slots - len(self._actors))]
        left: list[Event] = [Left(worker=worker, text="its node left the cluster") for worker in gone]
        return left + [Joined(worker=worker) for worker in new]

    def _name(self) -> str:
        self._number += 1
        return f"ray:{self._number - 1}"

    def _start(self, worker: str) -> str:
        need = {"num_gpus": self._cards} if self._resource == "GPU" else {"num_cpus": 1}
        made = self._type.options(max_restarts=-1, max_task_retries=RETRIES, **need)
        self._actors[worker] = made.remote(os.getcwd(), ingest.SHARD_ROWS, self._apart)
        self._asked[self._actors[worker].node.remote()] = worker
        return worker

    def _replace(self, worker: str) -> None:
        """A new actor under the same name."""
        self._drop(worker)
        self._start(worker)

    def _drop(self, worker: str) -> None:
        self._asked = {promise: other for promise, other in self._asked.items() if other != worker}
        self._nodes.pop(worker, None)
        self._ray.kill(self._actors.pop(worker), no_restart=True)


class _Worker:
    """The actor: opens what a job needs once, and does one part after another."""

    def __init__(self, folder: str, shard_rows: int, apart: bool) -> None:
        from gistselect.run import ingest
        from gistselect.run.sources import Sources

        ingest.SHARD_ROWS = shard_rows  # a shard is the same everywhere
        self._alive: Any = None
        if apart and not os.path.isdir(folder):
            folder, self._alive = _fleeting()
        self._folder, self._sources = folder, Sources()

    def node(self) -> str:
        """The node that it is on."""
        import ray

        return ray.get_runtime_context().get_node_id()

    def do(self, job: Job, index: int, share: float) -> Any:
        """See `worker.attempt`."""
        from gistselect.run.worker import attempt

        try:
            # Paths may be relative to where the command was given.
            os.chdir(self._folder)
        except OSError as error:
            text = f"{self._folder} is not there on every node ({error}); use a folder that all of them share."
            return ("wrong", ConfigError, text)
        self._sources.share = share
        return attempt(job, index, self._sources, lambda: None)


def _fleeting() -> tuple[str, Any]:
    """A folder that is gone once this process is, also if it is killed, as actors are; and what to hold for so long."""
    folder = tempfile.mkdtemp(prefix=FLEETING)
    # Ray kills the children of an actor with it, but not theirs.
    wait = 'exec 3<&0; (read line <&3; cd /; rm -rf -- "$1") >/dev/null 2>&1 &'
    waiting = subprocess.Popen(["sh", "-c", wait, "sh", folder], stdin=subprocess.PIPE, start_new_session=True)
    waiting.wait()
    return folder, waiting
