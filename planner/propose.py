"""The second stage of planning: subnets within the limits that are worth measuring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Any

from planner.frame import Framed
from planner.plan import PLANNED, UNIFORM
from planner.search.base import Candidate, Found, Problem, Search, ranked
from planner.search.depth import around, split
from planner.search.exact import ExactSearch
from planner.search.front import FrontSearch
from planner.search.fronts import spread
from planner.search.optuna_search import OptunaSearch
from supernet.space import Subnet
from supernet.spec import ModelSpec

TRIALS = 100
TOP = 2
SHOWN = 16
"""Subnets of a front that are measured again on the texts that plans are chosen by."""
PROVEN = 1e-9
"""Of the loss: a gap that the order of a sum leaves."""
APART = 0.05
"""Finalists differ in at least this share of the units: closer ones cannot be told apart by measuring."""


@dataclass(frozen=True)
class Proposed:
    """Finalists, each planned or uniform, the one expected to be best in front, and how the searches went. No finalist
    where nothing keeps the limits. `front` is what a search of several objectives found, finalists or not."""

    finalists: tuple[tuple[str, Candidate], ...]
    traces: tuple[Mapping[str, Any], ...]
    front: tuple[tuple[str, Candidate], ...] = ()

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        return tuple(candidate.subnet for _, candidate in self.finalists)

    def apart(self, framed: Framed) -> Proposed:
        """The same with subnets in the supernet's units, in which those of all runtimes can be compared."""
        finalists, front = (
            tuple((kind, replace(one, subnet=framed.apart(one.subnet))) for kind, one in some)
            for some in (self.finalists, self.front)
        )
        return replace(self, finalists=finalists, front=front)


def propose(problem: Problem, spec: ModelSpec, trials: int = TRIALS, seed: int = 0, top: int = TOP) -> Proposed:
    """The best of all, one near its mean, and the best uniform one; `top` of them mixed. The same for the same seed.

    Optuna goes on from the exact solution where that was not proven, or where there are fewer finalists.
    """
    known = uniforms(problem, spec)
    exact = ExactSearch().search(problem, known, seed)
    traces = [exact.trace]

    def further() -> Iterator[Candidate]:
        if trials < 1:
            yield from exact.candidates
        else:
            found = OptunaSearch(trials=trials).search(problem, exact.candidates, seed)
            traces.append(found.trace)
            yield from found.candidates

    if not exact.candidates:
        return Proposed((), tuple(traces))
    others = further()
    best = exact.candidates[0] if _proven(problem, exact) else next(others)
    near = _near_the_mean(problem, spec, best.subnet)
    finalists = _finalists(chain([best], near, others), known, top)
    return Proposed(tuple(finalists), tuple(traces))


def _proven(problem: Problem, exact: Found) -> bool:
    """Whether nothing within the limits is expected to lose less than the first candidate."""
    gap = exact.trace["gap"]
    return problem.objective is None and gap is not None and gap <= PROVEN


def searched(problem: Problem, proposed: Proposed, search: Search, top: int = TOP) -> Proposed:
    """The finalists, and before them the `top` best that `search` finds from there."""
    known = {candidate.subnet: kind for kind, candidate in proposed.finalists}
    found = search.search(problem, [candidate for _, candidate in proposed.finalists])
    new = [(PLANNED, one) for one in found.candidates if one.subnet not in known][:top]
    return Proposed((*new, *proposed.finalists), (*proposed.traces, found.trace))


def searched_front(problem: Problem, spec: ModelSpec, proposed: Proposed, search: FrontSearch) -> Proposed:
    """The finalists, and up to `SHOWN` subnets that stand for the front that `search` finds. It begins with what is
    expected to be best of each bit-width alone."""
    names, best = dict(all_uniforms(problem, spec)), dict[str, Subnet]()
    for candidate in uniforms(problem, spec):
        best.setdefault(candidate.source, candidate.subnet)
    begun = replace(search, first=tuple(best.values()))
    found = begun.search(problem, [candidate for _, candidate in proposed.finalists])
    sources = {candidate.subnet: candidate.source for candidate in found.candidates} | names
    measured = {candidate.subnet: candidate.loss for candidate in found.candidates}
    front = (
        (UNIFORM if subnet in names else PLANNED, Candidate(subnet, problem.additive(subnet), sources[subnet]))
        for subnet in spread(search.amounts(problem, measured), SHOWN)
    )
    return replace(proposed, traces=(*proposed.traces, found.trace), front=tuple(front))


def uniforms(problem: Problem, spec: ModelSpec) -> tuple[Candidate, ...]:
    """Those of `all_uniforms` within the limits, best first."""
    return ranked(problem, list(all_uniforms(problem, spec)))


def all_uniforms(problem: Problem, spec: ModelSpec) -> Iterator[tuple[Subnet, str]]:
    """Every linear at one bit-width, embedding and head at any one choice each, and what it is called."""
    tables = [unit.name for unit in spec.units if unit.is_table]
    for bits in problem.space.bits(spec):
        for choices in product(*(problem.space[name] for name in tables)):
            subnet = problem.space.uniform(spec, bits)
            for name, choice in zip(tables, choices, strict=True):
                subnet = subnet.replace(name, choice)
            yield subnet, f"uniform {bits} bits"


def _near_the_mean(problem: Problem, spec: ModelSpec, best: Subnet) -> Iterator[Candidate]:
    """Subnets of the two bit-widths around the mean of `best`: split at a depth, and the exact solution among them.

    Losses add worst where bit-widths far apart meet, and where they change often: on SmolLM2 such subnets measured best
    at every average although they are never predicted to be (docs/log.md).
    """
    near = around(problem.space.bits(spec), best.mean_bits(spec))
    if near is None:
        return
    cut = split(problem, spec, *near, base=best)
    if cut is not None:
        yield Candidate(cut, problem.value(cut), f"{near[0]} and {near[1]} bits, split at a depth")
    tables = {unit.name for unit in spec.units if unit.is_table}
    if all(unit in tables or choice.bits in near for unit, choice in best):
        return  # `best` is that solution
    space = problem.space.restrict(lambda unit, choice: unit in tables or choice.bits in near)
    for candidate in ExactSearch().search(replace(problem, space=space)).candidates:
        yield replace(candidate, source=f"{candidate.source}, near the mean")


def _finalists(candidates: Iterable[Candidate], uniforms: Sequence[Candidate], top: int) -> list[tuple[str, Candidate]]:
    """The first mixed candidates, `top` that differ enough to be told apart; and the best uniform one, whatever its
    rank. No more candidates are asked for than that takes.

    Where a uniform subnet is expected to be best of all, no mixed one is worth measuring.
    """
    known = {candidate.subnet for candidate in uniforms}
    best = [(UNIFORM, candidate) for candidate in uniforms[:1]]
    kept: list[Candidate] = []
    for candidate in candidates:
        if candidate.subnet in known:
            if not kept:
                return best
            continue
        least = max(1, round(APART * len(candidate.subnet.items)))
        if all(_distance(candidate.subnet, other.subnet) >= least for other in kept):
            kept.append(candidate)
        if len(kept) == top:
            break  # before more is searched for
    return [(PLANNED, candidate) for candidate in kept] + best


def _distance(a: Subnet, b: Subnet) -> int:
    """Units that differ."""
    return sum(a[unit] != choice for unit, choice in b)
