"""Memory and time of telling ids apart at ingest, and of ordering rows of equal score by id.

    python benchmarks/ids.py [rows] [folder]

Ids are as long as a UUID, and no two of them the same. Each part is a process of its own, so that a peak is its own;
`beside` is the same with a Python set and with a dictionary of ids. The folder is where sorted runs lie.
"""

from __future__ import annotations

import itertools
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PARTS = ("beside: a set", "ingest", "beside: a dictionary by position", "selection")
PIECE = 1 << 16


def ids(n_rows: int) -> Iterator[str]:
    """Scattered and different: multiplication by an odd number permutes 64-bit numbers."""
    return (f"{row * 0x9E3779B97F4A7C15 % 2**64:016x}-{row:019d}" for row in range(n_rows))


def measure(part: str, n_rows: int, folder: Path) -> None:
    """One part, in this process."""
    if part == "ingest":
        from gistselect.data.ids import Ids

        start, clock = resident(), time.process_time()
        known = Ids(folder)
        assert all(known.claim(id) for id in ids(n_rows))
        seconds = time.process_time() - clock
        assert all(id in known for id in ids(min(n_rows, 100_000)))
        assert "another" not in known
    elif part == "beside: a set":
        start, clock = resident(), time.process_time()
        assert len(set(ids(n_rows))) == n_rows
        seconds = time.process_time() - clock
    else:
        path = folder / "ids.parquet"
        write(path, n_rows)
        start, clock = resident(), time.process_time()
        if part == "selection":
            import numpy as np

            from gistselect.run.scored import id_ranks

            assert len(np.unique(id_ranks(path)[:PIECE])) == min(n_rows, PIECE)
        else:
            import pyarrow.parquet as pq

            names = dict(enumerate(pq.read_table(path)["id"].to_pylist()))
            assert len(sorted(names, key=names.__getitem__)) == n_rows
        seconds = time.process_time() - clock
    above = f"{(resident() - start) / 1e9:.2f} GB above the start's {start / 1e9:.2f} GB"
    print(f"{part}: {n_rows:,} ids, {above}, {seconds:.0f} s of cores", flush=True)


def write(path: Path, n_rows: int) -> None:
    """A table of ids, as that of scores has them."""
    import pyarrow as pa

    from gistselect.run.store import table_writer

    rest = ids(n_rows)
    with table_writer(path, pa.schema({"id": pa.string()})) as writer:
        while piece := list(itertools.islice(rest, PIECE)):
            writer.write_table(pa.table({"id": piece}))


def resident() -> int:
    """Peak resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        measure(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    else:
        n = sys.argv[1] if sys.argv[1:] else "10000000"
        with tempfile.TemporaryDirectory(prefix="gistselect-ids-", dir=sys.argv[2] if sys.argv[2:] else None) as made:
            for one in PARTS:
                subprocess.run([sys.executable, __file__, "--part", one, n, made], check=True)
