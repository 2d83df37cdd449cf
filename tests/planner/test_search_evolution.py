from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from planner.search.base import Candidate, Problem, Resource
from planner.search.evolution import EvolutionSearch, Ridge
from planner.search.feasible import Feasible
from supernet.space import Choice, SearchSpace, Subnet

CHOICES = tuple(Choice(b, 64) for b in (2, 3, 4, 8))


def problem(units: int, seed: int = 0, mean_bits: float = 3.0, cross: float = 0.0) -> Problem:
    """Units of one size. What neighbours do to the output correlates by about `cross`; without it losses add."""
    random = np.random.default_rng(seed)
    names = [f"unit{i}" for i in range(units)]
    scale = 0.1 * random.lognormal(0, 1, units)
    loss = {n: {c: s * float(np.exp(-1.4 * (c.bits - 2))) for c in CHOICES} for n, s in zip(names, scale, strict=True)}
    pairs = random.normal(cross, cross, units - 1)

    def objective(subnet: Subnet) -> float:
        amplitude = np.sqrt([loss[name][choice] for name, choice in subnet])
        return float(amplitude @ amplitude + pairs @ (amplitude[:-1] * amplitude[1:]))

    codes = {name: {c: c.bits * 8 for c in CHOICES} for name in names}
    memory = Resource("memory", "bytes", int(units * mean_bits * 8), 0, codes)
    return Problem(SearchSpace.of(dict.fromkeys(names, CHOICES)), loss, (memory,), objective if cross else None)


def optimum(whole: Problem) -> float:
    """The least that adds up within the limit, by dynamic programming over the bits: no solver, no time limit."""
    room = int(whole.resources[0].limit) // 8
    least = np.zeros(room + 1)
    for losses in whole.loss.values():
        shifted = [np.concatenate([np.full(c.bits, np.inf), least[: room + 1 - c.bits] + losses[c]]) for c in CHOICES]
        least = np.min(shifted, axis=0)
    return float(least[room])


def sampled(whole: Problem, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    feasible = Feasible.of(whole)
    subnets = feasible.sample(count, np.random.default_rng(seed))
    return np.stack([feasible.row(s) for s in subnets]), np.array([whole.value(s) for s in subnets])


def test_losses_that_add_are_learned_exactly() -> None:
    whole = problem(40)
    predict = Ridge.fit(*sampled(whole, 300, 0), choices=4)
    rows, losses = sampled(whole, 200, 1)
    assert predict(rows) == pytest.approx(losses, abs=1e-4)


@pytest.mark.parametrize(("samples", "least"), [(100, 0.75), (400, 0.97)])
def test_unseen_subnets_are_ranked_where_losses_interact(samples: int, least: float) -> None:
    whole = problem(60, cross=0.3)
    predict = Ridge.fit(*sampled(whole, samples, 0), choices=4)
    rows, losses = sampled(whole, 300, 1)
    assert spearmanr(predict(rows), losses).statistic > least


def test_few_and_equal_losses_are_no_error() -> None:
    rows, _ = sampled(problem(12), 5, 0)
    assert Ridge.fit(rows[:1], np.array([0.5]), choices=4)(rows) == pytest.approx(np.full(5, 0.5))
    assert Ridge.fit(rows, np.full(5, 0.25), choices=4)(rows) == pytest.approx(np.full(5, 0.25))


@pytest.mark.parametrize("mean_bits", [2.1, 2.5, 3.5])
def test_it_comes_near_the_optimum_where_losses_add(mean_bits: float) -> None:
    whole = problem(60, mean_bits=mean_bits)
    found = EvolutionSearch(samples=400, finalists=20).search(whole)
    best = optimum(whole)
    assert best - 1e-9 <= found.candidates[0].loss < 1.01 * best
    assert all(whole.feasible(candidate.subnet) for candidate in found.candidates)
    assert found.trace["evaluations"] == 420


def test_it_improves_on_everything_it_learned_from() -> None:
    whole = problem(60, cross=0.3)
    search = EvolutionSearch(samples=150, finalists=20, generations=200)
    _, losses = sampled(whole, 150, 0)
    assert search.search(whole, seed=0).candidates[0].loss < 0.9 * losses.min()


def test_every_subnet_is_evaluated_once_and_a_better_start_stays_first() -> None:
    asked: Counter[Subnet] = Counter()
    whole = problem(30)

    def objective(subnet: Subnet) -> float:
        asked[subnet] += 1
        return whole.additive(subnet)

    best = replace(EvolutionSearch(samples=200).search(whole).candidates[0], source="start")
    heavy = Candidate(Subnet.of(dict.fromkeys(whole.space.by_unit, CHOICES[3])), 0.0, "too large")
    search = EvolutionSearch(samples=20, finalists=10, generations=20)
    found = search.search(replace(whole, objective=objective), [heavy, best])
    assert found.candidates[0] == best
    assert set(asked.values()) == {1} and heavy.subnet not in asked
    assert found.trace["evaluations"] == len(asked) == len(found.candidates)
