"""How much context a limit of memory has room for, beside a subnet's weights."""

from __future__ import annotations

from dataclasses import replace

from planner.bands import MEMORY, bands
from planner.costs import Costs, Estimates
from planner.frame import Framed
from planner.plan import ContextRoom
from supernet.space import Subnet


def context_room(framed: Framed, subnet: Subnet) -> ContextRoom:
    """The longest contexts within the limit of memory: beside `subnet`, and beside the one that takes least."""
    limit, memory = framed.limits.memory_bytes, framed.problem.resources[0]
    least = memory.smallest(framed.problem.space)
    return ContextRoom(
        planned=longest_context(framed.costs, subnet, limit), smallest=longest_context(framed.costs, least, limit)
    )


def longest_context(costs: Costs, subnet: Subnet, memory_bytes: float) -> int:
    """Tokens of the longest context that `subnet` serves within so much memory, its band included, at most what the
    model was made for; batch, prompt and KV cache as in the workload of `costs`. 0 where none fits."""
    fits, beyond = 0, costs.spec.max_context + 1
    shortest = costs.workload.prompt_tokens + 1
    while beyond - max(fits, shortest - 1) > 1:
        middle = (max(fits, shortest - 1) + beyond) // 2
        if _fits(costs, subnet, memory_bytes, middle):
            fits = middle
        else:
            beyond = middle
    return fits


def _fits(costs: Costs, subnet: Subnet, memory_bytes: float, context: int) -> bool:
    other = replace(costs, workload=replace(costs.workload, context=context), known=Estimates())
    band = bands(costs.device, costs.runtime.name)[MEMORY]
    return other.memory(subnet).total_bytes * (1 + band) <= memory_bytes
