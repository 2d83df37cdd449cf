"""Neighbours: the mean bits of a step are drawn anew, and each unit takes one of the two bit-widths around that mean.

Ours. At a mean between the ends, maximum entropy (`balanced`) mixes all bit-widths: at 3 of {2, 3, 4} a third of the
units have 2 bits. The adapters of 3 and 4 bits then learn to make up for the errors of 2, which the uniform subnets at
3 and 4 bits, and what is planned for generous budgets, do not have: on SmolLM2 4 bits came out worse than untrained
(docs/log.md). Half of the steps train a uniform subnet, each bit-width as often as the others; a mean that is drawn at
every step, not swept, leaves no bit-width to the end, where the learning rate is low.
"""

from __future__ import annotations

from supernet.samplers.base import History, Sampler, generator, nearest, widths_of
from supernet.space import SearchSpace, Subnet

UNIFORM = 0.5  # share of the steps that train a uniform subnet


class Neighbours(Sampler):
    def sample(self, space: SearchSpace, step: int, steps: int, seed: int, history: History) -> tuple[Subnet, ...]:
        draw = generator(seed, step)
        widths = widths_of(space)
        place = draw.uniform(0, len(widths) - 1)
        if draw.random() < UNIFORM:
            place = draw.randrange(len(widths))
        low = widths[int(place)]
        high = widths[min(int(place) + 1, len(widths) - 1)]
        share = place - int(place)
        items = ((unit, nearest(choices, high if draw.random() < share else low)) for unit, choices in space)
        return (Subnet(tuple(items)),)
