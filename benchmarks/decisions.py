"""How long the exact program takes with every decision in it: each linear's bits, the tables' and the KV cache's type,
and how many layers are on a GPU.

    python benchmarks/decisions.py [--seeds 3] [--placed-seeds 1]

Llama 2's shapes of 7 B (32 layers) and 70 B (80 layers), each linear by itself as llama.cpp takes them, at 2, 3, 4, 5
and 8 bits; costs are llama.cpp's on a device of the catalogue, losses are drawn at random: `exp(-1.4 bits)` times a
scale of each linear that varies by a factor of e. Memory limits go from the smallest plan to the largest, with and
without limits on time per token and time to first token. Seconds are CPU time, and the limits of time are planning's
own: what is not proven by then says how much is left. A program that is too large for its time has to say so: the last
lines give it next to none.

Then the same models on a GPU and its host: every number of layers on the GPU is a program with all of that in it, and
with both memories; seconds are those of finding the best number of all, the bounds of each included (`planner.place`).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from claims import Claim, finish, table

from planner import place
from planner.costs import Costs
from planner.decide import options
from planner.limits import MEMORY, TPOT, TTFT
from planner.place import ALIKE_KL, best_placement
from planner.request import Budget, Workload
from planner.runtimes.base import HOST
from planner.runtimes.llamacpp.runtime import LlamaCpp
from planner.runtimes.shapes import Shape
from planner.search import program
from planner.search.base import Decision, Problem, Resource, Table
from profiles.catalog import load
from records.errors import SystemFailure
from supernet.space import Choice, SearchSpace
from supernet.spec import ModelSpec, UnitSpec

SHAPES = {
    "7B": (Shape("7B", 32, 4096, 11008, 32, 32, 128, 32000, tied=False), "desktop-ryzen-7950x-64gb", 2.0),
    "70B": (Shape("70B", 80, 8192, 28672, 64, 8, 128, 32000, tied=False), "epyc-9654-384gb", 10.0),
}
BITS, TABLE_BITS = (2, 3, 4, 5, 8), (4, 5, 8)
CACHE_LOSS = {"f16": 0.0, "q8_0": 0.002, "q4_0": 0.04}
CONTEXT = 8192
HOSTED = {"7B": ("rtx-4060-8gb", "desktop-ryzen-5600-16gb"), "70B": ("rtx-4090-24gb", "desktop-ryzen-7950x-64gb")}
FREE = Budget(10**15, 1e9, 1e9, host_memory_bytes=10**15)
PLACED_SHARES = (0.1, 0.5)
SHARES = (0.02, 0.1, 0.3, 0.5, 0.8)  # of what lies between the smallest and the largest plan


@dataclass(frozen=True)
class Placed:
    """`solved` of the `programs` were solved, the others ruled out by their bounds."""

    model: str
    share: float
    limits: str
    seed: int
    seconds: float
    programs: int
    solved: int
    unproven: int
    gpu_layers: int


@dataclass(frozen=True)
class Row:
    model: str
    share: float
    limits: str
    seed: int
    seconds: float
    gap: float | None
    proven: bool
    loss: float
    cache: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--placed-seeds", type=int, default=1, help="of the plans for a GPU and its host")
    given = parser.parse_args()
    rows: list[Row] = []
    claims: list[Claim] = []
    for name, (shape, device, target) in SHAPES.items():
        spec = apart(shape.spec())
        priced = [costs(spec, device, cache) for cache in CACHE_LOSS]
        for seed in range(given.seeds):
            rows += solved(name, priced, seed)
        mine = [row for row in rows if row.model == name]
        units = len(spec.units)
        claims.append(Claim(f"{name}, {units} units: seconds of the slowest of {len(mine)} programs",
                            max(row.seconds for row in mine), target))  # fmt: skip
        claims.append(Claim(f"{name}: programs without a proven optimum", sum(not row.proven for row in mine), 0))
    table(
        ("model", "share", "limits", "seed", "s", "gap", "KV cache"),
        [(r.model, r.share, r.limits, r.seed, f"{r.seconds:.2f}", r.gap, r.cache) for r in rows],
    )
    on_gpus: list[Placed] = []
    for name, (shape, _, target) in SHAPES.items():
        on_gpus += placed(name, apart(shape.spec()), given.placed_seeds)
        of = [row for row in on_gpus if row.model == name]
        slowest = max(row.seconds for row in of)
        claims.append(
            Claim(f"{name} on a GPU and its host: seconds of the slowest of {len(of)} plans", slowest, target)
        )
        claims.append(Claim(f"{name} on both: programs without a proven optimum", sum(row.unproven for row in of), 0))
    table(
        ("model", "share", "limits", "seed", "s", "programs", "solved", "layers on the GPU"),
        [(r.model, r.share, r.limits, r.seed, f"{r.seconds:.2f}", r.programs, r.solved, r.gpu_layers) for r in on_gpus],
    )
    left = max(row.gap * row.loss if row.gap is not None else math.inf for row in rows)
    claims.append(Claim("most that is left to prove of any program, nats", left, ALIKE_KL))
    claims.append(Claim("programs without time that were read as infeasible", float(misread(priced)), 0.0))
    finish(__file__, claims, rows=[asdict(row) for row in rows], placed=[asdict(row) for row in on_gpus])


def apart(spec: ModelSpec) -> ModelSpec:
    """Each linear a unit of its own."""
    units = []
    for unit in spec.units:
        for linear in unit.linears:
            role = unit.role if len(unit.linears) == 1 else linear.name.rpartition(".")[2]
            units.append(UnitSpec(linear.name, role, unit.layer, (linear,)))
    return replace(spec, units=tuple(units))


def costs(spec: ModelSpec, device: str, cache: str) -> Costs:
    return Costs(LlamaCpp(), spec, Workload(CONTEXT, kv_cache=cache), load(device), rest_bytes=0)


def space_of(spec: ModelSpec, seed: int) -> tuple[SearchSpace, dict[str, dict[Choice, float]]]:
    """The choices, and what each loses."""
    random = np.random.default_rng(seed)
    space = SearchSpace.of(
        {u.name: tuple(Choice(b, 32, "sym") for b in (TABLE_BITS if u.is_table else BITS)) for u in spec.units}
    )
    loss = {}
    for unit, choices in space:
        scale = 2.0 / len(spec.units) * random.lognormal(0, 1)
        loss[unit] = {c: scale * np.exp(-1.4 * (c.bits - 2)) * random.lognormal(0, 0.1) for c in choices}
    return space, loss


def problem(priced: Sequence[Costs], share: float, times: bool, seed: int) -> Problem:
    spec, (space, loss) = priced[0].spec, space_of(priced[0].spec, seed)
    free = Budget(10**15, 1e9, 1e9)
    wide = priced[0].resources(space, free)
    least = {one.name: one.least(space) for one in priced[-1].resources(space, free)}
    most = {one.name: one.amount(space.uniform(spec, max(BITS))) for one in wide}
    middle = {name: least[name] + share * (most[name] - least[name]) for name in least}
    limits = Budget(round(middle[MEMORY]), *((middle[TPOT], 1.2 * middle[TTFT]) if times else ()))
    return joined(space, loss, [one.resources(space, limits) for one in priced])


def joined(space: SearchSpace, loss: Table, resources: Sequence[tuple[Resource, ...]]) -> Problem:
    """With the resources of each type of cache."""
    losses = list(CACHE_LOSS.values())
    decision = Decision("kv-cache", options(list(CACHE_LOSS), losses, resources))
    return Problem(space, loss, resources[0], decisions=(decision,))


def solved(name: str, priced: Sequence[Costs], seed: int) -> Iterator[Row]:
    for times in (False, True):
        for share in SHARES:
            one = problem(priced, share, times, seed)
            started = time.process_time()  # of this one thread: the machine may be in use
            found = program.solve(one.space, one.loss, one.resources, one.decisions)
            seconds = time.process_time() - started
            limits = "memory, times" if times else "memory"
            assert found is not None
            row = Row(
                name, share, limits, seed, seconds, found.gap, found.proven, found.loss(one), found.options[0].name
            )
            print(row, flush=True)
            yield row


def placed(name: str, spec: ModelSpec, seeds: int) -> Iterator[Placed]:
    """With all of the GPU's memory, and of the host's what lies between the least and the most that is left for it."""
    gpu, host = (load(one) for one in HOSTED[name])
    device, runtime = replace(gpu, host=host), LlamaCpp()
    numbers, space = runtime.placements(spec, device), space_of(spec, 0)[0]
    wide = [
        [
            Costs(runtime, spec, Workload(CONTEXT, kv_cache=cache, gpu_layers=number), device, 0).resources(space, FREE)
            for cache in CACHE_LOSS
        ]
        for number in numbers
    ]
    some = wide[len(wide) // 3]
    least = {one.name: one.least(space) for one in some[-1]}
    most = {one.name: one.amount(space.uniform(spec, max(BITS))) for one in some[0]}
    for seed in range(seeds):
        loss = space_of(spec, seed)[1]
        for times in (False, True):
            for share in PLACED_SHARES:
                limits = {one: least[one] + share * (most[one] - least[one]) for one in least}
                limits |= {MEMORY: device.usable_bytes, HOST: round(limits[HOST]), TTFT: 1.2 * limits[TTFT]}
                kept = limits if times else {one: limits[one] for one in (MEMORY, HOST)}
                problems = [joined(space, loss, [limited(one, kept) for one in each]) for each in wide]
                with counted() as solutions:
                    started = time.process_time()
                    taken = best_placement(problems)
                    seconds = time.process_time() - started
                unproven = sum(one is not None and not one.proven for one in solutions)
                said = "memories, times" if times else "memories"
                row = Placed(name, share, said, seed, seconds, len(problems), len(solutions), unproven, numbers[taken])
                print(row, flush=True)
                yield row


def limited(resources: Sequence[Resource], limits: Mapping[str, float]) -> tuple[Resource, ...]:
    return tuple(replace(one, limit=limits[one.name]) for one in resources if one.name in limits)


@contextmanager
def counted() -> Iterator[list[program.Solution | None]]:
    """What is solved meanwhile."""
    found: list[program.Solution | None] = []

    def solve(*asked: Any) -> program.Solution | None:
        found.append(program.solve(*asked))
        return found[-1]

    place.solve = solve
    try:
        yield found
    finally:
        place.solve = program.solve


def misread(priced: Sequence[Costs]) -> int:
    """Of programs with solutions and no time at all, how many were said to have none."""
    wrong, before = 0, (program.TIME_LIMIT_S, program.PATIENCE_S)
    program.TIME_LIMIT_S = program.PATIENCE_S = 1e-9
    try:
        for share in SHARES:
            one = problem(priced, share, True, 0)
            try:
                wrong += program.solve(one.space, one.loss, one.resources, one.decisions) is None
            except SystemFailure:
                continue
    finally:
        program.TIME_LIMIT_S, program.PATIENCE_S = before
    return wrong


if __name__ == "__main__":
    main()
