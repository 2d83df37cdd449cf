"""How long something takes that is done many times."""

from __future__ import annotations

import time
from collections.abc import Callable


def seconds_of(work: Callable[[], object], times: int = 3) -> float:
    """Of one time, the mean of so many after one to warm up."""
    work()
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times
