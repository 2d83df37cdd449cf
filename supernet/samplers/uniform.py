"""Uniform sampling: each unit draws its choice alone and evenly.

Mean bits then concentrate (standard deviation sigma / sqrt(units)), so the smallest and the largest subnets are hardly
ever trained: the ablation of LLM-QFA.
"""

from __future__ import annotations

from supernet.samplers.base import Sampler, generator
from supernet.space import SearchSpace, Subnet


class Uniform(Sampler):
    def sample(self, space: SearchSpace, step: int, steps: int, seed: int) -> Subnet:
        draw = generator(seed, step)
        return Subnet(tuple((unit, draw.choice(choices)) for unit, choices in space))
