"""Progressive shrinking (Once-for-All, arXiv 1908.09791, section 3.3): the largest first, then smaller ones as well.

Each stage opens the next smaller choice of every unit; what was open stays open. The paper gives its largest network
180 of 605 epochs, 25 to each stage between, and 125 to each that completes a dimension: hence 0.3 of the steps for the
largest alone, 0.05 for each stage between, and the rest for the last. The paper lowers the learning rate from stage
to stage; here the run's one cosine does.
"""

from __future__ import annotations

from dataclasses import dataclass

from records.errors import InputError
from supernet.schedules.base import Schedule, check_share, keep_largest
from supernet.space import SearchSpace


@dataclass(frozen=True)
class Progressive(Schedule):
    """`largest` and `between` are shares of the steps: the largest alone, and each stage but the first and the last."""

    least_widths = 2

    largest: float = 0.3
    between: float = 0.05

    def __post_init__(self) -> None:
        check_share("largest", self.largest)
        check_share("between", self.between)

    def open(self, space: SearchSpace, step: int, steps: int) -> SearchSpace:
        stages = max(len(choices) for _, choices in space)
        starts = [self.largest + self.between * stage for stage in range(stages - 1)]  # of every stage but the first
        if starts and starts[-1] >= 1:
            raise InputError(
                f"the last stage must start before the end, got {stages} choices and a start at {starts[-1]:g} of the "
                f"steps; use smaller shares"
            )
        return keep_largest(space, 1 + sum(step >= round(start * steps) for start in starts))
