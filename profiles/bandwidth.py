"""Memory bandwidth by copying, as STREAM counts it: bytes read plus bytes written."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from profiles.measure import time_callable

CACHE_MULTIPLE = 4  # buffers are this many times the last-level cache, so that it cannot hold them
SMALLEST_BUFFER = 64 << 20
MEMORY_SHARE = 8  # and both together take at most one part in so many of the free memory


@dataclass(frozen=True)
class Bandwidth:
    """Median over the repeats; `spread` as in `Timing`."""

    bytes_per_s: float
    spread: float


def copy_bandwidth(threads: int, cache_bytes: int | None, free_bytes: int) -> Bandwidth:
    """Copy one numpy buffer to another with `threads` threads at once, each its own slice (numpy drops the lock).

    Takes half a second. The copy both reads and writes, so weights that are only read may stream somewhat faster.
    """
    import numpy as np

    wanted = max(SMALLEST_BUFFER, CACHE_MULTIPLE * (cache_bytes or 0))
    size = max(1 << 20, min(wanted, free_bytes // (2 * MEMORY_SHARE)))
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)  # touched, so that pages exist
    edges = [size * i // threads for i in range(threads + 1)]
    slices = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    with ThreadPoolExecutor(threads) as pool:
        timing = time_callable(
            lambda: list(pool.map(lambda part: np.copyto(target[part], source[part]), slices)),
            min_repeats=7, min_time_s=0.4,
        )  # fmt: skip
    return Bandwidth(2 * size / (timing.median_ms / 1e3), timing.spread)
