"""With how many threads a machine is timed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from planner.runtimes.llamacpp.engine import LlamaTimer
from planner.runtimes.timed import ASSUMED_CACHE_BYTES, Products
from profiles.catalog import load


@dataclass
class Known:
    """Products of which it is known what one row takes, by threads."""

    ms: dict[int, float]
    asked: list[tuple[int, int]] = field(default_factory=list)

    def one_row_ms(self, threads: int, cache_bytes: int) -> float:
        self.asked.append((threads, cache_bytes))
        return self.ms[threads]

    def measure(self, *asked: Any) -> Any:
        raise AssertionError("nothing else is timed")


@pytest.mark.parametrize(("ms", "best"), [({8: 1.0, 1: 2.0}, 8), ({8: 2.0, 1: 1.0}, 1), ({8: 1.0, 1: 1.0}, 1)])
def test_all_threads_are_taken_where_they_are_faster_than_one(ms: dict[int, float], best: int) -> None:
    known = Known(ms)

    class Timer(LlamaTimer):
        def products(self) -> Products:
            return known

    device = replace(load("desktop-ryzen-5600-16gb"), threads=8, caches=())
    assert Timer().best_threads(device) == best
    assert known.asked == [(8, ASSUMED_CACHE_BYTES), (1, ASSUMED_CACHE_BYTES)]
    assert Timer().best_threads(replace(device, threads=1)) == 1 and len(known.asked) == 2  # one is all that there is
