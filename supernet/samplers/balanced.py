"""The balanced sampler of LLM-QFA (arXiv 2405.20202, Eq. 5): the mean of the bits moves down and up over training.

    mu(t) = b_1 + (b_N - b_1) * |2 (t mod SL) / SL - 1|

with SL = 8K of the paper's 10K steps, kept here as a share of the steps. The paper does not say how mu becomes
probabilities for a unit; this takes the distribution of maximum entropy with that mean, p_b ~ exp(lambda * b). At the
ends of the sweep every unit takes the same bits, so the uniform subnets get their share.
"""

from __future__ import annotations

import math
from functools import lru_cache

from supernet.samplers.base import Sampler, generator
from supernet.space import SearchSpace, Subnet

SWEEP = 0.8  # SL as a share of all steps


def mean_bits(step: int, steps: int, low: int, high: int) -> float:
    """Eq. 5."""
    sweep = max(SWEEP * steps, 2)
    return low + (high - low) * abs(2 * (step % sweep) / sweep - 1)


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


class Balanced(Sampler):
    def sample(self, space: SearchSpace, step: int, steps: int, seed: int) -> Subnet:
        draw = generator(seed, step)
        every = sorted({choice.bits for _, choices in space for choice in choices if len(choices) > 1} or {0})
        mean = mean_bits(step, steps, every[0], every[-1])
        items = []
        for unit, choices in space:
            bits = tuple(choice.bits for choice in choices)
            inside = min(max(mean, bits[0]), bits[-1])
            items.append((unit, draw.choices(choices, probabilities(bits, inside))[0]))
        return Subnet(tuple(items))
