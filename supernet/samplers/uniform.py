"""Uniform sampling: each unit draws its choice alone and evenly.

Mean bits then concentrate (standard deviation sigma / sqrt(units)), so the smallest and the largest subnets are hardly
ever trained: the ablation of LLM-QFA.
"""

from __future__ import annotations

from supernet.samplers.base import History, Sampler, evenly, generator
from supernet.space import SearchSpace, Subnet


class Uniform(Sampler):
    def sample(self, space: SearchSpace, step: int, steps: int, seed: int, history: History) -> tuple[Subnet, ...]:
        return (evenly(generator(seed, step), space),)
