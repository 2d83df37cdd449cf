"""Alternate: every step trains a uniform subnet, all bit-widths once in rounds that are shuffled.

Ours. With an adapter for every bit-width it is one training for each of them, in one run. Codes that are learned make
up for the errors of blocks of their own bit-width: a step that mixes bit-widths teaches their adapters what no uniform
subnet needs (docs/log.md). Mixtures are then best split at a depth (`planner.search.depth`).
"""

from __future__ import annotations

from supernet.samplers.base import History, Sampler, generator, nearest, widths_of
from supernet.space import SearchSpace, Subnet


class Alternate(Sampler):
    def sample(self, space: SearchSpace, step: int, steps: int, seed: int, history: History) -> tuple[Subnet, ...]:
        widths = widths_of(space)
        number, turn = divmod(step, len(widths))
        bits = generator(seed, number).sample(widths, len(widths))[turn]
        return (Subnet(tuple((unit, nearest(choices, bits)) for unit, choices in space)),)
