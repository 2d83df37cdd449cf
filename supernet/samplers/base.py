"""What a sampler is."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from supernet.space import Choice, SearchSpace, Subnet


@dataclass(frozen=True)
class Trained:
    """What a step found of one of its subnets: mean bits (`bits_of`), and the loss before the step's update."""

    bits: float
    loss: float


History = Sequence[tuple[Trained, ...]]  # one entry for each past step


class Sampler(ABC):
    """Draws the subnets of a step, from its arguments alone: every process, and a resumed run, draws the same.

    `several` says that a step trains more than one subnet, the largest open one first. `least_widths` is how many
    bit-widths with adapters it takes for the sampler to mean anything.
    """

    several: ClassVar[bool] = False
    least_widths: ClassVar[int] = 1

    @abstractmethod
    def sample(self, space: SearchSpace, step: int, steps: int, seed: int, history: History) -> tuple[Subnet, ...]:
        """The subnets, each once, to train on the batch of `step` of `steps`. `space` holds the open choices."""


def generator(seed: int, step: int) -> random.Random:
    return random.Random(f"{seed}/{step}")


def widths_of(space: SearchSpace) -> list[int]:
    """The bit-widths that units with several choices have, smallest first; [0] where there are none."""
    return sorted({choice.bits for _, choices in space for choice in choices if len(choices) > 1} or {0})


def bits_of(subnet: Subnet, space: SearchSpace) -> float:
    """Bits a unit on average, each unit counted once, over those with several choices in `space`; else over all."""
    units = [unit for unit, choices in space if len(choices) > 1] or [unit for unit, _ in space]
    return fmean(subnet[unit].bits for unit in units)


def nearest(choices: Sequence[Choice], bits: int) -> Choice:
    return min(choices, key=lambda choice: abs(choice.bits - bits))


def evenly(draw: random.Random, space: SearchSpace) -> Subnet:
    """Each unit draws its choice alone and evenly."""
    return Subnet(tuple((unit, draw.choice(choices)) for unit, choices in space))


def ends(space: SearchSpace) -> tuple[Subnet, Subnet]:
    """The smallest subnet and the largest."""
    smallest = Subnet(tuple((unit, choices[0]) for unit, choices in space))
    return smallest, Subnet(tuple((unit, choices[-1]) for unit, choices in space))
