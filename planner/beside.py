"""What stands beside a plan: uniform subnets, what the runtime's own tools make, a little more or less memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

from planner.frame import Framed
from planner.least import within_memory
from planner.limits import LOSS
from planner.plan import LARGER, OVER, STOCK, UNIFORM, UNMEASURED, WORSE, Compared, Notch, Plan, Point, Rejected
from planner.propose import Proposed, all_uniforms
from planner.quality import Measured, Quality
from planner.search.base import Candidate, Problem
from planner.search.program import solve
from supernet.space import Subnet

NOTCH = 0.10
"""Of the memory that a plan was limited to, up and down."""
POINTS = 14


def with_stock(framed: Framed, proposed: Proposed) -> Proposed:
    """The finalists, and with them what the runtime's own tools make, where the limits hold it."""
    problem, stock = framed.problem, stock_of(framed)
    if stock is None or not problem.feasible(stock[1]) or stock[1] in proposed.subnets:
        return proposed
    name, subnet = stock
    found = (STOCK, Candidate(subnet, problem.value(subnet), name))
    return replace(proposed, finalists=(*proposed.finalists, found))


def stock_of(framed: Framed) -> tuple[str, Subnet] | None:
    """The name of what the runtime's own tools make, and the subnet of the problem that has its types."""
    return framed.scenario.runtime.stock(framed.costs.spec, framed.problem.space)


def rejected(framed: Framed, made: Plan, qualities: Mapping[Subnet, Quality]) -> tuple[Rejected, ...]:
    """Each alternative with the reason why it is not the plan: a uniform subnet for each bit-width, the runtime's stock
    types, and every other finalist; with their measured `qualities` where there are."""
    known = {framed.tied(one.subnet): one for one in made.compared}
    rows: dict[Subnet, Rejected] = {}
    for kind, candidate in (*_uniforms(framed, known), *_stock(framed)):
        subnet = framed.apart(candidate.subnet)
        name = f"{candidate.source}{_tables(framed, candidate.subnet)}"
        if candidate.subnet in rows:  # the runtime's own types are uniform
            name = f"{rows[candidate.subnet].name} ({candidate.source})"
        one = framed.costs.compared(
            kind, name, subnet, candidate.loss, measured=cast(Measured, dict(qualities.get(subnet, {})))
        )
        rows[candidate.subnet] = _row(framed, made, one)
    for subnet, one in known.items():
        rows.setdefault(subnet, _row(framed, made, one))
    rows.pop(framed.tied(made.subnet), None)
    return tuple(rows.values())


def _tables(framed: Framed, subnet: Subnet) -> str:
    """The bits of the embedding and the head, where they are others than those that all linears have."""
    spec = framed.costs.spec
    widths = {subnet[unit.name].bits for unit in spec.units if not unit.is_table}
    tables = [(unit.role, subnet[unit.name].bits) for unit in spec.units if unit.is_table] if len(widths) == 1 else []
    return "".join(f", {role} of {bits}" for role, bits in tables if bits not in widths)


def _uniforms(framed: Framed, known: Mapping[Subnet, Compared]) -> Iterator[tuple[str, Candidate]]:
    """Of each bit-width the one that loses least within the limits; where none keeps them, the smallest."""
    problem, spec = framed.problem, framed.costs.spec
    by_bits: dict[str, list[Candidate]] = {}
    for subnet, source in all_uniforms(problem, spec):
        by_bits.setdefault(source, []).append(Candidate(subnet, problem.value(subnet), source))
    for candidates in by_bits.values():
        fitting = [one for one in candidates if problem.feasible(one.subnet)]
        if fitting:
            measured = [one for one in fitting if one.subnet in known]
            yield UNIFORM, min(measured or fitting, key=lambda one: one.loss)
        else:
            yield UNIFORM, min(candidates, key=lambda one: problem.resources[0].amount(one.subnet))


def _stock(framed: Framed) -> Iterator[tuple[str, Candidate]]:
    stock = stock_of(framed)
    if stock is not None:
        yield STOCK, Candidate(stock[1], framed.problem.value(stock[1]), stock[0])


def _row(framed: Framed, made: Plan, one: Compared) -> Rejected:
    over = _over(framed, one)
    if over:
        reason = OVER
    elif framed.limits.max_kl is None:
        reason = WORSE
    else:
        reason = LARGER if one.memory_bytes >= made.chosen.memory_bytes else UNMEASURED
    return Rejected(
        kind=one.kind, name=one.source, reason=reason, over=over, mean_bits=one.mean_bits,
        memory_bytes=one.memory_bytes, disk_bytes=one.disk_bytes, tpot_ms=one.tpot_ms, ttft_ms=one.ttft_ms,
        kl=one.kl, measured=bool(one.measured),
    )  # fmt: skip


def _over(framed: Framed, one: Compared) -> dict[str, float]:
    """By how much each limit is passed, bands included, in the limit's unit."""
    subnet, most = framed.tied(one.subnet), framed.limits.max_kl
    amounts = {each.name: each.amount(subnet) - each.limit for each in framed.problem.resources}
    if most is not None:
        amounts[LOSS] = one.kl - most
    return {name: amount for name, amount in amounts.items() if amount > 0}


def notches(framed: Framed, made: Plan) -> tuple[Notch, ...]:
    """What a tenth more memory would win and a tenth less would cost, as the sums of sensitivities predict."""
    memory = framed.problem.resources[0]
    limit = memory.limit if framed.limits.max_kl is None else memory.amount(framed.tied(made.subnet)) + 1
    here = _least(framed.problem, limit)
    if here is None:
        return ()
    found = []
    for share in (NOTCH, -NOTCH):
        there = _least(framed.problem, (1 + share) * limit)
        found.append(
            Notch(
                share=share,
                limit_bytes=int((1 + share) * limit),
                memory_bytes=None if there is None else framed.costs.memory(there).total_bytes,
                kl=None if there is None else framed.problem.additive(there),
                instead_of=framed.problem.additive(here),
            )
        )
    return tuple(found)


def front(framed: Framed) -> tuple[Point, ...]:
    """What is lost at least, by the sums of sensitivities, at limits of memory from the smallest subnet's to where more
    wins nothing; every other limit is kept."""
    problem = framed.problem
    memory, *others = problem.resources
    best = solve(problem.space, problem.loss, others)
    if best is None:
        return ()
    least, most = memory.least(problem.space), memory.amount(best.subnet)
    found: dict[int, Point] = {}
    for step in range(POINTS):
        subnet = _least(problem, least + 1 + step / (POINTS - 1) * (most - least))
        if subnet is not None:
            taken = framed.costs.memory(subnet).total_bytes
            found[taken] = Point(taken, problem.additive(subnet))
    return tuple(found[taken] for taken in sorted(found))


def _least(problem: Problem, memory_bytes: float) -> Subnet | None:
    """The subnet of the least sum within so much memory and the other limits."""
    found = solve(problem.space, problem.loss, within_memory(problem, memory_bytes).resources)
    return None if found is None else found.subnet
