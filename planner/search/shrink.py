"""The search of LLM-QFA (arXiv 2405.20202, its section on searching): random subnets, a smaller space, more of them.

100 random subnets are evaluated, their loss is correlated with the bits of each unit, the space is shrunk by that, 50
subnets of what is left are evaluated, and the best within the limits is kept. How subnets are drawn, which correlation
it is and how it shrinks the space is not said. Here:

- Subnets are drawn evenly from those within the limits (planner.search.feasible), and none is evaluated twice.
- The correlation is Spearman's: few subnets lose very much, and ranks do not mind.
- A unit keeps the upper half of its bit-widths where more bits go with less loss, and the lower half where they go
  with more: under a limit one unit's bits are taken from others, and these serve better elsewhere. An odd middle is in
  both halves.
- Units are narrowed in the order of their correlation, strongest first. An upper half takes room from every subnet:
  all of them together may take `SPENT` of the room above the cheapest choices, so that there is still a choice; a unit
  whose upper half no longer fits keeps everything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from planner.search.base import Candidate, Found, Problem, Resource, Search, ranked
from planner.search.feasible import Feasible
from supernet.space import Choice, SearchSpace, Subnet

SPENT = 0.75


@dataclass(frozen=True)
class ShrinkSearch(Search):
    """Evaluates `first` subnets of the space, `then` subnets of the shrunk space, and every start."""

    name = "shrink"
    first: int = 100
    then: int = 50

    def search(self, problem: Problem, starts: Sequence[Candidate] = (), seed: int = 0) -> Found:
        started = time.perf_counter()
        value = cache(problem.value)
        random = np.random.default_rng(seed)
        first = Feasible.of(problem).sample(self.first, random)
        space = shrunk(problem, correlations(problem.space, first, [value(subnet) for subnet in first]))
        then = Feasible.of(replace(problem, space=space)).sample(self.then, random, known=set(first))
        proposals = [(start.subnet, start.source) for start in starts]
        proposals += [(subnet, self.name) for subnet in (*first, *then)]
        found = ranked(replace(problem, objective=value), proposals)
        trace = {
            "solver": "LLM-QFA shrinking",
            "evaluations": value.cache_info().currsize,
            "narrowed": sum(len(space[unit]) < len(choices) for unit, choices in problem.space),
            "seed": seed,
            "seconds": round(time.perf_counter() - started, 3),
        }
        return Found(found, trace)


def correlations(space: SearchSpace, subnets: Sequence[Subnet], losses: Sequence[float]) -> dict[str, float]:
    """Spearman's rank correlation of the loss with each unit's bits; 0 where one of the two never changes."""
    from scipy.stats import rankdata

    if not subnets:
        return dict.fromkeys(space.by_unit, 0.0)
    bits = [[subnet[unit].bits for unit, _ in space] for subnet in subnets]
    ranks = rankdata(np.column_stack([losses, bits]), axis=0)
    ranks -= ranks.mean(axis=0)
    lengths = np.sqrt((ranks**2).sum(axis=0))
    ranks /= np.where(lengths > 0, lengths, 1)
    return dict(zip(space.by_unit, (ranks[:, 0] @ ranks[:, 1:]).tolist(), strict=True))


def shrunk(problem: Problem, correlation: Mapping[str, float]) -> SearchSpace:
    """The space with every unit at its better half, strongest correlation first, as far as the room allows."""
    options, resources = dict(problem.space), problem.resources
    floors = [sum(_least(r, unit, choices) for unit, choices in problem.space) for r in resources]
    left = [SPENT * (r.limit - r.constant - floor) for r, floor in zip(resources, floors, strict=True)]
    for unit in sorted(options, key=lambda unit: -abs(correlation[unit])):
        half = better_half(options[unit], correlation[unit])
        more = [_least(r, unit, half) - _least(r, unit, options[unit]) for r in resources]
        if all(extra <= room for extra, room in zip(more, left, strict=True)):
            options[unit] = half
            left = [room - extra for extra, room in zip(more, left, strict=True)]
    return problem.space.restrict(lambda unit, choice: choice in options[unit])


def better_half(choices: Sequence[Choice], correlation: float) -> tuple[Choice, ...]:
    """The choices at the upper half of the bit-widths where loss falls with bits, at the lower half where it rises.

    A block that is left out has no bits, and stays a choice.
    """
    widths = sorted({choice.bits for choice in choices})
    half = (len(widths) + 1) // 2
    kept = widths[-half:] if correlation < 0 else widths[:half] if correlation > 0 else widths
    return tuple(choice for choice in choices if choice.bits in kept or choice.kept == 0)


def _least(resource: Resource, unit: str, choices: Sequence[Choice]) -> float:
    return min(resource.table[unit][choice] for choice in choices)
