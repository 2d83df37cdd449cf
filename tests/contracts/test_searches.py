"""What every search promises, on random small problems."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.search import SEARCHES
from planner.search.base import Candidate, Problem, Resource, Search
from planner.search.exact import TOLERANCE
from supernet.space import Choice, SearchSpace, Subnet

BITS = (2, 4, 8)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to six units of two or three choices, bytes that grow with bits and milliseconds that need not."""
    units = [f"unit{i}" for i in range(draw(st.integers(1, 6)))]
    widths = [draw(st.sampled_from([BITS, BITS[1:]])) for _ in units]
    space = SearchSpace.of({u: tuple(Choice(b, 32) for b in bits) for u, bits in zip(units, widths, strict=True)})
    sizes = {u: draw(st.integers(1, 10**9)) for u in units}
    memory = {u: {c: float(sizes[u] * c.bits) for c in choices} for u, choices in space}
    latency = {u: {c: draw(st.floats(0.001, 10)) for c in choices} for u, choices in space}
    loss = {u: {c: draw(st.floats(-0.01, 2)) / c.bits for c in choices} for u, choices in space}
    share = draw(st.floats(0, 1))
    resources = []
    for name, unit, table, constant in (("memory", "bytes", memory, 1e6), ("tpot", "ms", latency, 0.5)):
        low = constant + sum(min(t.values()) for t in table.values())
        high = constant + sum(max(t.values()) for t in table.values())
        limit = low + (share if unit == "bytes" else draw(st.floats(0, 1))) * (high - low)
        resources.append(Resource(name, unit, int(limit) if unit == "bytes" else limit, constant, table))
    return Problem(space, loss, tuple(resources), groups={u: f"group{i % 3}" for i, u in enumerate(units)})


SMALL = {
    "evolution": {"samples": 30, "finalists": 10, "population": 20, "generations": 10},
    "front": {"points": 9},
    "optuna": {"trials": 30},
    "shrink": {"first": 20, "then": 10},
}


def _search(name: str) -> Search:
    return SEARCHES[name](**SMALL.get(name, {}))


def _everything(problem: Problem) -> list[Subnet]:
    units = [unit for unit, _ in problem.space]
    return [
        Subnet(tuple(zip(units, choices, strict=True)))
        for choices in product(*(choices for _, choices in problem.space))
    ]


def _uniforms(problem: Problem) -> list[Candidate]:
    subnets = {
        Subnet(tuple((unit, min(choices, key=lambda c: abs(c.bits - bits))) for unit, choices in problem.space))
        for bits in BITS
    }
    kept = [Candidate(s, problem.value(s), "uniform") for s in subnets if problem.feasible(s)]
    return sorted(kept, key=lambda candidate: candidate.loss)


@pytest.mark.parametrize("name", SEARCHES)
class TestEverySearch:
    @settings(max_examples=25, deadline=None)
    @given(problem=problems())
    def test_candidates_keep_every_limit_and_come_best_first_without_repeats(self, name: str, problem: Problem) -> None:
        found = _search(name).search(problem, _uniforms(problem)).candidates
        assert all(problem.feasible(c.subnet) and c.subnet in problem.space for c in found)
        assert [c.loss for c in found] == sorted(problem.value(c.subnet) for c in found)
        assert len({c.subnet for c in found}) == len(found)

    @settings(max_examples=25, deadline=None)
    @given(problem=problems())
    def test_it_is_never_worse_than_its_starts(self, name: str, problem: Problem) -> None:
        uniforms = _uniforms(problem)
        found = _search(name).search(problem, uniforms).candidates
        if uniforms:
            assert found[0].loss <= uniforms[0].loss + 1e-12

    @settings(max_examples=10, deadline=None)
    @given(problem=problems())
    def test_the_same_seed_finds_the_same(self, name: str, problem: Problem) -> None:
        first, second = (_search(name).search(problem, _uniforms(problem), seed=7).candidates for _ in range(2))
        assert first == second

    @settings(max_examples=10, deadline=None)
    @given(problem=problems())
    def test_an_impossible_limit_finds_nothing(self, name: str, problem: Problem) -> None:
        memory = problem.resources[0]
        tight = Resource("memory", "bytes", memory.least(problem.space) - 1, memory.constant, memory.table)
        assert _search(name).search(Problem(problem.space, problem.loss, (tight,))).candidates == ()

    def test_it_says_how_it_went(self, name: str) -> None:
        space = SearchSpace.of({"a": (Choice(2, 32), Choice(4, 32))})
        table = {"a": {Choice(2, 32): 2.0, Choice(4, 32): 4.0}}
        loss = {"a": {Choice(2, 32): 1.0, Choice(4, 32): 0.5}}
        problem = Problem(space, loss, (Resource("memory", "bytes", 4, 0, table),))
        found = _search(name).search(problem)
        assert found.candidates[0].subnet["a"] == Choice(4, 32)
        assert {"solver", "seconds"} <= found.trace.keys()


@pytest.mark.parametrize("name", SEARCHES)
def test_the_last_bit_of_an_amount_decides_nothing(name: str) -> None:
    cheap, dear = Choice(4, 32), Choice(8, 32)
    space = SearchSpace.of({"a": (cheap, dear)})
    memory = Resource("memory", "bytes", 1_000_004, 1_000_000, {"a": {cheap: 4.0, dear: 8.0}})
    time = Resource("tpot", "ms", 0.501, 0.5, {"a": {cheap: 0.0010000000000000002, dear: 0.001}})
    problem = Problem(space, {"a": {cheap: 0.0, dear: 0.0}}, (memory, time))
    assert [c.subnet["a"] for c in _search(name).search(problem).candidates] == [cheap]


@settings(max_examples=100, deadline=None)
@given(problem=problems())
def test_exact_equals_brute_force(problem: Problem) -> None:
    values = [problem.additive(subnet) for subnet in _everything(problem) if problem.feasible(subnet)]
    found = SEARCHES["exact"]().search(problem).candidates
    assert bool(found) == bool(values)
    if values:
        assert found[0].loss == pytest.approx(min(values), abs=TOLERANCE * len(problem.space.options))
