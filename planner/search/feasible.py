"""Random subnets within the limits, each as likely as any other.

Drawing every unit evenly and throwing away what does not fit finds nothing under a tight budget: of SmolLM2-135M's 120
units at 2, 3, 4 and 8 bits, one draw in 1,900 averages 3.5 bits or less, one in 1e9 averages 3, one in 2e22 averages
2.5. So draws are tilted towards what is cheap, `p(choice) ~ exp(-tilt * use)` unit by unit, and thinned so that the
tilt cancels: of draws that use the share u <= 1 of the room, `exp(-tilt * (1 - u))` are kept, and none of those with
u > 1. What is kept is even over the subnets within the limits, whatever the tilt. The tilt only decides how many are
kept; the one that keeps most minimises a convex function (Chernoff's bound), and its draws fill the room on average.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from planner.search.base import Problem
from supernet.space import Subnet

DRAWS = 4096
"""Drawn at once."""
PATIENCE = 16
"""Sampling ends when so many times in a row nothing new was kept: then there are hardly any more."""
NEVER = 2.0
"""The share of the room of an option that fits nowhere, and of none at all."""
STEEPEST = 1e4
"""No tilt is larger: it has no bound where limits can only be met one at a time."""
TOLERANCE = 1e-9

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
"""Subnets as `(subnets, blocks)`: the number of each block's option. A block is one unit, or some that must agree."""


@dataclass(frozen=True)
class Feasible:
    """The subnets of a problem's space that are within its limits.

    use: `(resources, blocks, options)`, shares of the room that a limit leaves above the cheapest options; odds:
    `(blocks, options)`, the tilted probabilities, 0 for an option that fits nowhere; tilt: `(resources,)`.
    """

    problem: Problem
    use: Floats = field(repr=False)
    odds: Floats = field(repr=False)
    tilt: Floats

    @classmethod
    def of(cls, problem: Problem) -> Feasible:
        use, fits = _shares(problem)
        tilt = _tilt(use, fits)
        return cls(problem, use, _odds(use, fits, tilt)[0], tilt)

    def sample(self, count: int, random: np.random.Generator, known: Collection[Subnet] = ()) -> list[Subnet]:
        """Up to `count` subnets, no two alike and none that is `known`; fewer where there are hardly any more."""
        fresh = (s for s in self._all(random) if s not in known and self.problem.feasible(s))
        return list(islice(fresh, count))

    def draw(self, count: int, random: np.random.Generator) -> Rows:
        """Subnets with the tilted probabilities; about half of them fit."""
        total = self.odds.cumsum(axis=1)
        drawn = random.random((count, len(total), 1)) >= total / total[:, -1:]
        return np.asarray(drawn.sum(axis=2))

    def used(self, rows: Rows) -> Floats:
        """`(resources, subnets)`, shares of the room."""
        return np.asarray(self.use[:, np.arange(rows.shape[1]), rows].sum(axis=2))

    def fit(self, rows: Rows) -> NDArray[np.bool_]:
        return np.asarray((self.used(rows) <= 1 + TOLERANCE).all(axis=0))

    def subnet(self, row: Rows) -> Subnet:
        return self.problem.space.at(row.tolist())

    def row(self, subnet: Subnet) -> Rows:
        blocks = self.problem.space.blocks
        return np.array([options.index(tuple(subnet[unit] for unit in units)) for units, options in blocks])

    def _all(self, random: np.random.Generator) -> Iterator[Subnet]:
        """Every subnet once, in random order, until next to none are left."""
        seen: set[bytes] = set()
        idle = 0 if self.odds.any(axis=1).all() else PATIENCE
        while idle < PATIENCE:
            before = len(seen)
            for row in self._even(random):
                if row.tobytes() not in seen:
                    seen.add(row.tobytes())
                    yield self.subnet(row)
            idle = 0 if len(seen) > before else idle + 1

    def _even(self, random: np.random.Generator) -> Rows:
        rows = self.draw(DRAWS, random)
        left = 1 - self.used(rows)
        chance = np.exp(-self.tilt @ np.maximum(left, 0))
        return rows[(left >= -TOLERANCE).all(axis=0) & (random.random(len(rows)) < chance)]


def _shares(problem: Problem) -> tuple[Floats, NDArray[np.bool_]]:
    """What each option uses of each room, and which options fit where every other block is at its cheapest."""
    blocks = problem.space.blocks
    width = max(len(options) for _, options in blocks)
    exists = np.array([[number < len(options) for number in range(width)] for _, options in blocks])
    use = np.full((len(problem.resources), *exists.shape), NEVER)
    for shares, resource in zip(use, problem.resources, strict=True):
        amounts = [[resource.together(units, option) for option in options] for units, options in blocks]
        floor = [min(row) for row in amounts]
        room = resource.room(sum(floor))
        for row, least, share in zip(amounts, floor, shares, strict=True):
            share[: len(row)] = [_share(resource.extra(amount, least), room) for amount in row]
    return use, exists & (use <= 1 + TOLERANCE).all(axis=0)


def _share(extra: float, room: float) -> float:
    if extra == 0 and room >= 0:
        return 0.0
    return extra / room if 0 < extra <= room * (1 + TOLERANCE) else NEVER


def _tilt(use: Floats, fits: NDArray[np.bool_]) -> Floats:
    """The tilt, one number a resource, that keeps most draws: the minimum of log(sum of all odds) + tilt."""
    from scipy.optimize import minimize

    start = np.zeros(len(use))
    if not fits.any(axis=1).all() or not len(use):
        return start

    def bound(tilt: Floats) -> tuple[float, Floats]:
        odds, log_sum = _odds(use, fits, tilt)
        return log_sum + tilt.sum(), 1 - (use * odds).sum(axis=(1, 2))

    limits = [(0.0, STEEPEST)] * len(use)
    return np.asarray(minimize(bound, start, jac=True, method="L-BFGS-B", bounds=limits).x)


def _odds(use: Floats, fits: NDArray[np.bool_], tilt: Floats) -> tuple[Floats, float]:
    """Tilted probabilities of each unit's choices, and the logarithm of what they were divided by, over all units."""
    from scipy.special import logsumexp

    if not fits.any(axis=1).all():
        return np.zeros(fits.shape), 0.0
    logits = np.where(fits, -np.tensordot(tilt, use, 1), -np.inf)
    total = logsumexp(logits, axis=1, keepdims=True)
    return np.exp(logits - total), float(total.sum())
