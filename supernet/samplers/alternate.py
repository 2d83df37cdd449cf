"""Alternate: every step trains a uniform subnet, a bit-width twice as often as the next, in rounds that are shuffled.

Ours. With an adapter for every bit-width it is one training for each of them, in one run. Codes that are learned make
up for the errors of blocks of their own bit-width: a step that mixes bit-widths teaches their adapters what no uniform
subnet needs (docs/log.md). Mixtures are then best split at a depth (`planner.search.depth`).

One more bit leaves about a quarter of the loss, so its steps have less to win. Half as many lie between equal shares
and shares by what is to win.
"""

from __future__ import annotations

from supernet.samplers.base import History, Sampler, generator, nearest, widths_of
from supernet.space import SearchSpace, Subnet


class Alternate(Sampler):
    adapts_all = True

    def sample(self, space: SearchSpace, step: int, steps: int, seed: int, history: History) -> tuple[Subnet, ...]:
        widths = widths_of(space)
        turns = [bits for rank, bits in enumerate(widths, 1) for _ in range(2 ** (len(widths) - rank))]
        number, turn = divmod(step, len(turns))
        bits = generator(seed, number).sample(turns, len(turns))[turn]
        return (Subnet(tuple((unit, nearest(choices, bits)) for unit, choices in space)),)
