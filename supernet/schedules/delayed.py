"""Delayed shrinking (DepS, arXiv 2407.06167): the largest alone for the first half, then everything, slowly at first.

The learning rate of the smaller choices rises from 0 over the first stretch after they open. The paper's networks share
weights, so it scales what a small subnet contributes and spares the largest its first, rough steps; here every choice
has adapters of its own, so the factor is on their learning rate. How long the rise takes is a parameter, by default a
tenth of the steps. In the paper the sandwich rule draws the subnets, and the smaller ones learn from the largest.
"""

from __future__ import annotations

from dataclasses import dataclass

from supernet.schedules.base import Schedule, check_share, keep_largest
from supernet.space import Choice, SearchSpace


@dataclass(frozen=True)
class Delayed(Schedule):
    """`largest` and `ramp` are shares of the steps: the largest alone, and the rise of the others' learning rate."""

    least_widths = 2

    largest: float = 0.5
    ramp: float = 0.1

    def __post_init__(self) -> None:
        check_share("largest", self.largest)
        check_share("ramp", self.ramp)

    def open(self, space: SearchSpace, step: int, steps: int) -> SearchSpace:
        return keep_largest(space, 1) if step < self._first(steps) else space

    def rate(self, choice: Choice, space: SearchSpace, step: int, steps: int) -> float:
        """A choice that is the largest of any unit counts as a largest: it has been trained from the first step."""
        if any(choice == choices[-1] for _, choices in space):
            return 1.0
        rise = max(1, round(self.ramp * steps))
        return min(1.0, max(0, step - self._first(steps) + 1) / rise)  # above 0 at once: a step at 0 would be wasted

    def _first(self, steps: int) -> int:
        """The first step at which everything is open."""
        return round(self.largest * steps)
