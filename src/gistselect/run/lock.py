"""The lock on a run folder: one process at a time writes there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from gistselect.errors import ConfigError, GistSelectError
from gistselect.files import FORBIDDEN, remove_leftovers, writable

IfBusy = Literal["wait", "refuse"]
LOCK = ".lock"
WRITTEN = ("artifacts", "methods", "combinations", "planted")
"""Folders of a run folder that only the holder of its lock writes to: not `inputs`, where rows in memory are put before
the lock is asked for."""


@contextmanager
def locked(folder: Path, if_busy: IfBusy, say: Callable[[str], None]) -> Iterator[None]:
    """The only writer of a run folder, for as long as the block runs.

    Raises `ConfigError` if the folder cannot be made, `GistSelectError` if another process has it and `if_busy`
    is `refuse`, or if the block is refused room in it.
    """
    if folder.parts[:1] and folder.parts[0].startswith("~"):
        raise ConfigError(f"--output {folder} begins with ~, which only a shell makes a folder of; write it out.")
    try:
        str(folder).encode()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        said = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(f"--output {str(folder)!r} cannot be made: {said}; choose another folder.") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--output {folder} cannot be written to; choose another folder or change its permissions.")
    lock = FileLock(folder / LOCK)
    try:
        with writable(folder / LOCK, also=FORBIDDEN):
            lock.acquire(timeout=0)
    except Timeout:
        if if_busy == "refuse":
            raise GistSelectError(
                f"another process is at work in {folder}; wait for it, choose another --output, or leave out "
                "--if-busy refuse."
            ) from None
        say(f"Another process is at work in {folder}; waiting for it to finish.")
        lock.acquire()
    try:
        remove_leftovers(folder, below=WRITTEN)
        with writable(folder):
            yield
    finally:
        lock.release()
