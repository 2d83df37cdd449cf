"""Subnets by several amounts, all of which shall be little: those that no other beats, and a few that stand for all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from supernet.space import Subnet

Amounts = Mapping[Subnet, Sequence[float]]
"""The loss of each subnet, then what it takes."""
BEYOND = 0.1
"""Of what amounts differ by: so much further than the largest a front is worth something."""
LEAST = 1e-9
"""Nats; losses below count as much, where logarithms are."""
CELLS = 33
"""Of each amount; finer differences count for nothing where there are many subnets."""


def undominated(amounts: Amounts) -> list[Subnet]:
    """Those than which no other is as little in everything and less in something, least loss first; of equals one."""
    kept: list[Subnet] = []
    for subnet in sorted(amounts, key=lambda one: tuple(amounts[one])):  # none is beaten by one that comes later
        if not any(all(a <= b for a, b in zip(amounts[other], amounts[subnet], strict=True)) for other in kept):
            kept.append(subnet)
    return kept


def spread(amounts: Amounts, count: int) -> list[Subnet]:
    """Up to `count` of the undominated, without those that the front misses least: again and again the one goes that
    adds the least hypervolume, in the logarithm of the loss. What loses least stays."""
    kept = undominated(amounts)
    while len(kept) > count:
        kept.pop(1 + int(_own_volumes([amounts[one] for one in kept])[1:].argmin()))
    return kept


def _own_volumes(points: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """What each point alone adds to the volume that they dominate; of the others' limits no less than the largest."""
    losses = np.array([math.log(max(point[0], LEAST)) for point in points])
    axes = [_cells([point[axis] for point in points]) for axis in range(1, len(points[0]))]
    sizes = np.ones(())
    for _, widths in axes:
        sizes = np.multiply.outer(sizes, widths)
    at = np.full((len(points), *sizes.shape), losses.max() + 1)
    for number, point in enumerate(points):
        first = (int(np.searchsorted(levels, value)) for (levels, _), value in zip(axes, point[1:], strict=True))
        at[number][tuple(slice(k, None) for k in first)] = losses[number]
    second = np.partition(at, 1, axis=0)[1] if len(points) > 1 else np.full(sizes.shape, losses.max() + 1)
    return np.array([(np.maximum(second - one, 0) * sizes).sum() for one in at])


def _cells(values: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The distinct values, or `CELLS` of them, and how far it is from each to the next."""
    levels = np.unique(values)
    if len(levels) > CELLS:
        levels = np.quantile(levels, np.linspace(0, 1, CELLS))
    beyond = BEYOND * (levels[-1] - levels[0]) or 1.0
    return levels, np.diff(levels, append=levels[-1] + beyond)
