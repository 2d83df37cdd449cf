"""Probability shift (ShiftNAS, arXiv 2307.08300, ICCV 2023): draw more where training still helps.

Subnets fall into bins of equal stretches of their mean bits. The paper learns the bins' probabilities by gradient,
and a network that draws a subnet for a bin. Here:

- The signal is the loss of a step's batch before its update. In the first pass over the text no update has seen that
  batch, so it is held-out and costs nothing; in later passes it was seen once a pass before.
- A bin's improvement is how fast the logarithm of its loss fell over its last visits, by least squares, or 0 where it
  rose. The logarithm makes bins comparable: a KL of 2 bits is many times that of 4.
- Half of all draws stay spread evenly, so no bin starves and each goes on being measured; half follow the improvements.
- Until every bin has been visited often enough, the least visited is next.
- Within a bin, units draw by maximum entropy around a mean inside it, until the subnet's own mean lies in it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from supernet.samplers.base import History, Sampler, bits_of, ends, generator
from supernet.samplers.entropy import around
from supernet.space import SearchSpace, Subnet

BINS = 5  # fewer where the space has too few units to reach so many
RECENT = 12  # visits of a bin that tell its improvement
ENOUGH = 4  # visits of every bin before draws shift: a line through fewer is noise
EVEN = 0.5  # share of the draws that stays spread evenly
TRIES = 32  # draws around a bin's mean before a subnet inside it is put together
LEAST = 1e-9  # losses below this are alike: rounding


@dataclass(frozen=True)
class Bins:
    """`count` equal stretches of mean bits between `low` and `high`, the ends included."""

    low: float
    high: float
    count: int

    @classmethod
    def of(cls, space: SearchSpace) -> Bins:
        """As many bins as can all be reached: changing one unit must not jump over a bin."""
        smallest, largest = ends(space)
        low, high = bits_of(smallest, space), bits_of(largest, space)
        ranges = [choices[-1].bits - choices[0].bits for _, choices in space]
        return cls(low, high, max(1, min(BINS, sum(ranges) // max(*ranges, 1))))

    def index(self, bits: float) -> int:
        """The bin of a subnet with these mean bits; rounded, so that a border is the same however it was added up."""
        if self.low == self.high:
            return 0
        place = math.floor(round((bits - self.low) / (self.high - self.low) * self.count, 9))
        return min(max(place, 0), self.count - 1)

    def visits(self, history: History) -> list[list[float]]:
        """Each bin's last losses, oldest first, at most `RECENT`. A loss that is no number says nothing."""
        found: list[list[float]] = [[] for _ in range(self.count)]
        for trained in reversed(history):
            for one in trained:
                losses = found[self.index(one.bits)]
                if len(losses) < RECENT and math.isfinite(one.loss):
                    losses.append(one.loss)
            if all(len(losses) == RECENT for losses in found):
                break
        return [losses[::-1] for losses in found]

    def subnet(self, draw: random.Random, space: SearchSpace, number: int) -> Subnet:
        """A subnet whose mean bits lie in bin `number`."""
        for _ in range(TRIES):
            mean = self.low + (self.high - self.low) * (number + draw.random()) / self.count
            subnet = around(draw, space, mean)
            if self.index(bits_of(subnet, space)) == number:
                return subnet
        return self.between(draw, space, number)

    def between(self, draw: random.Random, space: SearchSpace, number: int) -> Subnet:
        """From the smallest subnet to the largest, one unit after another, until the mean lies in the bin."""
        subnet, largest = ends(space)
        for unit in draw.sample([unit for unit, _ in space], len(space.options)):
            if self.index(bits_of(subnet, space)) >= number:
                break
            subnet = subnet.replace(unit, largest[unit])
        return subnet


def improvement(losses: Sequence[float]) -> float:
    """How much the logarithm of the loss falls a visit, by least squares; 0 where it rises."""
    logs = [math.log(max(loss, LEAST)) for loss in losses]
    middle, mean = (len(logs) - 1) / 2, sum(logs) / len(logs)
    slope = sum((x - middle) * (y - mean) for x, y in enumerate(logs)) / sum(
        (x - middle) ** 2 for x in range(len(logs))
    )
    return max(0.0, -slope)


def shifted(visits: Sequence[Sequence[float]]) -> list[float]:
    """The probability of each bin."""
    fewest = min(map(len, visits))
    if fewest < ENOUGH:
        least = [len(losses) == fewest for losses in visits]
        return [chosen / sum(least) for chosen in least]
    falls = [improvement(losses) for losses in visits]
    total = sum(falls)
    if total == 0:
        return [1 / len(falls)] * len(falls)
    return [EVEN / len(falls) + (1 - EVEN) * fall / total for fall in falls]


class Shift(Sampler):
    least_widths = 2

    def sample(self, space: SearchSpace, step: int, steps: int, seed: int, history: History) -> tuple[Subnet, ...]:
        draw = generator(seed, step)
        bins = Bins.of(space)
        (number,) = draw.choices(range(bins.count), shifted(bins.visits(history)))
        return (bins.subnet(draw, space, number),)
