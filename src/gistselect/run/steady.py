"""Looking at a run folder where another process may be at work: what was read is of one moment, or it is not used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gistselect.errors import GistSelectError
from gistselect.run.lock import LOCK
from gistselect.run.methods import METHODS
from gistselect.run.remember import RUN_YAML
from gistselect.run.results import OF_A_METHOD, OF_A_RUN, REPORT, SPECTRUM

PICTURES = {REPORT, SPECTRUM}
"""Files that are made of the others, also by those who only look."""


@contextmanager
def steady(*folders: Path) -> Iterator[None]:
    """What the block reads of these run folders' results is of one moment.

    Raises `GistSelectError` that names the folder if another process replaced something meanwhile, or if the block
    fails while one is at work there.
    """
    before = [_state(folder) for folder in folders]
    try:
        yield
    except GistSelectError as error:
        for folder, state in zip(folders, before, strict=True):
            if is_busy(folder) or _state(folder) != state:
                raise GistSelectError(_said(folder)) from error
        raise
    for folder, state in zip(folders, before, strict=True):
        if _state(folder) != state:
            raise GistSelectError(_said(folder))


def is_busy(folder: Path) -> bool:
    """Whether another process holds the folder's lock. One that may not be asked for is taken for free."""
    if not (folder / LOCK).is_file():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a folder that may only be read
        return False
    lock.release()
    return False


def _said(folder: Path) -> str:
    return (
        f"another process is at work in {folder} and is replacing its results; wait for it, then give the same command "
        "again."
    )


def _state(folder: Path) -> dict[Path, Sequence[int]]:
    """Size, time and number of every result; a file that takes the place of another has another number."""
    names = {RUN_YAML, *OF_A_METHOD, *OF_A_RUN} - PICTURES
    found = {}
    for path in (one / name for one in (folder, *(folder / METHODS).glob("*")) for name in names):
        try:
            state = path.stat()
        except OSError:
            continue
        found[path] = state.st_size, state.st_mtime_ns, state.st_ino
    return found
