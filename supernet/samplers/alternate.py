"""Alternate: every step trains a uniform subnet, in shuffled rounds of the smallest bit-width once and others twice.

Ours. With an adapter for every bit-width it is one training for each of them, in one run. Codes that are learned make
up for the errors of blocks of their own bit-width: a step that mixes bit-widths teaches their adapters what no uniform
subnet needs (docs/log.md). Mixtures are then best split at a depth (`planner.search.depth`). The others get
twice the turns: at 3 bits quantizers leave least to win (docs/log.md, "One training against one for each bit-width").
"""

from __future__ import annotations

from supernet.samplers.base import History, Sampler, generator, nearest, widths_of
from supernet.space import SearchSpace, Subnet


class Alternate(Sampler):
    def sample(self, space: SearchSpace, step: int, steps: int, seed: int, history: History) -> tuple[Subnet, ...]:
        smallest, *others = widths_of(space)
        turns = [smallest, *others, *others]
        number, turn = divmod(step, len(turns))
        bits = generator(seed, number).sample(turns, len(turns))[turn]
        return (Subnet(tuple((unit, nearest(choices, bits)) for unit, choices in space)),)
