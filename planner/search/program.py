"""The additive problem as a 0/1 program in HiGHS, one variable for each unit and choice, solved exactly."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.search.base import Problem, Resource, Table
from supernet.space import Choice, SearchSpace, Subnet

TIME_LIMIT_S = 1.8
"""Larger problems than were ever met are cut here and say so by their gap."""


def solve(space: SearchSpace, loss: Table, resources: Sequence[Resource]) -> tuple[Subnet | None, float | None]:
    """The subnet of least summed `loss` within every limit (None if there is none), and the gap to a proven bound."""
    refused: list[Subnet] = []
    while True:
        subnet, gap = _milp(space, loss, resources, refused)
        if subnet is None or all(r.amount(subnet) <= r.limit for r in resources):
            return subnet, gap
        refused.append(subnet)  # HiGHS takes a row as kept within 1e-6; a limit is never passed, not even by that


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
        subnet, _ = solve(problem.space, resource.table, others)
        if subnet is not None:
            enough.append(Shortfall(resource, resource.amount(subnet), alone=False))
    if enough:
        return tuple(enough)
    least = [(resource, resource.least(problem.space)) for resource in problem.resources]
    return tuple(Shortfall(resource, amount, alone=True) for resource, amount in least if amount > resource.limit)


def _milp(
    space: SearchSpace, loss: Table, resources: Sequence[Resource], refused: Sequence[Subnet]
) -> tuple[Subnet | None, float | None]:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    columns = [(row, unit, choice) for row, (unit, choices) in enumerate(space) for choice in choices]
    rows = [row for row, _, _ in columns]
    one_choice_each = csr_array((np.ones(len(columns)), (rows, np.arange(len(columns)))))
    constraints = [LinearConstraint(one_choice_each, 1, 1)]
    for resource in resources:
        row, room = _increments(space, resource)
        if room < 0:
            return None, None
        constraints.append(LinearConstraint(row[None, :], -np.inf, room))
    agree = _agreement(space, [(unit, choice) for _, unit, choice in columns])
    if len(agree):
        constraints.append(LinearConstraint(csr_array(agree), 0, 0))
    for subnet in refused:
        same = np.array([subnet[unit] == choice for _, unit, choice in columns], float)
        constraints.append(LinearConstraint(same[None, :], -np.inf, len(subnet.items) - 1))
    with quiet():
        done = milp(
            np.array([loss[unit][choice] for _, unit, choice in columns]),
            constraints=constraints,
            bounds=Bounds(0, 1),
            integrality=np.ones(len(columns)),
            options={"mip_rel_gap": 0.0, "time_limit": TIME_LIMIT_S},
        )
    if done.x is None:
        return None, None
    chosen = {unit: choice for x, (_, unit, choice) in zip(done.x, columns, strict=True) if x > 0.5}
    return Subnet.of(chosen), _number(done.mip_gap)


def _agreement(space: SearchSpace, columns: Sequence[tuple[str, Choice]]) -> NDArray[np.float64]:
    """A row for every number of channels that coupled units may keep: as many of one keep it as of each other."""
    pairs = ((group[-1], other) for group in space.coupled for other in group[:-1])
    rows = [
        [((unit == a) - (unit == b)) * float(choice.kept == kept) for unit, choice in columns]
        for a, b in pairs
        for kept in sorted({choice.kept for choice in space[a] if choice.kept is not None})
    ]
    return np.array(rows)


def _increments(space: SearchSpace, resource: Resource) -> tuple[NDArray[np.float64], float]:
    """The resource as a row over the cheapest choice of each unit, and the room above all of those.

    Small coefficients keep the solver's tolerance below anything that counts: bytes become whole multiples of
    their greatest common divisor, everything else shares of the limit's room.
    """
    floor = {unit: min(resource.table[unit].values()) for unit, _ in space}
    extra = [resource.extra(resource.table[unit][choice], floor[unit]) for unit, choices in space for choice in choices]
    room = resource.room(sum(floor.values()))
    if resource.unit == "bytes":
        step = int(np.gcd.reduce(np.array(extra, np.int64))) or 1
        return np.array(extra) / step, float(np.floor(room / step))
    scale = max(extra) or 1.0
    return np.array(extra) / scale, room / scale


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
