"""Subnets of wanted mean bits: each unit draws from the distribution of maximum entropy with that mean."""

from __future__ import annotations

import math
import random
from functools import lru_cache

from supernet.space import SearchSpace, Subnet


@lru_cache(maxsize=1024)
def probabilities(bits: tuple[int, ...], mean: float) -> list[float]:
    """The maximum-entropy distribution over `bits` with this mean: p_b ~ exp(lambda * b), lambda by bisection."""

    def at(slope: float) -> list[float]:
        peak = max(slope * b for b in bits)
        weights = [math.exp(slope * b - peak) for b in bits]
        return [w / sum(weights) for w in weights]

    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        if sum(p * b for p, b in zip(at(middle), bits, strict=True)) < mean:
            low = middle
        else:
            high = middle
    return at((low + high) / 2)


def around(draw: random.Random, space: SearchSpace, mean: float) -> Subnet:
    """Every unit draws around `mean` bits, or around the nearest that it can be."""
    items = []
    for unit, choices in space:
        bits = tuple(choice.bits for choice in choices)
        inside = min(max(mean, bits[0]), bits[-1])
        items.append((unit, draw.choices(choices, probabilities(bits, inside))[0]))
    return Subnet(tuple(items))
