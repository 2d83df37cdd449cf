"""How many steps of learned rounding fit into a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """Seconds of a step, of what comes before the steps of a turn, and of one window: weighed, and taken through every
    block."""

    step: float
    start: float
    window: float

    def steps(self, seconds: float, turns: int, batch: int, windows: int) -> int:
        """Steps of `batch` windows that each of so many turns can take. Only windows that come up cost anything, and of
        many steps each has come up before any comes again."""
        left = seconds - turns * self.start
        steps = left / (turns * self.step + batch * self.window)
        if steps * batch > windows:
            steps = (left - windows * self.window) / (turns * self.step)
        return int(steps)
