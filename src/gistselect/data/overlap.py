"""Texts that are the same, nearly the same, or share a passage: duplicates and contamination.

Rows are compared by words (`data.words`), so case, punctuation and white space do not count. Words are hashed once;
runs of words are hashes mixed in their order, over many rows in one array.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gistselect.data.words import words
from gistselect.linalg.hashing import fingerprints, mixed
from gistselect.streams import Stream, generator
from gistselect.types import Record

SHINGLE = 5
"""Words of a shingle; a shorter text is one."""
HASHES = 128
"""Numbers of a MinHash signature."""
PASSAGE, SHORTEST = 13, 8
"""Words of a passage, and of the shortest turn of an item that is compared, as a whole (GPT-3, arXiv 2005.14165,
appendix C)."""
BLOCK = 1 << 20
"""Characters of the rows that are hashed together."""
_LOW = np.uint64(2**32 - 1)
Numbers = NDArray[np.uint64]
Thing = TypeVar("Thing")


def said(record: Record) -> list[str]:
    """Every text of a record: of each turn what was thought, said and called, and the start of the last answer."""
    found = []
    for message in record.messages:
        called = [json.dumps(call, ensure_ascii=False, sort_keys=True) for call in message.tool_calls]
        found += [text for text in (message.reasoning, message.content, *called) if text]
    return [*found, record.prefix] if record.prefix else found


def text_digest(record: Record) -> bytes:
    """16 bytes that two rows share if they have the same tools, roles and turns, and but for white space and the
    composition of characters (Unicode NFC) the same text."""
    turns = [[one.role, one.name, one.reasoning, one.content, one.tool_calls] for one in record.messages]
    text = json.dumps(_folded([turns, record.prefix, record.tools, record.plain]), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _folded(value: object) -> object:
    match value:
        case str():
            return " ".join(unicodedata.normalize("NFC", value).split())
        case list() | tuple():
            return [_folded(one) for one in value]
        case Mapping():
            return {str(name): _folded(one) for name, one in value.items()}
        case _:
            return value


@lru_cache(maxsize=1 << 18)
def _fingerprint(word: str) -> int:
    return int(fingerprints([word])[0])


class HashedWords:
    """The words of several texts, end to end."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        """Each text is in parts, which words do not run across."""
        lengths, hashed = [], array("Q")
        for text in texts:
            before = len(hashed)
            for part in text:
                hashed.extend(map(_fingerprint, words(part)))
            lengths.append(len(hashed) - before)
        self.hashes: Numbers = np.frombuffer(hashed, dtype=np.uint64)
        self.lengths: NDArray[np.intp] = np.asarray(lengths, dtype=np.intp)
        """(n_texts,) number of words"""

    @property
    def starts(self) -> NDArray[np.intp]:
        """(n_texts,) place of each text's first word."""
        return np.cumsum(self.lengths) - self.lengths

    def runs(self, longest: int) -> Iterator[tuple[int, Numbers]]:
        """Of each length up to the longest the hashes of all runs of so many words, by the place of the first word."""
        run = self.hashes
        for length in range(1, longest + 1):
            if length > 1:
                run = mixed(run[: max(0, len(self.hashes) - length + 1)], self.hashes[length - 1 :])
            yield length, run

    def within(self, length: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Places of all runs of so many words that lie within one text, and (same shape) the texts' numbers."""
        counts = np.maximum(self.lengths - length + 1, 0)
        owners = np.repeat(np.arange(len(counts)), counts)
        return np.arange(counts.sum()) + (self.starts - (np.cumsum(counts) - counts))[owners], owners


def _blocks(things: Sequence[Thing], size_of: Callable[[Thing], int]) -> Iterator[list[Thing]]:
    held: list[Thing] = []
    size = 0
    for thing in things:
        own = size_of(thing)
        if held and size + own > BLOCK:
            yield held
            held, size = [], 0
        held.append(thing)
        size += own
    if held:
        yield held


class Signatures:
    """Makes MinHash signatures (Broder 1997): the share of equal numbers estimates the Jaccard index of two rows'
    sets of shingles, with a standard error of `sqrt(J (1 - J) / 128)`.

    A hash function is `(a x + b mod 2^64) / 2^32`, rounded down, of the low 32 bits of a shingle's hash
    (Dietzfelbinger 1996).
    """

    def __init__(self) -> None:
        rng = generator(0, Stream.MINHASH)
        self.factors = rng.integers(2**64, size=HASHES, dtype=np.uint64)
        self.summands = rng.integers(2**64, size=HASHES, dtype=np.uint64)

    def of(self, records: Sequence[Record], hashed: HashedWords) -> NDArray[np.uint32]:
        """(n, HASHES) of these records, whose words are `hashed`."""
        values, offsets = shingles(records, hashed)
        found = np.empty((len(records), HASHES), dtype=np.uint32)
        low = values & _LOW
        for index in range(HASHES if len(records) else 0):
            permuted = low * self.factors[index] + self.summands[index]
            found[:, index] = np.minimum.reduceat(permuted, offsets) >> np.uint64(32)
        return found


def shingles(records: Sequence[Record], hashed: HashedWords) -> tuple[Numbers, NDArray[np.intp]]:
    """Hashes of each record's runs of SHINGLE words, end to end, and (n,) where each record's begin.

    A record of fewer words is its own only shingle; one without a word is known by its text.
    """
    counts = np.maximum(hashed.lengths - SHINGLE + 1, 1)
    offsets = np.cumsum(counts) - counts
    values = np.zeros(int(counts.sum()), dtype=np.uint64)
    for length, run in hashed.runs(SHINGLE):
        if length < SHINGLE:
            short = np.flatnonzero(hashed.lengths == length)
            values[offsets[short]] = run[hashed.starts[short]]
        else:
            values[np.repeat(hashed.lengths >= length, counts)] = run[hashed.within(length)[0]]
    for index in np.flatnonzero(hashed.lengths == 0).tolist():
        values[offsets[index]] = fingerprints(["\n".join(said(records[index]))])[0]
    return values, offsets


class NearDuplicates:
    """Signatures that were seen, and whether a new one is nearly one of them.

    Of two signatures that are alike in at least t of 128 numbers, at most 128 - t differ. Cut into one band more than
    that, some band is the same in both: so looking at bands misses nothing, and is exactly a comparison with all. Each
    band has a table of chains; at the threshold 0.8 a signature takes about 1 kB with its 26 bands.
    """

    def __init__(self, threshold: float) -> None:
        self.least = int(np.ceil(threshold * HASHES - 1e-9))
        n_bands = HASHES - self.least + 1
        self._starts = np.linspace(0, HASHES, n_bands, endpoint=False).astype(np.intp)
        self._bands = np.arange(n_bands)
        self._factors = generator(0, Stream.MINHASH, 1).integers(2**64, size=HASHES, dtype=np.uint64) | np.uint64(1)
        self._seen = np.zeros((0, HASHES), dtype=np.uint32)
        self._n = 0
        self._grow(1 << 10)

    def _grow(self, room: int) -> None:
        """Room for so many signatures, a power of two."""
        seen, self._n = self._seen[: self._n], 0
        self._seen = np.zeros((room, HASHES), dtype=np.uint32)
        self._shift = np.uint64(64 - room.bit_length())
        self._heads = np.full((len(self._bands), 2 * room), -1, dtype=np.int32)
        self._next = np.full((room, len(self._bands)), -1, dtype=np.int32)
        for one in seen:
            self.add(one)

    def _slots(self, one: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """(n_bands,) of a signature, its place in each band's table: the same for the same band."""
        return np.add.reduceat(one * self._factors, self._starts) >> self._shift

    def holds(self, one: NDArray[np.uint32]) -> bool:
        """Whether a signature (HASHES,) is alike to one seen before."""
        bands = self._bands
        found = self._heads[bands, self._slots(one)]
        while len(bands := bands[found >= 0]):
            found = found[found >= 0]
            if int((self._seen[np.unique(found)] == one).sum(axis=1).max()) >= self.least:
                return True
            found = self._next[found, bands]
        return False

    def add(self, one: NDArray[np.uint32]) -> None:
        """A signature to compare later ones with."""
        if self._n == len(self._seen):
            self._grow(2 * self._n)
        slots = self._slots(one)
        self._next[self._n] = self._heads[self._bands, slots]
        self._heads[self._bands, slots] = self._n
        self._seen[self._n] = one
        self._n += 1


class Passages:
    """Passages of items: every 13 words in a row of one of an item's texts. Of several items with one passage, the
    first counts.

    A text of 8 to 12 words is a passage as a whole; one of fewer is too common to be compared.
    A passage takes 30 bytes.
    """

    def __init__(self, items: Sequence[tuple[str, Record]]) -> None:
        self.names = [name for name, _ in items]
        found: dict[int, list[tuple[Numbers, NDArray[np.intp]]]] = {}
        compared = np.zeros(len(items), dtype=np.bool_)
        texts = [(number, text) for number, (_, record) in enumerate(items) for text in said(record)]
        for block in _blocks(texts, lambda one: len(one[1])):
            hashed = HashedWords([(text,) for _, text in block])
            of_item = np.array([number for number, _ in block], dtype=np.intp)
            for length, run in hashed.runs(PASSAGE):
                if length >= SHORTEST:
                    places, owners = hashed.within(length)
                    if length < PASSAGE:
                        whole = hashed.lengths[owners] == length
                        places, owners = places[whole], owners[whole]
                    compared[of_item[owners]] = True
                    found.setdefault(length, []).append((run[places], of_item[owners]))
        self.n_short = int((~compared).sum())
        """Items without a text of 8 words."""
        self._sets = {length: _PassageSet(pieces) for length, pieces in found.items() if sum(len(a) for a, _ in pieces)}

    @property
    def digest(self) -> str:
        """SHA-256 of passages and names."""
        content = hashlib.sha256(json.dumps(self.names).encode())
        for length, one in sorted(self._sets.items()):
            content.update(bytes((length,)) + one.known.tobytes() + one.owners.tobytes())
        return content.hexdigest()

    def shared(self, hashed: HashedWords) -> NDArray[np.intp]:
        """(n,) of each text the first item that it shares a passage with, -1 for none."""
        first = np.full(len(hashed.lengths), len(self.names), dtype=np.intp)
        for length, run in hashed.runs(PASSAGE):
            if (known := self._sets.get(length)) is not None:
                places, owners = hashed.within(length)
                at, items = known.find(run[places])
                np.minimum.at(first, owners[at], items)
        first[first == len(self.names)] = -1
        return first


class _PassageSet:
    """Hashes of the passages of one length, each with the first item that has it."""

    def __init__(self, pieces: Sequence[tuple[Numbers, NDArray[np.intp]]]) -> None:
        hashes, owners = (np.concatenate([piece[index] for piece in pieces]) for index in (0, 1))
        # The items come in their order, and `unique` tells the first place of each.
        self.known, first = np.unique(hashes, return_index=True)
        self.owners = owners[first].astype(np.int32)
        # One bit of many that are clear: nearly every other hash is told by one look.
        self._mask = np.uint64((1 << max(10, (16 * len(self.known)).bit_length())) - 1)
        self._filled = np.zeros(int(self._mask) + 1, dtype=np.bool_)
        self._filled[self.known & self._mask] = True

    def find(self, hashes: Numbers) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
        """Places of the hashes that are known, and the items that they are of."""
        likely = np.flatnonzero(self._filled[hashes & self._mask])
        at = np.minimum(np.searchsorted(self.known, hashes[likely]), len(self.known) - 1)
        same = self.known[at] == hashes[likely]
        return likely[same], self.owners[at[same]]


def hashed_blocks(records: Sequence[Record]) -> Iterator[tuple[list[Record], HashedWords]]:
    """The records in their order with their words, few enough at a time to fit in memory (some 100 bytes a word)."""
    for block in _blocks(records, lambda record: sum(map(len, said(record)))):
        yield block, HashedWords([said(record) for record in block])


def repeats(digests: NDArray[np.void]) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Places of the texts that are there more than once, ascending, and a number of each text, for digests (n,) of 16
    bytes."""
    halves = digests.view(np.uint64).reshape(len(digests), 2)
    order = np.argsort(halves[:, 0], kind="stable")
    ranked = halves[order, 0]
    same = ranked[1:] == ranked[:-1]
    maybe = order[np.concatenate([[False], same]) | np.concatenate([same, [False]])] if len(order) else order
    groups = np.unique(halves[maybe], axis=0, return_inverse=True)[1].reshape(-1)
    places = np.flatnonzero(np.bincount(groups)[groups] > 1) if len(groups) else np.zeros(0, dtype=np.intp)
    ascending = places[np.argsort(maybe[places])]
    return maybe[ascending], groups[ascending].astype(np.int32)
