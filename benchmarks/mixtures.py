"""Subnets of an average of code bits: what rivals' layers and a supernet's are both offered, and which is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from planner.search.base import Problem, Resource
from planner.search.depth import around, split
from planner.search.program import solve
from supernet.build import Supernet
from supernet.evaluate import Reference, evaluate
from supernet.sensitivity import Table
from supernet.space import SearchSpace, Subnet
from supernet.spec import ModelSpec

AVERAGES = tuple(2.25 + 0.25 * step for step in range(8))


def code_bits(spec: ModelSpec, space: SearchSpace, average: float) -> Resource:
    """At most `average` code bits a weight over the linears; tables are not part of it."""
    sizes = {
        unit.name: {c: 0 if unit.is_table else unit.weights * c.bits // 8 for c in space[unit.name]}
        for unit in spec.units
    }
    return Resource("codes", "bytes", spec.linear_weights * average / 8, 0, sizes)


def proposals(spec: ModelSpec, space: SearchSpace, losses: Table, average: float) -> list[Subnet]:
    """Subnets of at most `average` code bits a weight, tables at what the space leaves them: the exact solutions among
    all bit-widths and among the two around the average, those two split at a depth, and the uniform subnet below."""
    near = around(space.bits(spec), average)
    assert near is not None
    tables = {unit.name for unit in spec.units if unit.is_table}
    limit, nearest = code_bits(spec, space, average), space.restrict(lambda u, c: u in tables or c.bits in near)
    below = space.uniform(spec, near[0])
    solved = (solve(among, losses, (limit,)) for among in (space, nearest))
    solutions = [one.subnet for one in solved if one is not None]
    cut = split(Problem(space, losses, (limit,)), spec, *near, base=below)
    return [subnet for subnet in (*solutions, cut, below) if subnet is not None]


def line(uniform: Mapping[int, float], average: float) -> float:
    """The log-linear interpolation between what the uniform subnets around an average lose, by bits."""
    near = around(uniform.keys(), average)
    if near is None or near[0] == near[1]:
        return uniform.get(int(average), math.nan)
    share = (average - near[0]) / (near[1] - near[0])
    return math.exp((1 - share) * math.log(uniform[near[0]]) + share * math.log(uniform[near[1]]))


def best(supernet: Supernet, offered: Mapping[float, Sequence[Subnet]], held_out: Reference) -> dict[float, Subnet]:
    """Of what each average is offered, the subnet that loses least on held-out windows; each is measured once."""
    unique = list(dict.fromkeys(subnet for subnets in offered.values() for subnet in subnets))
    judged = dict(zip(unique, evaluate(supernet, unique, held_out), strict=True))
    return {average: min(subnets, key=lambda s: judged[s].kl) for average, subnets in offered.items()}
