"""Times callables that a runtime hands in. Knows nothing of the runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """What one call takes: median, 10th and 90th percentile over `repeats` calls."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Timing:
        """Of calls that took so long, in any order."""
        low, middle, high = (percentile(sorted(times_ms), share) for share in (0.1, 0.5, 0.9))
        return cls(middle, low, high, len(times_ms))

    @property
    def spread(self) -> float:
        """Half the distance from the 10th to the 90th percentile, as a fraction of the median."""
        return (self.p90_ms - self.p10_ms) / (2 * self.median_ms) if self.median_ms else 0.0


def time_callable(
    fn: Callable[[], object], *, min_repeats: int = 10, min_time_s: float = 0.05, warmup: int = 2
) -> Timing:
    """Call `fn` until both `min_repeats` calls and `min_time_s` seconds have passed; warm-up calls are not counted.

    One call of `fn` should do what a real step does: in a model the weights come from memory and not from the cache,
    so `fn` walks over more copies of them than the cache holds (see `per_call`).
    """
    if min_repeats < 1:
        raise ValueError(f"min_repeats must be at least 1, got {min_repeats}")
    for _ in range(warmup):
        fn()
    samples: list[float] = []
    end = time.perf_counter() + min_time_s
    while len(samples) < min_repeats or time.perf_counter() < end:
        start = time.perf_counter()
        fn()
        samples.append((time.perf_counter() - start) * 1e3)
    return Timing.of(samples)


def per_call(timing: Timing, calls: int) -> Timing:
    """The timing of one product where the timed callable ran `calls` of them."""
    return Timing(timing.median_ms / calls, timing.p10_ms / calls, timing.p90_ms / calls, timing.repeats)


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """The value at `fraction` of an ascending sequence, linear between neighbours."""
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
