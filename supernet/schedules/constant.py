"""No schedule: every choice is open at every step."""

from __future__ import annotations

from supernet.schedules.base import Schedule
from supernet.space import SearchSpace


class Constant(Schedule):
    def open(self, space: SearchSpace, step: int, steps: int) -> SearchSpace:
        return space
