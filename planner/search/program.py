"""The additive problem as a 0/1 program in HiGHS, solved exactly: a variable for each choice of a unit, and for each
option of what else is decided."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.search.base import SAME, Decision, Option, Problem, Resource, Table
from records.errors import SystemFailure
from supernet.space import Choice, SearchSpace, Subnet

TIME_LIMIT_S = 1.8
"""What takes longer, for as many units as USUAL or fewer, is cut here and says so by its gap."""
USUAL = 240
"""Units of a model of 7 B, give or take; those with more have more time, by the square."""
PATIENCE_S = 20.0
"""Where that was too short for any subnet, so long is looked for one, whatever it loses."""
MOST_STEPS = 2**17
"""Whole coefficients up to this are told apart by HiGHS, which takes a row as kept within 1e-6."""
OPTIMAL, INFEASIBLE = 0, 2  # as scipy says it


@dataclass(frozen=True)
class Solution:
    """What loses least: a choice for every unit, and an option for every decision. `gap` is what a proven bound leaves,
    as a share; None where time ran out before there was a bound. `proven` where nothing loses less by what HiGHS tells
    apart, 1e-6."""

    subnet: Subnet
    options: tuple[Option, ...]
    gap: float | None
    proven: bool

    def amount(self, resource: Resource) -> float:
        return resource.amount(self.subnet) + sum(option.takes.get(resource.name, 0.0) for option in self.options)

    def loss(self, problem: Problem) -> float:
        """What is lost in sum by all that was decided."""
        return float(problem.additive(self.subnet) + sum(option.loss for option in self.options))


def solve(
    space: SearchSpace, loss: Table, resources: Sequence[Resource], decisions: Sequence[Decision] = ()
) -> Solution | None:
    """What loses least in sum within every limit; None where it is proven that nothing is. SystemFailure where time ran
    out before either was known."""
    refused: list[Solution] = []
    while True:
        found = _milp(space, loss, resources, decisions, refused)
        if found is None or all(found.amount(resource) <= resource.limit for resource in resources):
            return found
        refused.append(found)  # HiGHS takes a row as kept within 1e-6; a limit is never passed, not even by that


@dataclass(frozen=True)
class Shortfall:
    """A limit that nothing meets, and the least that would do: with every other limit kept, or `alone`."""

    resource: Resource
    smallest: float
    alone: bool


def shortfalls(problem: Problem) -> tuple[Shortfall, ...]:
    """Which limits of a problem without a solution are too small, and by how much.

    Each one returned would be enough to raise, where one is enough. Where raising no single limit helps, those that
    fail even by themselves are returned as `alone`, and all of them have to be raised.
    """
    enough = []
    for resource in problem.resources:
        others = [other for other in problem.resources if other is not resource]
        lean = [
            replace(decision, options=tuple(replace(o, loss=o.takes.get(resource.name, 0.0)) for o in decision.options))
            for decision in problem.decisions
        ]
        found = solve(problem.space, resource.table, others, lean)
        if found is not None:
            enough.append(Shortfall(resource, found.amount(resource), alone=False))
    if enough:
        return tuple(enough)
    least = [
        (resource, resource.least(problem.space) + sum(_takes(one, resource).min() for one in problem.decisions))
        for resource in problem.resources
    ]
    return tuple(Shortfall(resource, amount, alone=True) for resource, amount in least if amount > resource.limit)


def bound(problem: Problem) -> float | None:
    """What nothing within the limits of a problem loses less than: the least where a unit may be of several choices in
    part. None where nothing keeps the limits even so, and so nothing does; a few milliseconds."""
    from scipy.optimize import Bounds, milp

    made = _rows(problem.space, problem.loss, problem.resources, problem.decisions, ())
    if made is None:
        return None
    with quiet():
        done = milp(made.costs, constraints=made.constraints, bounds=Bounds(0, 1), options={"time_limit": PATIENCE_S})
    if done.status == INFEASIBLE:
        return None
    return float(done.fun) if done.status == OPTIMAL else -math.inf


@dataclass(frozen=True)
class _Rows:
    """A problem as HiGHS is given it: a column for each choice of a unit, then for each option of a decision."""

    units: list[tuple[str, Choice]]
    options: list[Option]
    sizes: list[int]
    costs: NDArray[np.float64]
    constraints: list[Any]


def _milp(
    space: SearchSpace,
    loss: Table,
    resources: Sequence[Resource],
    decisions: Sequence[Decision],
    refused: Sequence[Solution],
) -> Solution | None:
    from scipy.optimize import Bounds, milp

    made = _rows(space, loss, resources, decisions, refused)
    if made is None:
        return None
    units, options, count = made.units, made.options, len(made.costs)
    time_limit = TIME_LIMIT_S * max(1.0, len(made.sizes) / USUAL) ** 2
    for seconds, wanted in ((time_limit, made.costs), (PATIENCE_S, np.zeros(count))):
        with quiet():
            done = milp(
                wanted,
                constraints=made.constraints,
                bounds=Bounds(0, 1),
                integrality=np.ones(count),
                options={"mip_rel_gap": 0.0, "time_limit": seconds},
            )
        if done.status == INFEASIBLE:
            return None
        if done.x is not None:
            subnet = Subnet.of({unit: choice for x, (unit, choice) in zip(done.x, units, strict=False) if x > 0.5})
            settled = (option for x, option in zip(done.x[len(units) :], options, strict=True) if x > 0.5)
            bounded = wanted is made.costs
            gap = _number(done.mip_gap) if bounded else None
            return Solution(subnet, tuple(settled), gap, bounded and done.status == OPTIMAL)
    raise SystemFailure(
        f"HiGHS found neither a subnet within the limits nor that there is none, in {PATIENCE_S:g} s; "
        "plan again where less runs, or raise a limit"
    )


def _rows(
    space: SearchSpace,
    loss: Table,
    resources: Sequence[Resource],
    decisions: Sequence[Decision],
    refused: Sequence[Solution],
) -> _Rows | None:
    """None where even what takes least of a resource passes its limit."""
    from scipy.optimize import LinearConstraint
    from scipy.sparse import csr_array

    units = [(unit, choice) for unit, choices in space for choice in choices]
    options = [option for decision in decisions for option in decision.options]
    sizes = [len(choices) for _, choices in space] + [len(decision.options) for decision in decisions]
    count = len(units) + len(options)
    one_each = csr_array((np.ones(count), (np.repeat(np.arange(len(sizes)), sizes), np.arange(count))))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for resource in resources:
        row, room = _increments(space, resource, decisions)
        if room < 0:
            return None
        constraints.append(LinearConstraint(row[None, :], -np.inf, room))
    agree = _agreement(space, units)
    if len(agree):
        constraints.append(LinearConstraint(csr_array(np.pad(agree, ((0, 0), (0, len(options))))), 0, 0))
    for one in refused:
        same = [one.subnet[unit] == choice for unit, choice in units] + [option in one.options for option in options]
        constraints.append(LinearConstraint(np.array(same, float)[None, :], -np.inf, len(sizes) - 1))
    costs = np.array([loss[unit][choice] for unit, choice in units] + [option.loss for option in options])
    return _Rows(units, options, sizes, costs, constraints)


def _agreement(space: SearchSpace, columns: Sequence[tuple[str, Choice]]) -> NDArray[np.float64]:
    """A row for every number of channels that coupled units may keep: as many of one keep it as of each other."""
    pairs = ((group[-1], other) for group in space.coupled for other in group[:-1])
    rows = [
        [((unit == a) - (unit == b)) * float(choice.kept == kept) for unit, choice in columns]
        for a, b in pairs
        for kept in sorted({choice.kept for choice in space[a] if choice.kept is not None})
    ]
    return np.array(rows)


def _increments(
    space: SearchSpace, resource: Resource, decisions: Sequence[Decision]
) -> tuple[NDArray[np.float64], float]:
    """The resource as a row over the cheapest choice of each unit and option of each decision, and the room above all
    of those: in whole multiples of what all choices take more, where there are few, else in shares of the largest.

    What HiGHS lets pass is much against what subnets differ by in shares of many bytes: it finds one after the other
    that is over the limit by next to nothing, and each has to be refused by itself.
    """
    amounts = [[resource.table[unit][choice] for choice in choices] for unit, choices in space]
    taken = [_takes(decision, resource).tolist() for decision in decisions]
    units = np.array([resource.extra(amount, min(each)) for each in amounts for amount in each])
    options = np.array([resource.extra(amount, min(each)) for each in taken for amount in each])
    room = resource.room(sum(min(each) for each in (*amounts, *taken)))
    step = None if len(decisions) > 1 else _step(units)
    if step is None:
        extra = np.concatenate([units, options])
        scale = extra.max() or 1.0
        return extra / scale, room / scale
    # An option leaves the units so many multiples, whatever it takes: a cache's bytes are no multiples of weights'.
    left = np.floor((room + SAME * abs(resource.limit) - (options if len(options) else np.zeros(1))) / step)
    return np.concatenate([np.rint(units / step), left.max() - left[: len(options)]]), float(left.max())


def _step(amounts: NDArray[np.float64]) -> float | None:
    """What all `amounts` are whole multiples of, to the last digits of a float; None where the largest is more than
    `MOST_STEPS` of it."""
    most, step = float(amounts.max()), 0.0
    for amount in np.unique(amounts):
        rest = float(amount)
        while rest > most / (2 * MOST_STEPS):
            step, rest = rest, math.fmod(step, rest)
    if step == 0 or most > MOST_STEPS * step or (abs(np.rint(amounts / step) * step - amounts) > 1e-9 * most).any():
        return None
    return step


def _takes(decision: Decision, resource: Resource) -> NDArray[np.float64]:
    return np.array([option.takes.get(resource.name, 0.0) for option in decision.options])


def _number(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


@contextmanager
def quiet() -> Iterator[None]:
    """HiGHS prints a line of its own from C now and then, which would spoil what a command prints as JSON."""
    libc = ctypes.CDLL(None if os.name == "posix" else "ucrtbase")
    sys.stdout.flush()
    libc.fflush(None)
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        libc.fflush(None)
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)
