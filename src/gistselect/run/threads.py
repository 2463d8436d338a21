"""Several threads over the shards of a stage that reads, multiplies and writes, with the results in order.

For work that spends its time outside of Python: in Arrow, in numpy, in a checksum. It is not for a model's passes,
whose workers are processes (`run.engine`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")

MOST = 8
"""One thread writes what the others make, and is then what they wait for."""
AHEAD = 2
"""Results that may wait to be taken, for each thread."""


def n_threads() -> int:
    """As many threads as torch takes: OMP_NUM_THREADS, or else the cores that this process may use; 8 at the most."""
    return min(MOST, told_threads(os.environ.get("OMP_NUM_THREADS", "")) or usable_cores())


def told_threads(told: str) -> int | None:
    """The number in a value of OMP_NUM_THREADS, of the outermost level if it has several; None if it tells of none."""
    first = told.partition(",")[0].strip()
    return int(first) or None if first.isdecimal() else None


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine has where a scheduler binds it to some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(make: Callable[[int], Made], n: int, threads: int) -> Iterator[Made]:
    """make(0) to make(n - 1), in this order whichever is done first; at most `AHEAD` a thread are in memory.

    What the first failing one raises is raised here, and no further one is begun.
    """
    if threads < 2:
        yield from map(make, range(n))
        return
    from threadpoolctl import threadpool_limits

    # BLAS starts threads for each of these otherwise, which take turns to wait for each other.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads, thread_name_prefix="shards") as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for index in range(n):
                if len(waiting) == AHEAD * threads:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(make, index))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()
