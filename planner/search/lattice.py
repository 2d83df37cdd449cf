"""Optuna's sampler of the subnets that a measured front lacks most.

The exact program knows for any limits the subnet whose sum of sensitivities is least, so a front is sought among
limits and not among subnets: a lattice of them, from the least of each aim to what the best subnet takes. At each point
stands what was measured best within it, and what is expected of the solution there: its sum, times what sums as large
were measured to be off by. A solution serves all points that it lies within, and what it is expected to win over them,
in the logarithm of the loss, is the hypervolume that the front gains. The largest gain is measured next. Where nothing
is left to be won, the lattice is made finer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray
from optuna import Study

from planner.search.base import Problem, Resource
from planner.search.fronts import LEAST
from planner.search.program import bound, solve
from planner.search.study import Landscape
from planner.search.waiting import TOGETHER, WaitingSampler
from supernet.space import Subnet

SIDE, LEAST_SIDE = 9, 3
"""Limits of each aim at first, fewer where there may not be as many points."""
DOUBT = 0.1
"""Of the logarithm of a loss: as much better than expected it may come out."""
ABOVE = 1e-9
"""Of the least that an aim can be: a limit is so much more, for a sum in another order has another last digit."""

Floats = NDArray[np.float64]


class LatticeSampler(WaitingSampler):
    """`aims` are resources of the problem. Subnets that it shall begin with are `first`. No lattice has more `points`
    than so many."""

    def __init__(
        self, problem: Problem, landscape: Landscape, name: str, aims: Sequence[Resource], first: Sequence[Subnet],
        points: int, worker: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(problem, landscape, name, worker)
        self.aims, self.points = tuple(aims), points
        self.first = [subnet for subnet in first if problem.feasible(subnet)]
        self.lattice: Lattice | None = None

    def more(self, study: Study, measured: Mapping[Subnet, float], known: Collection[Subnet]) -> list[Subnet]:
        waiting = [subnet for subnet in dict.fromkeys(self.first) if subnet not in known]
        if waiting:
            return waiting[:TOGETHER]
        losses = {subnet: loss for subnet, loss in measured.items() if self.problem.feasible(subnet)}
        self.lattice = self.lattice or Lattice.of(self.problem, self.aims, _side(self.points, len(self.aims)))
        while self.lattice is not None:
            found = self.lattice.most_wanted(losses, known, TOGETHER)
            if found:
                return found
            finer = self.lattice.finer(self.points)
            if finer is None:
                break
            self.lattice = finer
        return []


def _side(points: int, aims: int) -> int:
    """Of the first lattice."""
    side = SIDE
    while side > LEAST_SIDE and side**aims > points:
        side = (side + 1) // 2
    return side


@dataclass
class Lattice:
    """Limits of each aim, a `side` of them in `levels`; points are all combinations.

    `expected` is the logarithm of the sum at each, of choices taken in part (`bound`), infinite where nothing keeps the
    limits.
    """

    problem: Problem
    aims: tuple[Resource, ...]
    ranges: tuple[_Range, ...]
    side: int
    solved: dict[tuple[int, ...], Subnet | None] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem, aims: tuple[Resource, ...], side: int) -> Lattice | None:
        """None where nothing keeps the limits."""
        best = solve(problem.space, problem.loss, problem.resources)
        if best is None:
            return None
        ends = [_end(problem, aim) for aim in aims]
        ranges = tuple(
            _Range(aim.amount(end), aim.amount(best.subnet), max(aim.amount(one) for one in (*ends, best.subnet)))
            for aim, end in zip(aims, ends, strict=True)
        )
        return cls(problem, aims, ranges, side)

    def finer(self, points: int) -> Lattice | None:
        """Twice as fine; None where that is more than so many points."""
        side = 2 * self.side - 1
        if side ** len(self.aims) > points:
            return None
        solved = {tuple(2 * k for k in at): subnet for at, subnet in self.solved.items()}
        return Lattice(self.problem, self.aims, self.ranges, side, solved)

    @cached_property
    def levels(self) -> list[Floats]:
        return [one.levels(self.side) for one in self.ranges]

    @cached_property
    def expected(self) -> Floats:
        sums = np.full((self.side,) * len(self.aims), np.inf)
        for at in self._points():
            least = bound(self._within(at))
            if least is not None:
                sums[at] = _logarithm(least)
        return sums

    def most_wanted(self, losses: Mapping[Subnet, float], known: Collection[Subnet], count: int) -> list[Subnet]:
        """Up to `count` solutions that are not `known`, each at the point where most is expected to be won while those
        before it come out as expected; none where nothing is to be won anywhere."""
        expected = self.expected + self._off(losses)
        best = self._best(losses, expected)
        found: list[Subnet] = []
        gains = {at: self._gain(best, at, expected[at]) for at in self._points()}
        while gains and len(found) < count:
            at = max(gains, key=gains.__getitem__)
            if gains[at] <= 0:
                break
            subnet = self._solution(at)
            if subnet is not None and subnet not in known and subnet not in found:
                found.append(subnet)
                self._improve(best, subnet, float(expected[at]))
                gains = {one: self._gain(best, one, expected[one]) for one in gains}
            del gains[at]
        return found

    def _points(self) -> Iterator[tuple[int, ...]]:
        return product(range(self.side), repeat=len(self.aims))

    def _within(self, at: tuple[int, ...]) -> Problem:
        """The problem within the limits of a point."""
        limits = {aim.name: float(levels[k]) for aim, levels, k in zip(self.aims, self.levels, at, strict=True)}
        return _limited(self.problem, limits)

    def _solution(self, at: tuple[int, ...]) -> Subnet | None:
        if at not in self.solved:
            problem = self._within(at)
            found = solve(problem.space, problem.loss, problem.resources)
            self.solved[at] = None if found is None else found.subnet
        return self.solved[at]

    def _off(self, losses: Mapping[Subnet, float]) -> Floats:
        """What is to be added to `expected`: what sums as large were measured to be off by, in logarithms."""
        known = sorted((_logarithm(self.problem.additive(subnet)), _logarithm(loss)) for subnet, loss in losses.items())
        sums, found = np.array(known).reshape(-1, 2).T
        return np.interp(self.expected, sums, found - sums) if known else np.zeros_like(self.expected)

    def _best(self, losses: Mapping[Subnet, float], expected: Floats) -> Floats:
        """At each point the logarithm of the least loss within its limits; where nothing is, e times the most."""
        logarithms = {subnet: _logarithm(loss) for subnet, loss in losses.items()}
        most = max(*logarithms.values(), *expected[np.isfinite(expected)])
        best = np.full_like(expected, most + 1)
        for subnet, logarithm in logarithms.items():
            self._improve(best, subnet, logarithm)
        return best

    def _improve(self, best: Floats, subnet: Subnet, logarithm: float) -> None:
        """What is best where `subnet` comes to so much."""
        amounts = (aim.amount(subnet) for aim in self.aims)
        first = [int(np.searchsorted(levels, one)) for levels, one in zip(self.levels, amounts, strict=True)]
        part = best[tuple(slice(k, None) for k in first)]
        np.minimum(part, logarithm, out=part)

    def _gain(self, best: Floats, at: tuple[int, ...], logarithm: float) -> float:
        """What may be won over all points that a solution at one lies within, if it is expected to come to so much."""
        return float(np.maximum(best[tuple(slice(k, None) for k in at)] - logarithm + DOUBT, 0).sum())


@dataclass(frozen=True)
class _Range:
    """Of an aim: the least, what the subnet that loses least takes, and the `most` that one takes where another aim is
    least, which may be more: few bits can be slow."""

    least: float
    best: float
    most: float

    def levels(self, side: int) -> Floats:
        """Limits, half of them up to what is best, where there is more beyond."""
        half = (side + 1) // 2
        parts = [np.linspace(self.least, self.best, half), np.linspace(self.best, self.most, half)[1:]]
        whole = self.best <= self.least or self.most <= self.best
        return (np.linspace(self.least, self.most, side) if whole else np.concatenate(parts)) * (1 + ABOVE)


def _end(problem: Problem, aim: Resource) -> Subnet:
    """What loses least of all that take least of an aim within the limits."""
    least = solve(problem.space, aim.table, problem.resources)
    assert least is not None  # something keeps the limits
    within = _limited(problem, {aim.name: aim.amount(least.subnet) * (1 + ABOVE)})
    found = solve(problem.space, problem.loss, within.resources)
    return (found or least).subnet


def _limited(problem: Problem, limits: Mapping[str, float]) -> Problem:
    """With some limits less than they are."""
    resources = (replace(one, limit=min(one.limit, limits.get(one.name, one.limit))) for one in problem.resources)
    return replace(problem, resources=tuple(resources))


def _logarithm(loss: float) -> float:
    return math.log(max(loss, LEAST))
