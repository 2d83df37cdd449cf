"""How many layers are on a GPU: each number is a problem of its own, and the exact program solves those that matter.

Which unit is in which memory depends on the number, so it is no option beside the weights. Mixing choices gives every
number a bound of what it loses, and only numbers whose bound is below what was found are solved. Of numbers that lose
the same the largest is taken: a GPU reads faster than its host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from planner.search.base import Problem
from planner.search.program import bound, solve

ALIKE_KL = 0.00005
"""Nats a token; what differs by less loses the same."""


def best_placement(problems: Sequence[Problem], most: float | None = None) -> int:
    """The place of the best of problems that are in ascending numbers of layers on the GPU: the one that loses least;
    where the loss is limited to `most`, the last that keeps it. Where none has a solution the one that lacks least."""
    bounds = [bound(problem) for problem in problems]
    losses: dict[int, float] = {}

    def loss(place: int) -> float:
        if place not in losses:
            problem = problems[place]
            found = solve(problem.space, problem.loss, problem.resources, problem.decisions)
            losses[place] = math.inf if found is None else found.loss(problem)
        return losses[place]

    if most is None:
        most = ALIKE_KL + _least(bounds, loss)
    for place in reversed(range(len(problems))):
        least = bounds[place]
        if least is not None and least <= most and loss(place) <= most:
            return place
    able = [place for place, found in losses.items() if found < math.inf]
    return min(able, key=losses.__getitem__) if able else min(range(len(problems)), key=lambda at: _lack(problems[at]))


def _least(bounds: Sequence[float | None], loss: Callable[[int], float]) -> float:
    """The least of all losses: those with a bound below it are all looked at, in the order of their bounds."""
    found = math.inf
    for least, place in sorted((one, -place) for place, one in enumerate(bounds) if one is not None):
        if least >= found:
            break
        found = min(found, loss(-place))
    return found


def _lack(problem: Problem) -> float:
    """The least that a problem's limits would have to grow by, as a share of the one that has to grow most."""
    least = (resource.least(problem.space) / resource.limit for resource in problem.resources)
    return max(least)
