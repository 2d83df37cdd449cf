"""How much of this machine others take while it is timed: their programs, and on a shared host other machines."""

from __future__ import annotations

import time
from dataclasses import dataclass

BUSY = 0.1
"""Of all processors: from here on times are of a machine that is not quiet."""
WORKING = ("user", "nice", "system", "irq", "softirq", "steal")  # of psutil's, where the system tells them apart


@dataclass(frozen=True)
class Spent:
    """Seconds of all processors that were worked in, of them those of this process and its children, and the clock."""

    all_s: float
    own_s: float
    clock_s: float


def spent() -> Spent:
    import psutil

    whole = psutil.cpu_times()
    return Spent(sum(getattr(whole, name, 0.0) for name in WORKING), _own_s(), time.monotonic())


def share_of_others(before: Spent, after: Spent, processors: int) -> float:
    """Between two moments, from 0 to 1 of all processors."""
    seconds = (after.clock_s - before.clock_s) * processors
    others = (after.all_s - before.all_s) - (after.own_s - before.own_s)
    return min(1.0, max(0.0, others / seconds)) if seconds > 0 else 0.0


def _own_s() -> float:
    import psutil

    process, seconds = psutil.Process(), 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.Error:  # ended meanwhile, and is counted with its parent's
            continue
        seconds += times.user + times.system
        if one == process:  # those of the children that have ended
            seconds += times.children_user + times.children_system
    return seconds
