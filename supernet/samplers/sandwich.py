"""The sandwich rule: a step trains the largest subnet, the smallest, and some random ones between.

From universally slimmable networks (Yu and Huang, arXiv 1903.05134), as DepS uses it (arXiv 2407.06167):
two random subnets a step. Both ends are trained at every step, which the draws of `uniform` hardly ever reach. A step
costs as many passes as it has subnets; one that is drawn twice, as the only one open is, is trained once.
"""

from __future__ import annotations

from supernet.samplers.base import History, Sampler, ends, evenly, generator
from supernet.space import SearchSpace, Subnet

RANDOM = 2  # subnets a step between the largest and the smallest


class Sandwich(Sampler):
    several = True
    least_widths = 2

    def sample(self, space: SearchSpace, step: int, steps: int, seed: int, history: History) -> tuple[Subnet, ...]:
        draw = generator(seed, step)
        smallest, largest = ends(space)
        return tuple(dict.fromkeys((largest, smallest, *(evenly(draw, space) for _ in range(RANDOM)))))
