"""The exact program with memory for what shall be least and the loss for what is limited, and with other limits."""

from __future__ import annotations

from dataclasses import replace

from planner.limits import LOSS
from planner.search.base import Option, Problem, Resource
from planner.search.program import Solution, solve
from supernet.space import Subnet


def within_memory(problem: Problem, limit: float) -> Problem:
    """The problem with another limit of memory, the first of its resources."""
    memory, *others = problem.resources
    return replace(problem, resources=(replace(memory, limit=limit), *others))


def room_for(problem: Problem, amount: float) -> float:
    """A limit of memory that `amount` keeps, which is a sum that another order of adding may give with another last
    digit; no more than the problem's."""
    return min(problem.resources[0].limit, amount + 1)


def least_memory(problem: Problem, most: float) -> Subnet | None:
    """The subnet that takes least memory of those whose losses sum to `most` at most, within every limit, and of
    those that take as much the one that loses least. None where there is none."""
    smallest = smallest_solution(problem, most)
    if smallest is None:
        return None
    taken = problem.resources[0].amount(smallest.subnet)
    best = solve(problem.space, problem.loss, within_memory(problem, room_for(problem, taken)).resources)
    found = [one.subnet for one in (smallest, best) if one is not None]
    return min(found, key=problem.additive)  # where time ran out, the second may lose more than the first


def smallest_solution(problem: Problem, most: float) -> Solution | None:
    """What takes least memory of all whose losses sum to `most` at most, those of decisions among them."""
    memory, *others = problem.resources
    loss = Resource(LOSS, "nats", most, 0.0, problem.loss)
    lean = tuple(
        replace(decision, options=tuple(_lean(option, memory.name) for option in decision.options))
        for decision in problem.decisions
    )
    return solve(problem.space, memory.table, (memory, *others, loss), lean)


def _lean(option: Option, memory: str) -> Option:
    return Option(option.name, option.takes.get(memory, 0.0), {**option.takes, LOSS: option.loss})
