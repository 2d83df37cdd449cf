"""What is said of a budget that no subnet meets: which part of it, and the smallest that would do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from planner.amounts import per_second
from planner.limits import HOST_MEMORY, LIMITS, MEMORY, TPOT
from planner.request import Budget
from planner.search.base import Problem, Resource
from planner.search.program import Shortfall, shortfalls
from records.errors import BudgetError


def budget_error(
    problem: Problem, most: Budget, device: str, caches: Sequence[str] = (), spills: bool = False,
    gpus: int | None = None,
) -> BudgetError:  # fmt: skip
    """The error for a problem without a solution, planned for on `device`; `most` is its budget with all memory that
    there is, `caches` are types of KV cache with which it would have one. `spills`: whether a host could take layers
    of it; `gpus`: over how many it would have one."""
    short = shortfalls(problem)
    names = " and ".join(_limit(s.resource) for s in short)
    together = " together" if len(short) > 1 and not short[0].alone else ""
    needs = (" or " if together else " and ").join(_need(s) for s in short)
    flags = (" or " if together else " ").join(map(_raised, short))
    memory, host = (next((s for s in short if s.resource.name == name), None) for name in (MEMORY, HOST_MEMORY))
    if memory is not None and memory.smallest > most.memory_bytes:
        step = f"{device} has no more: free some, use a shorter --context or smaller --batch, or another --device"
    elif host is not None and host.smallest > (most.host_memory_bytes or math.inf):
        step = f"the machine of {device} has no more: free some, use a shorter --context, or name another --host"
    else:
        step = f"use {flags}"
    smallest = "the smallest plan" + ("" if most.max_kl is None else ", whatever it loses,")
    held = f" (--kv-cache {','.join(caches)} would keep the limits)" if caches else ""
    if gpus is not None:
        step += f", or divide it over --gpus {gpus}"
    if spills:
        step += f", or name the machine that {device} is in with --host: layers that do not fit stay there"
    return BudgetError(f"{names} cannot be met{together}, {smallest} needs {needs}{held}; {step}")


def loss_error(
    problem: Problem, budget: Budget, device: str, most: float, least: float, enough: float | None
) -> BudgetError:
    """The error where nothing within the limits of `problem` was found to lose `most` nats a token or less: the `least`
    that was, and the memory that would be `enough`; None where none of the device's would."""
    limits = " and ".join(_limit(resource) for resource in problem.resources)
    given = "" if budget.max_kl is None or budget.max_kl == most else f" (of {budget.max_kl:.4g})"
    step = f"--max-loss {_up(least + (budget.max_kl or most) - most)}"
    if enough is None:
        needs = f"no more memory of {device} would do"
    else:
        memory = readable("bytes", enough, math.ceil)
        needs = f"the smallest plan within it needs {memory} of memory"
        step = f"--mem {memory.replace(' ', '')} or {step}"
    said = f"a loss of {most:.4g}{given} cannot be met within {limits}"
    return BudgetError(f"{said}: the least found is {least:.4g}; {needs}; use {step}")


def _up(loss: float) -> str:
    """Three digits, the last one rounded up."""
    step = 10.0 ** (math.floor(math.log10(loss)) - 2)
    return f"{math.ceil(loss / step) * step:.3g}"


def readable(unit: str, value: float, whole: Callable[[float], int] = round) -> str:
    """`value` bytes or ms for a person, in four digits: `143.2 MB`, `5.61 ms`; `whole` rounds the last one."""
    scales = ((10**9, "GB"), (10**6, "MB"), (10**3, "KB"), (1, "B")) if unit == "bytes" else ((1, "ms"),)
    size, name = next((scale for scale in scales if value >= scale[0]), scales[-1])
    step = 10.0 ** (math.floor(math.log10(value / size)) - 3) if value > 0 else 1.0
    return f"{whole(value / size / step) * step:.4g} {name}"


def _limit(resource: Resource) -> str:
    """Rounded down as needs are rounded up, so that what is short by a byte does not read as enough."""
    limit = readable(resource.unit, resource.limit, lambda steps: math.floor(steps + 1e-6))
    return f"{LIMITS[resource.name].words} of {limit}{_rate(resource, resource.limit)}"


def _need(shortfall: Shortfall) -> str:
    resource, least = shortfall.resource, shortfall.smallest
    return f"{readable(resource.unit, least, math.ceil)} of {LIMITS[resource.name].words}{_rate(resource, least)}"


def _rate(resource: Resource, value: float) -> str:
    """A time per token is asked for as a rate, too."""
    return f" ({per_second(value)} tokens/s)" if resource.name == TPOT else ""


def _raised(shortfall: Shortfall) -> str:
    limit, value = LIMITS[shortfall.resource.name], readable(shortfall.resource.unit, shortfall.smallest, math.ceil)
    return limit.flag.format(value.replace(" ", ""))
