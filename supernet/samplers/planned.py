"""Planned: every step trains every uniform subnet, and one mixture such as plans take.

Ours. Uniform subnets alone (`slimmable`) never read what other bit-widths leave. What is planned is no independent draw
of each unit (`balanced`, `neighbours`) either. Half of the mixtures are two neighbouring bit-widths split at a depth,
the larger one behind, as `planner.search.depth` offers them. The others put units in order of a loss, as the exact
program does: losses are alike within a role and change slowly with depth, and as none are known while training, each
step makes them up. Which bits the first of that order take, their mean and their spread are drawn too.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import lru_cache

from supernet.samplers.base import History, Sampler, generator, nearest, widths_of
from supernet.space import SearchSpace, Subnet

SPLIT = 0.5  # share of the mixtures that are split at a depth
BY_DEPTH, BY_END, OWN = 1.0, 0.5, 0.5  # how far losses differ so, where those of roles differ by 1


class Planned(Sampler):
    several = True
    least_widths = 2

    def sample(self, space: SearchSpace, step: int, steps: int, seed: int, history: History) -> tuple[Subnet, ...]:
        widths = widths_of(space)
        uniform = (
            Subnet(tuple((unit, nearest(choices, bits)) for unit, choices in space)) for bits in reversed(widths)
        )
        return tuple(dict.fromkeys((*uniform, mixture(generator(seed, step), space, widths))))


def mixture(draw: random.Random, space: SearchSpace, widths: Sequence[int]) -> Subnet:
    """Units in order take bits from the smallest to the largest around a mean."""
    units = [unit for unit, choices in space if len(choices) > 1]
    most = len(widths) - 1
    mean, spread = draw.uniform(0, most), 1.0
    if draw.random() >= SPLIT:
        units, spread = made_up(draw, units), draw.uniform(1, max(most, 1))
    bits = {
        unit: widths[min(max(round(mean + spread * ((number + 0.5) / len(units) - 0.5)), 0), most)]
        for number, unit in enumerate(units)
    }
    return Subnet(tuple((unit, nearest(choices, bits.get(unit, widths[-1]))) for unit, choices in space))


def made_up(draw: random.Random, units: Sequence[str]) -> list[str]:
    """The units, those that lose least with few bits first, in a model of losses that is drawn; they come in the
    model's order."""
    roles = {role: draw.gauss(0, 1) for role in dict.fromkeys(map(_role, units))}
    slope, bend = draw.gauss(0, BY_DEPTH), draw.gauss(0, BY_END)
    losses = {}
    for number, unit in enumerate(units):
        place = 2 * number / max(len(units) - 1, 1) - 1  # from -1 to 1
        losses[unit] = roles[_role(unit)] + slope * place + bend * place**2 + draw.gauss(0, OWN)
    return sorted(units, key=losses.__getitem__)


@lru_cache(maxsize=4096)
def _role(unit: str) -> str:
    """The unit's name without its layer."""
    return re.sub(r"\d+", "", unit)
