from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from planner.search.base import Candidate, Problem, Resource
from planner.search.feasible import Feasible
from planner.search.shrink import SPENT, ShrinkSearch, better_half, correlations, shrunk
from supernet.space import Choice, SearchSpace, Subnet

CHOICES = tuple(Choice(b, 64) for b in (2, 3, 4, 8))


def problem(units: int, seed: int = 0, mean_bits: float = 3.0, loud: int = 0) -> Problem:
    """Losses that add, of units of one size; the first `loud` units matter a hundred times as much."""
    random = np.random.default_rng(seed)
    names = [f"unit{i}" for i in range(units)]
    scale = 0.1 * random.lognormal(0, 1, units) * np.where(np.arange(units) < loud, 100, 1)
    loss = {n: {c: s * float(np.exp(-1.4 * (c.bits - 2))) for c in CHOICES} for n, s in zip(names, scale, strict=True)}
    codes = {name: {c: c.bits * 8 for c in CHOICES} for name in names}
    memory = Resource("memory", "bytes", int(units * mean_bits * 8), 0, codes)
    return Problem(SearchSpace.of(dict.fromkeys(names, CHOICES)), loss, (memory,))


def test_the_better_half_is_the_larger_where_loss_falls_with_bits() -> None:
    assert better_half(CHOICES, -0.1) == CHOICES[2:]
    assert better_half(CHOICES, 0.1) == CHOICES[:2]
    assert better_half(CHOICES, 0.0) == CHOICES
    assert better_half(CHOICES[:3], -0.1) == CHOICES[1:3]
    assert better_half(CHOICES[:3], 0.1) == CHOICES[:2]
    assert better_half(CHOICES[:1], -0.1) == CHOICES[:1]
    both = (Choice(2, 32), Choice(2, 64), Choice(4, 32), Choice(4, 64))
    assert better_half(both, -0.1) == both[2:]


def test_the_correlation_is_spearmans() -> None:
    whole = problem(8)
    subnets = Feasible.of(whole).sample(40, np.random.default_rng(0))
    losses = [whole.value(subnet) for subnet in subnets]
    found = correlations(whole.space, subnets, losses)
    for unit, value in found.items():
        assert value == pytest.approx(spearmanr(losses, [subnet[unit].bits for subnet in subnets]).statistic)
    assert set(correlations(whole.space, subnets[:1], losses[:1]).values()) == {0.0}


def test_units_that_matter_keep_their_upper_half() -> None:
    whole = problem(40, loud=4)
    subnets = Feasible.of(whole).sample(100, np.random.default_rng(0))
    space = shrunk(whole, correlations(whole.space, subnets, [whole.value(subnet) for subnet in subnets]))
    assert all(space[f"unit{i}"] == CHOICES[2:] for i in range(4))
    assert sum(space[unit] == CHOICES[:2] for unit, _ in space) > 10


def test_upper_halves_leave_room_and_the_strongest_have_it_first() -> None:
    whole = problem(40, mean_bits=2.5)
    strength = {f"unit{i}": -1 / (i + 1) for i in range(40)}
    space = shrunk(whole, strength)
    (memory,) = whole.resources
    room = memory.limit - memory.least(whole.space)
    upper = [unit for unit, choices in space if choices == CHOICES[2:]]
    assert upper == [f"unit{i}" for i in range(int(SPENT * room) // 16)]
    assert all(choices == CHOICES for unit, choices in space if unit not in upper)


@pytest.mark.parametrize("mean_bits", [2.25, 2.5, 3.0])
def test_it_finds_better_than_as_many_random_subnets(mean_bits: float) -> None:
    ours, random = [], []
    for seed in range(4):
        whole = problem(60, seed, mean_bits)
        ours.append(ShrinkSearch().search(whole, seed=seed).candidates[0].loss)
        drawn = Feasible.of(whole).sample(150, np.random.default_rng(seed))
        random.append(min(whole.value(subnet) for subnet in drawn))
    assert sum(ours) < 0.95 * sum(random)


def test_every_subnet_is_evaluated_once_and_starts_too() -> None:
    asked: Counter[Subnet] = Counter()
    whole = problem(30)

    def objective(subnet: Subnet) -> float:
        asked[subnet] += 1
        return whole.additive(subnet)

    uniform = Candidate(Subnet.of(dict.fromkeys(whole.space.by_unit, CHOICES[1])), 0.0, "uniform")
    found = ShrinkSearch(first=20, then=10).search(replace(whole, objective=objective), [uniform])
    assert set(asked.values()) == {1}
    assert found.trace["evaluations"] == len(asked) == len(found.candidates) == 31
    assert {candidate.source for candidate in found.candidates} == {"shrink", "uniform"}
