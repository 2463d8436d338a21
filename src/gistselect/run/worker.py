"""A worker process: opens what a job needs once, does one part after another, and ends with the process it serves.

Started by `run/local.py` with one end of a socket. Every message is a pickle between these two processes alone.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gistselect.run.jobs import Job
    from gistselect.run.sources import Sources

Answer = tuple[Any, ...]
TELL_EVERY = 0.2
"""Seconds between two reports of progress."""


def main(handle: int) -> None:
    """Serve the process at the other end of the socket `handle` until it closes it or ends."""
    # Ctrl-C reaches every process of the terminal: what is to end is for the other side to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING)
    connection = Connection(handle)
    orders: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, orders), daemon=True).start()
    sys.path[:], shard_rows = pickle.loads(orders.get())
    from gistselect.run import ingest
    from gistselect.run.sources import Sources

    ingest.SHARD_ROWS = shard_rows  # a shard is the same everywhere

    desk = Desk(connection, Sources())
    while True:
        desk.obey(orders.get())


def _listen(connection: Connection, orders: SimpleQueue[bytes]) -> None:
    """Hand on what the other side says; when it ends, however that comes, so does this process."""
    try:
        while True:
            orders.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)


class Desk:
    """Where a worker gets its orders and gives its answers: tuples of a word and its facts."""

    def __init__(self, connection: Connection, sources: Any) -> None:
        self._connection, self._sources = connection, sources
        self._job: Any = None
        self._told, self._untold = 0.0, 0

    def obey(self, order: bytes) -> None:
        """Do what a message says: `("job", job)` or `("part", index, share)`."""
        word, *facts = pickle.loads(order)
        if word == "job":
            (self._job,) = facts
            return
        index, self._sources.share = facts
        with self._sources.listening(self._advance):
            answer = attempt(self._job, index, self._sources, lambda: self._connection.send(("opened",)))
        self._untold = 0
        self._connection.send(answer)

    def _advance(self, amount: int) -> None:
        self._untold += amount
        if (now := time.monotonic()) - self._told >= TELL_EVERY:
            self._connection.send(("advanced", self._untold))
            self._told, self._untold = now, 0


def attempt(job: Job, index: int, sources: Sources, opened: Callable[[], None]) -> Answer:
    """Do a part of a job: ("done",), ("wrong", kind of error, text) or ("failed", cause, text).

    `opened` is called once the part itself begins.
    """
    from gistselect.errors import GistSelectError, UnreachableError

    try:
        job.open(sources)
        opened()
        job.do(index, sources)
    except UnreachableError as error:
        return ("failed", "error", str(error))
    except GistSelectError as error:
        return ("wrong", type(error), str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other side decides what follows
        cause = "memory" if is_memory_error(error) else "error"
        first = "".join(traceback.format_exception_only(error)).strip()
        return ("failed", cause, f"{first}\n{traceback.format_exc()}")
    return ("done",)


def is_memory_error(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that memory ran out, here or on the device."""
    while error is not None:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    main(int(sys.argv[1]))
