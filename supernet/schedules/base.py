"""What a schedule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from records.errors import InputError
from supernet.space import Choice, SearchSpace


class Schedule(ABC):
    """Says which choices a sampler may draw at a step, and how fast their adapters learn, from its arguments alone.

    `least_widths` is how many bit-widths with adapters it takes for the schedule to mean anything.
    """

    least_widths: ClassVar[int] = 1

    @abstractmethod
    def open(self, space: SearchSpace, step: int, steps: int) -> SearchSpace:
        """The part of `space` that is open at `step` of `steps`: at least one choice of every unit."""

    def rate(self, choice: Choice, space: SearchSpace, step: int, steps: int) -> float:
        """Factor from 0 to 1 on the learning rate of the adapters at `choice`; 1 for the largest."""
        return 1.0


def keep_largest(space: SearchSpace, count: int) -> SearchSpace:
    """The `count` largest choices of every unit; all of a unit that has no more."""
    return SearchSpace(tuple((unit, choices[-count:]) for unit, choices in space))


def check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InputError(f"{name} is a share of the steps, from 0 to below 1, got {value}")
