"""Which ids are taken, in bounded memory: a table of the latest ones, and sorted runs of the others on disk.

Runs are merged when two of about the same size meet, so there are log2(n / `TABLE`) of them (O'Neil et al., "The
log-structured merge-tree", 1996). What stays in memory of a run is one number of each block.
"""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

TABLE = 1 << 23
"""Places of the largest table in memory, 8 bytes each; two thirds of them are used before it goes to disk."""
FEWEST = 1 << 10
"""Places of the first table."""
BLOCK = 512
"""Numbers of a run that are read together: 4 KiB."""
MERGED = 1 << 20
"""Numbers of two runs that are merged at a time."""


class Ids:
    """Ids by 64-bit hashes (BLAKE2b). In memory at most 12 to 24 bytes for each of the latest 5.6 million, and an
    eighth of a bit for each other.

    Two ids with one hash count as the same, which costs the later row its short name and nothing else.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is where runs lie, as files without a name that end with the process; by default, where the system
        keeps what is temporary."""
        self._folder = folder
        self._table = array("Q", bytes(8 * FEWEST))
        self._used = 0
        self._runs: list[_Run] = []

    def __contains__(self, id: str) -> bool:
        """Whether this id is taken."""
        key = _key(id)
        return self._table[self._slot(key)] == key or any(key in run for run in self._runs)

    def claim(self, id: str) -> bool:
        """Whether no earlier call had this id."""
        key = _key(id)
        slot = self._slot(key)
        if self._table[slot] == key or any(key in run for run in self._runs):
            return False
        self._table[slot] = key
        self._used += 1
        if self._used * 3 > len(self._table) * 2:
            if len(self._table) < TABLE:
                self._grow()
            else:
                self._spill()
        return True

    def claim_all(self, keys: NDArray[np.uint64]) -> bool:
        """Claim the ids of these keys (n,) at a time if all are free and no two the same; otherwise none of them."""
        while 3 * (self._used + len(keys)) > 2 * len(self._table):
            if len(self._table) < TABLE or not self._used:
                self._grow()
            else:
                self._spill()
        if len(np.unique(keys)) < len(keys) or any(key in run for run in self._runs for key in keys.tolist()):
            return False
        table, mask = np.frombuffer(self._table, dtype=np.uint64), len(self._table) - 1
        left, slots = keys, (keys & np.uint64(mask)).astype(np.intp)
        while len(left):  # as `_slot`, for all keys at a time
            there = table[slots]
            if (there == left).any():
                return False
            left, slots = left[there != 0], (slots[there != 0] + 1) & mask
        self._put(keys)
        self._used += len(keys)
        return True

    def _slot(self, key: int) -> int:
        """Where a key stands in the table, or would."""
        table, mask = self._table, len(self._table) - 1
        slot = key & mask
        while table[slot] not in (0, key):
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        kept, self._table = np.frombuffer(self._table, dtype=np.uint64), array("Q", bytes(16 * len(self._table)))
        for start in range(0, len(kept), MERGED):
            piece = kept[start : start + MERGED]
            self._put(piece[piece != 0])

    def _put(self, keys: NDArray[np.uint64]) -> None:
        """Put different keys, which are not there, where `_slot` finds them."""
        table, mask = np.frombuffer(self._table, dtype=np.uint64), len(self._table) - 1
        left, slots = keys, (keys & np.uint64(mask)).astype(np.intp)
        while len(left):
            free = table[slots] == 0
            table[slots[free]] = left[free]  # where several have the same place, one gets it
            over = table[slots] != left
            left, slots = left[over], (slots[over] + 1) & mask

    def _spill(self) -> None:
        """The table becomes a run; runs that are no larger than it are merged with it."""
        keys = np.frombuffer(self._table, dtype=np.uint64)
        run = _Run.written(iter([np.sort(keys[keys != 0])]), self._folder)
        while self._runs and self._runs[-1].n <= run.n:
            run = _Run.written(_merged(self._runs.pop(), run), self._folder)
        self._runs.append(run)
        self._table, self._used = array("Q", bytes(8 * FEWEST)), 0


class _Run:
    """Different numbers on disk, ascending."""

    def __init__(self, file: BinaryIO, n: int, firsts: array[int]) -> None:
        self._file, self.n, self._firsts = file, n, firsts

    @classmethod
    def written(cls, pieces: Iterator[NDArray[np.uint64]], folder: Path | None) -> _Run:
        """A run of pieces that follow each other."""
        file = tempfile.TemporaryFile(dir=folder, prefix=".ids-")  # noqa: SIM115 - it ends with the run
        firsts, n = array("Q"), 0
        for piece in pieces:
            firsts.frombytes(piece[-n % BLOCK :: BLOCK].tobytes())
            file.write(piece.tobytes())
            n += len(piece)
        return cls(file, n, firsts)

    def __contains__(self, key: int) -> bool:
        block = bisect_right(self._firsts, key) - 1
        if block < 0:
            return False
        keys = array("Q", self._bytes(BLOCK * block, BLOCK))
        at = bisect_left(keys, key)
        return at < len(keys) and keys[at] == key

    def read(self, start: int, count: int) -> NDArray[np.uint64]:
        """Up to so many numbers from a place on."""
        return np.frombuffer(self._bytes(start, count), dtype=np.uint64)

    def _bytes(self, start: int, count: int) -> bytes:
        self._file.seek(8 * start)
        return self._file.read(8 * count)


def _merged(first: _Run, second: _Run) -> Iterator[NDArray[np.uint64]]:
    """The numbers of two runs, ascending, a piece at a time."""
    at = [0, 0]
    while at[0] < first.n or at[1] < second.n:
        heads = [run.read(start, MERGED // 2) for run, start in zip((first, second), at, strict=True)]
        unread = [start + len(head) < run.n for run, start, head in zip((first, second), at, heads, strict=True)]
        # Beyond the last number read of a run there may be smaller ones than the other's last.
        until = min([head[-1] for head, more in zip(heads, unread, strict=True) if more], default=None)
        taken = [head if until is None else head[: np.searchsorted(head, until, side="right")] for head in heads]
        at = [start + len(part) for start, part in zip(at, taken, strict=True)]
        yield np.sort(np.concatenate(taken))


def keys(ids: Iterable[str]) -> NDArray[np.uint64]:
    """(n,) what ids are told apart by."""
    return np.fromiter(map(_key, ids), dtype=np.uint64)


def _key(id: str) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little") or 1
