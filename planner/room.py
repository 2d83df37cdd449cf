"""How much context the limits of memory have room for, beside a subnet's weights."""

from __future__ import annotations

from dataclasses import replace

from planner.bands import bands
from planner.costs import Costs
from planner.frame import Framed
from planner.limits import MEMORY
from planner.plan import ContextRoom
from planner.request import Budget
from supernet.space import Subnet


def context_room(framed: Framed, subnet: Subnet) -> ContextRoom:
    """The longest contexts within the limits of memory: beside `subnet`, and beside the one that takes least."""
    limits, memory = framed.limits, framed.problem.resources[0]
    least = memory.smallest(framed.problem.space)
    return ContextRoom(
        planned=longest_context(framed.costs, subnet, limits), smallest=longest_context(framed.costs, least, limits)
    )


def longest_context(costs: Costs, subnet: Subnet, limits: Budget) -> int:
    """Tokens of the longest context that `subnet` serves within the limits of memory, their bands included, at most
    what the model was made for; all else as in the workload of `costs`. 0 where none fits."""
    fits, beyond = 0, costs.spec.max_context + 1
    shortest = costs.workload.prompt_tokens + 1
    while beyond - max(fits, shortest - 1) > 1:
        middle = (max(fits, shortest - 1) + beyond) // 2
        if _fits(costs, subnet, limits, middle):
            fits = middle
        else:
            beyond = middle
    return fits


def _fits(costs: Costs, subnet: Subnet, limits: Budget, context: int) -> bool:
    other = costs.serving(replace(costs.workload, context=context))
    found, over = other.memory(subnet), 1 + bands(costs.device, costs.runtime.name)[MEMORY]
    host = limits.host_memory_bytes
    return found.total_bytes * over <= limits.memory_bytes and (host is None or found.host_bytes * over <= host)
