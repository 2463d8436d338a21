"""Random streams: named, distinct, and the only source of randomness in the package."""

from __future__ import annotations

import itertools

from gistselect.streams import Stream, generator


def test_no_two_streams_share_their_numbers() -> None:
    draws = {stream: generator(0, stream).integers(0, 2**63, size=4).tolist() for stream in Stream}
    assert all(draws[a] != draws[b] for a, b in itertools.combinations(draws, 2))


def test_draws_of_one_stream_differ_by_what_follows_and_by_the_seed() -> None:
    keys = [(0, 1), (0, 2), (1, 1)]
    values = {generator(seed, Stream.EPOCH_ORDER, epoch).integers(0, 2**63) for seed, epoch in keys}
    assert len(values) == len(keys)
