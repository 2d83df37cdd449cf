from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from planner.search.base import Problem, Resource
from planner.search.feasible import Feasible
from supernet.space import Choice, SearchSpace, Subnet

BITS = (2, 3, 4, 8)


def problem(units: int, mean_bits: float, slow: float = 0.4, seed: int = 0) -> Problem:
    """Units of different sizes under a limit on bits, and a limit on milliseconds that do not grow with bits."""
    random = np.random.default_rng(seed)
    choices = tuple(Choice(b, 64) for b in BITS)
    names = [f"unit{i}" for i in range(units)]
    size = {name: int(random.integers(1, 9)) for name in names}
    memory = {n: {c: float(size[n] * c.bits) for c in choices} for n in names}
    ms = {n: {c: float(random.uniform(1, 2)) for c in choices} for n in names}
    fastest, slowest = (sum(pick(t.values()) for t in ms.values()) for pick in (min, max))
    resources = (
        Resource("memory", "bytes", int(100 + mean_bits * sum(size.values())), 100, memory),
        Resource("tpot", "ms", fastest + slow * (slowest - fastest) + 1, 1.0, ms),
    )
    space = SearchSpace.of(dict.fromkeys(names, choices))
    return Problem(space, {name: dict.fromkeys(choices, 0.0) for name in names}, resources)


def everything(of: Problem) -> list[Subnet]:
    units, options = zip(*of.space, strict=True)
    subnets = (Subnet(tuple(zip(units, choices, strict=True))) for choices in product(*options))
    return [subnet for subnet in subnets if of.feasible(subnet)]


@pytest.mark.parametrize("mean_bits", [2.3, 3.0, 4.0, 8.0])
def test_every_feasible_subnet_is_equally_likely(mean_bits: float) -> None:
    small = problem(6, mean_bits)
    feasible = Feasible.of(small)
    rows = np.stack([feasible.row(subnet) for subnet in everything(small)])
    drawn = feasible.odds[np.arange(6), rows].prod(axis=1)
    kept = np.exp(-feasible.tilt @ (1 - feasible.used(rows)))
    assert len(rows) > 5
    assert drawn * kept == pytest.approx(np.full(len(rows), (drawn * kept)[0]), rel=1e-9)
    assert (drawn > 0).all() and (kept <= 1).all()


@pytest.mark.parametrize("mean_bits", [2.3, 3.0, 8.0])
def test_asked_for_more_than_there_are_it_returns_them_all(mean_bits: float) -> None:
    small = problem(5, mean_bits)
    all_of_them = everything(small)
    found = Feasible.of(small).sample(10_000, np.random.default_rng(0))
    assert len(found) == len(all_of_them)
    assert set(found) == set(all_of_them)
    assert not set(Feasible.of(small).sample(10_000, np.random.default_rng(0), known=found))


@pytest.mark.parametrize(("mean_bits", "slow"), [(2.05, 0.6), (2.5, 0.5), (3.0, 0.4), (3.0, 0.3), (4.0, 0.2)])
def test_tight_limits_of_a_large_model_are_met_by_many_draws(mean_bits: float, slow: float) -> None:
    large = problem(121, mean_bits, slow)
    feasible, random = Feasible.of(large), np.random.default_rng(0)
    assert feasible.fit(feasible.draw(4096, random)).mean() > 0.1
    found = feasible.sample(100, random)
    assert len(set(found)) == 100
    assert all(large.feasible(subnet) for subnet in found)


def test_a_row_and_its_subnet_are_the_same() -> None:
    small = problem(6, 8.0)
    feasible = Feasible.of(small)
    for subnet in feasible.sample(20, np.random.default_rng(0)):
        assert feasible.subnet(feasible.row(subnet)) == subnet
        least = {r.name: r.least(small.space) for r in small.resources}
        amounts = [(r.amount(subnet) - least[r.name]) / (r.limit - least[r.name]) for r in small.resources]
        assert feasible.used(feasible.row(subnet)[None])[:, 0] == pytest.approx(amounts)


def test_a_limit_with_no_room_leaves_the_cheapest_and_an_impossible_one_nothing() -> None:
    for room, count in ((0, 1), (-1, 0)):
        whole = problem(12, 4.0)
        limit = whole.resources[0]
        tight = Resource("memory", "bytes", limit.least(whole.space) + room, limit.constant, limit.table)
        found = Feasible.of(Problem(whole.space, whole.loss, (tight,))).sample(5, np.random.default_rng(0))
        assert [{choice.bits for _, choice in subnet} for subnet in found] == [{2}] * count


def test_without_limits_every_choice_is_as_likely() -> None:
    free = Problem(problem(12, 4.0).space, {}, ())
    assert (Feasible.of(free).odds == 0.25).all()
    assert len(Feasible.of(free).sample(50, np.random.default_rng(0))) == 50
