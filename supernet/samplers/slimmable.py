"""Slimmable: every step trains every uniform subnet on the same batch.

From slimmable networks (Yu et al., arXiv 1812.08928, Algorithm 1), whose switches are widths; here they are bit-widths.
Each bit-width takes as many steps as a training of its own would, and all share one pass of the full model: with an
adapter for every bit-width it is those trainings in one run, for less.
"""

from __future__ import annotations

from supernet.samplers.base import History, Sampler, nearest, widths_of
from supernet.space import SearchSpace, Subnet


class Slimmable(Sampler):
    several = True

    def sample(self, space: SearchSpace, step: int, steps: int, seed: int, history: History) -> tuple[Subnet, ...]:
        return tuple(
            Subnet(tuple((unit, nearest(choices, bits)) for unit, choices in space))
            for bits in reversed(widths_of(space))
        )
