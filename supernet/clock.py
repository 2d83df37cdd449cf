"""The minutes of a run, shared out among its stages.

Some stages take what they take, only less of it with fewer windows; learning and training take what is left. Before
the work, every stage's seconds are expected from a few short probes (`supernet.expected`). While it goes on, what the
stages so far took tells how slow the machine is, and a stage that runs late takes from those after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from supernet.expected import Cost
from supernet.memory import release
from supernet.progress import Progress, say

LEARNED = 0.4  # share of the minutes that learning and training keep while other stages are shortened
WHOLE = ("plain rounding",)  # stages that are never shortened: the least windows are theirs anyway
LEAST = 0.25  # share of its windows that a stage keeps at the least
SLOWEST, FASTEST = 4.0, 0.5  # times their expectation that the stages still to come are believed to take
CAUTION = 1.3  # times what those before took of theirs, where that was less


class Clock:
    """Who may have how much of `minutes`; None where nothing is limited, as with given steps.

    `expected` is the cost of each stage that takes what it takes, in their order; those named in `late` come after the
    training, which takes `least` seconds at the least. Nothing is kept for learning where nothing `learns`.
    """

    def __init__(self, minutes: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds = None if minutes is None else 60 * minutes
        self.takes = self.seconds or 0.0  # or what is expected, where that is more
        self.now, self.began = now, now()
        self.expected: dict[str, Cost] = {}
        self.late: tuple[str, ...] = ()
        self.least, self.learned = 0.0, LEARNED
        self.done: set[str] = set()
        self.took = self.believed = 0.0
        self.shortened: dict[str, float] = {}

    def expect(
        self, expected: Mapping[str, Cost], late: tuple[str, ...], least: float = 0.0, learns: bool = True
    ) -> None:
        """Share the minutes out and say it in one line."""
        self.expected, self.late, self.least = dict(expected), late, least
        self.learned = LEARNED if learns else 0.0
        if self.seconds is None:
            return
        shares = {stage: self.share(stage) for stage in expected}
        parts = {stage: cost.at(shares[stage]) for stage, cost in expected.items()}
        fixed = self.elapsed + sum(parts.values())
        said = [f"{stage} {_shown(seconds)}" for stage, seconds in parts.items() if seconds]
        if learns:
            said.append(f"learning and training {_shown(max(self.seconds - fixed, least))}")
        say(f"{_shown(self.seconds)} in all, expected: {', '.join(said)}")
        shortest = min(shares.values())
        if shortest < 1:
            say(f"to fit into the minutes, stages are shortened to {shortest:.0%} of their text and more")
        if fixed + least > self.seconds:
            self.takes = fixed + least
            say(f"the least for this model here is about {_shown(fixed + least)}, which it will take")
        self.shortened = shares

    @property
    def elapsed(self) -> float:
        return self.now() - self.began

    @property
    def pace(self) -> float:
        """How many times as long as expected the stages to come are believed to take."""
        return min(max(self.so_far, min(1.0, CAUTION * self.so_far), FASTEST), SLOWEST)

    @property
    def so_far(self) -> float:
        """How many times as long as expected the stages took."""
        return self.took / self.believed if self.believed else 1.0

    def share(self, stage: str) -> float:
        """The share of its windows, from `LEAST` to 1, that `stage` may take now."""
        if self.seconds is None or stage not in self.expected or stage in WHOLE:
            return 1.0
        open_ = [cost for name, cost in self.expected.items() if name not in self.done]
        kept = 0.0 if stage in self.late else max(self.learned * self.seconds, self.least)
        left = (self.seconds - self.elapsed - kept) / self.pace - sum(cost.fixed for cost in open_)
        text = sum(cost.text for cost in open_)
        return min(1.0, max(LEAST, left / text)) if text else 1.0

    def seconds_for(self, stage: str) -> float | None:
        """What a stage that can stop by itself may take for its text; None without a limit."""
        if self.seconds is None or stage not in self.expected:
            return None
        return self.share(stage) * self.pace * self.expected[stage].text

    def learning_seconds(self) -> float | None:
        """What is left for learning and training, once the stages still to come have what they need."""
        if self.seconds is None:
            return None
        open_ = {name: cost for name, cost in self.expected.items() if name not in self.done}
        needed = sum(cost.at(self.share(name) if name in self.late else 1.0) for name, cost in open_.items())
        return max(self.seconds - self.elapsed - self.pace * needed, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[float]:
        """The work of a stage; gives its share of windows, and says where that is less than was said before."""
        release()  # what came before, also where it was no stage of its own
        share, began = self.share(name), self.now()
        if share < 0.9 * self.shortened.get(name, 1.0):
            say(f"stages before took longer than expected: {name} is shortened to {share:.0%} of its text")
        yield share
        self.done.add(name)
        if name in self.expected:
            self.took += self.now() - began
            self.believed += self.expected[name].at(share)
        if self.seconds is not None and self.takes > self.seconds:
            self.takes = max(self.seconds, self.elapsed + self.so_far * self._to_come())
        release()

    def _to_come(self) -> float:
        """Seconds that were expected of all that is not done, at its least."""
        open_ = {name: cost for name, cost in self.expected.items() if name not in self.done}
        trained = any(name in self.done for name in self.late)
        return sum(cost.at(self.share(name)) for name, cost in open_.items()) + (0.0 if trained else self.least)

    def showing(self, progress: Progress) -> Progress:
        """The same progress with the time that is left over all stages."""

        def report(what: str, done: int, total: int) -> None:
            if self.seconds is None:
                return progress(what, done, total)
            left = self.takes - self.elapsed
            shown = f"{_shown(left)} left" if left >= 0 else f"{_shown(-left)} late"
            return progress(f"{what}, {shown}", done, total)

        return report


def fewer(windows: int, share: float, least: int) -> int:
    """A stage's number of windows at this share of them."""
    return min(windows, max(least, round(windows * share)))


def _shown(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
