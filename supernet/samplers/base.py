"""What a sampler is."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod

from supernet.space import SearchSpace, Subnet


class Sampler(ABC):
    """Draws the subnet of a step, from its arguments alone: every process, and a resumed run, draws the same."""

    @abstractmethod
    def sample(self, space: SearchSpace, step: int, steps: int, seed: int) -> Subnet:
        """The subnet to train at `step` of `steps`."""


def generator(seed: int, step: int) -> random.Random:
    return random.Random(f"{seed}/{step}")
