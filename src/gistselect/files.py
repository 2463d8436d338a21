"""Files written whole or not at all: a temporary name of one's own, synced, then renamed into place.

Two processes that write the same file give one of the two, never a mixture; a killed one leaves a hidden `.part`
behind, which `remove_leftovers` clears away.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from gistselect.errors import ArtifactMismatchError, GistSelectError

LEFTOVER = ".part"
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Full, beyond a quota or a limit, read-only: what only writers are told."""
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})
"""What readers are told too."""
_OWN = re.compile(rf"\..*\.\d+-[0-9a-f]{{8}}{re.escape(LEFTOVER)}", re.DOTALL)
"""Names that `_temporary` gives."""
_OF_RUST = re.compile(r"\(os error (\d+)\)")
_OF_TORCH = re.compile(r"inline_container|PytorchStreamWriter|iostream error")
"""How safetensors and torch.save say what the system told them: not as an OSError."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place only if the block succeeds.

    The file gets the permissions that the user's umask gives to any new file. Raises `GistSelectError` if the disk
    is full or the folder cannot be written to.
    """
    with writable(path, also=FORBIDDEN):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place, with all it holds, only if the block succeeds."""
    with writable(path, also=FORBIDDEN):
        temporary = _temporary(path)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for inside in sorted(temporary.rglob("*")):
                if inside.is_dir():
                    _sync_folder(inside)
                else:
                    _sync(inside)
            _sync_folder(temporary)
            _swap(temporary, path)
            _sync_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writable(path: Path, also: frozenset[int] = frozenset()) -> Iterator[None]:
    """Says as a sentence what the file system refused within the block, whichever library wrote; `path` is what for.

    Raises `GistSelectError` with the remedy; failures that writing does not explain pass through.
    """
    try:
        yield
    except Exception as error:
        said = _refusal(error, NO_ROOM | also)
        if said is None:
            raise
        place = getattr(error, "filename", None) or path
        raise GistSelectError(
            f"cannot write {place}: {said}. Make room or make the folder writable, then give the same command again: "
            "it continues where this one stopped."
        ) from error


def _refusal(error: Exception, numbers: frozenset[int]) -> str | None:
    """What the system said, if it is one of these errors; torch tells only that a file came out too short."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in numbers else None
    if number := _OF_RUST.search(str(error)):
        return os.strerror(int(number[1])) if int(number[1]) in numbers else None
    if isinstance(error, RuntimeError) and _OF_TORCH.search(str(error)):
        return "the disk is full, or a quota or limit is reached"
    return None


def write_json(path: Path, value: Any) -> None:
    """One strict JSON document. Raises `ValueError` for NaN and infinity, which JSON does not have."""
    with replacing(path) as part:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        part.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Raises `ArtifactMismatchError` if the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactMismatchError(f"{path} is missing or damaged ({error}); remove it and run again.") from None


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """One line for each element, in order."""
    with replacing(path) as part, part.open("wb") as file:
        for line in lines:
            file.write(line + b"\n")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """One strict JSON value a line."""
    write_lines(path, map(json_line, rows))


def json_line(value: Any) -> bytes:
    """A value as one line of strict JSON; readable text, but for half a surrogate pair, which UTF-8 cannot hold."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False).encode()


def read_json_lines(path: Path) -> list[Any]:
    """The values of a JSONL file. Lines end at a line feed alone: text may hold U+2028 and its like.

    Raises `ArtifactMismatchError` if the file is missing or a line is damaged.
    """
    try:
        lines = path.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactMismatchError(f"{path} is missing or damaged ({error}); remove it and run again.") from None


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file; one that has not changed since is read once a process. Raises `OSError`."""
    state = path.stat()
    return _content_digest(path, state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=1 << 16)
def _content_digest(path: Path, *state: int) -> str:
    """`state` makes a file that was written anew another one."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(folder: Path, below: Iterable[str] = ()) -> None:
    """Remove what killed writers left in a folder, and at any depth in those of its folders that are named.

    Only for a process that alone writes there. A folder may hold what others own, so nothing else is looked at.
    """
    inside = (path for name in below for path in (folder / name).rglob(f".*{LEFTOVER}"))
    for path in sorted([*folder.glob(f".*{LEFTOVER}"), *inside]):
        if not _OWN.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{LEFTOVER}")


def _swap(temporary: Path, path: Path) -> None:
    """Put a folder in the place of another; a folder cannot be renamed over one that is not empty."""
    if path.exists():
        old = _temporary(path)
        path.replace(old)
        temporary.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.replace(path)


def _sync(path: Path) -> None:
    with path.open("rb") as written:
        if os.name != "nt" and stat.S_IMODE(os.fstat(written.fileno()).st_mode) == 0o600:
            # safetensors makes files that only their owner may read, whatever the umask says.
            os.fchmod(written.fileno(), _usual_mode(path.parent))
        os.fsync(written.fileno())


def _usual_mode(folder: Path) -> int:
    """Permissions of a new file. The umask can only be asked for by setting it, for all threads, so a file is made."""
    probe = _temporary(folder / "mode")
    try:
        probe.touch()
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    """Make a rename in this folder survive a power cut; Windows has no such call."""
    if os.name != "nt":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
