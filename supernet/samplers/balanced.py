"""The balanced sampler of LLM-QFA (arXiv 2405.20202, Eq. 5): the mean of the bits moves down and up over training.

    mu(t) = b_1 + (b_N - b_1) * |2 (t mod SL) / SL - 1|

with SL = 8K of the paper's 10K steps, kept here as a share of the steps. The paper does not say how mu becomes
probabilities for a unit; this takes the distribution of maximum entropy with that mean, p_b ~ exp(lambda * b). At the
ends of the sweep every unit takes the same bits, so the uniform subnets get their share.
"""

from __future__ import annotations

from supernet.samplers.base import History, Sampler, generator, widths_of
from supernet.samplers.entropy import around
from supernet.space import SearchSpace, Subnet

SWEEP = 0.8  # SL as a share of all steps


def mean_bits(step: int, steps: int, low: int, high: int) -> float:
    """Eq. 5."""
    sweep = max(SWEEP * steps, 2)
    return low + (high - low) * abs(2 * (step % sweep) / sweep - 1)


class Balanced(Sampler):
    def sample(self, space: SearchSpace, step: int, steps: int, seed: int, history: History) -> tuple[Subnet, ...]:
        every = widths_of(space)
        return (around(generator(seed, step), space, mean_bits(step, steps, every[0], every[-1])),)
