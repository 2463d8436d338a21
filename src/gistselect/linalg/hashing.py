"""Hashes that are the same in every process: 64 bits of a text, and two numbers made one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def fingerprints(texts: Iterable[str]) -> NDArray[np.uint64]:
    """64 bits (n,) of each text (BLAKE2b)."""
    digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.fromiter((int.from_bytes(digest, "little") for digest in digests), dtype=np.uint64)


def mixed(first: NDArray[np.uint64], second: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """One number (n,) of two, whose order counts; every bit of it depends on every bit of both.

    SplitMix64's step (Steele, Lea & Flood 2014), once for each of the two.
    """
    return _scattered(_scattered(first) ^ second)


def _scattered(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
