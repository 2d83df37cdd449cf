"""The front of a plan that was measured: loss, peak memory and time per token, none of which costs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from planner.frame import Framed
from planner.limits import TPOT
from planner.plan import Compared, Plan, Point
from planner.propose import Proposed
from planner.quality import Measured, Quality
from planner.search.base import Candidate, Problem, Resource
from planner.search.fronts import undominated
from supernet.space import SearchSpace, Subnet


def with_aims(framed: Framed) -> Problem:
    """The problem with a limit of memory and one of time per token, which nothing passes where none was asked for."""
    problem = framed.problem
    if any(one.name == TPOT for one in problem.resources):
        return problem
    timed = framed.costs.resources(problem.space, replace(framed.limits, tpot_ms=float("inf")))
    (time,) = (replace(one, limit=_most(one, problem.space)) for one in timed if one.name == TPOT)
    return replace(problem, resources=(*problem.resources, time))


def _most(resource: Resource, space: SearchSpace) -> float:
    return resource.constant + sum(max(resource.table[unit].values()) for unit, _ in space)


def with_best(proposed: Proposed, qualities: Mapping[Subnet, Quality]) -> Proposed:
    """The finalists, and of the front what was measured to lose least."""
    known = [(kind, one) for kind, one in proposed.front if "kl" in qualities.get(one.subnet, {})]
    if not known:
        return proposed
    best = min(known, key=lambda one: qualities[one[1].subnet]["kl"])
    return proposed if best[1].subnet in proposed.subnets else replace(proposed, finalists=(best, *proposed.finalists))


def measured_front(
    framed: Framed, made: Plan, front: Sequence[tuple[str, Candidate]], qualities: Mapping[Subnet, Quality]
) -> tuple[Point, ...]:
    """Of a front's subnets and all that a plan compares, in the supernet's units, those that no other beats; the
    smallest first, and of equal memory the one that loses least."""
    found = {one.subnet: one for one in made.compared if one.measured}
    for kind, one in front:
        if one.subnet in qualities and one.subnet not in found:
            found[one.subnet] = framed.costs.compared(
                kind, one.source, one.subnet, one.loss, measured=cast(Measured, dict(qualities[one.subnet]))
            )
    kept = undominated({subnet: (one.kl, one.memory_bytes, one.tpot_ms) for subnet, one in found.items()})
    return tuple(sorted((_point(found[subnet]) for subnet in kept), key=lambda one: (one.memory_bytes, one.kl)))


def _point(one: Compared) -> Point:
    return Point(one.memory_bytes, one.kl, True, one.tpot_ms, one.mean_bits, one.source)
