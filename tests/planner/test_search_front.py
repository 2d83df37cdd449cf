"""The search of several objectives, on small problems whose losses are known whole."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from planner.search.base import Problem, Resource, Table
from planner.search.exact import ExactSearch
from planner.search.front import FrontSearch
from planner.search.fronts import spread, undominated
from planner.search.lattice import Lattice, LatticeSampler
from planner.search.program import solve
from planner.search.study import Plain
from supernet.space import Choice, SearchSpace, Subnet

CHOICES = tuple(Choice(bits, 32) for bits in (2, 4, 8))
UNITS = [f"unit{number}" for number in range(6)]
SUBNETS = [
    Subnet.of(dict.fromkeys(UNITS, CHOICES[number % 3])).replace("unit0", CHOICES[number // 3]) for number in range(9)
]
MEMORY = {2: 2.0, 4: 4.0, 8: 8.0}
TIME = {2: 3.0, 4: 1.0, 8: 2.0}  # few bits are slow to unpack


def _problem(memory: float = 100.0, time: float = 100.0) -> Problem:
    space = SearchSpace.of(dict.fromkeys(UNITS, CHOICES))

    def table(amounts: dict[int, float]) -> Table:
        return {unit: {c: amounts[c.bits] * (1 + 0.1 * n**1.1) for c in CHOICES} for n, unit in enumerate(UNITS)}

    loss = {unit: {c: 2.0**-c.bits * (1 + n) ** 0.5 for c in CHOICES} for n, unit in enumerate(UNITS)}
    resources = (
        Resource("memory", "bytes", memory, 5.0, table(MEMORY)),
        Resource("tpot", "ms", time, 1.0, table(TIME)),
        Resource("disk", "bytes", 1000.0, 0.0, table(MEMORY)),
    )
    return Problem(space, loss, resources)


@dataclass
class Counted:
    """The sums, one and a half times as much for what mixes; counts what is measured."""

    problem: Problem
    samples: int = 1
    measured: list[Subnet] = field(default_factory=list)

    def losses(self, subnets: Sequence[Subnet]) -> list[float]:
        self.measured += subnets
        return [self.problem.additive(one) * (1.5 if len({c for _, c in one}) > 1 else 1) for one in subnets]

    def slopes(self, subnet: Subnet, sample: int) -> Table:
        raise AssertionError("no slope is taken")


def _journal(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))


def _starts(problem: Problem):  # type: ignore[no-untyped-def]
    return ExactSearch().search(problem).candidates


@pytest.mark.parametrize("named", [("memory",), ("memory", "tpot")])
def test_every_limit_of_the_lattice_has_the_exact_solution_at_the_end(named: tuple[str, ...]) -> None:
    problem = _problem()
    search = FrontSearch(60.0, Plain(problem), named=named, points=25)
    found = search.search(problem, _starts(problem)).candidates
    lattice = Lattice.of(problem, search.aims(problem), 5)
    assert lattice is not None
    seen = 0
    for limits in itertools.product(*(levels.tolist() for levels in lattice.levels)):
        of = dict(zip(named, limits, strict=True))
        resources = [replace(one, limit=of.get(one.name, one.limit)) for one in problem.resources]
        best = solve(problem.space, problem.loss, resources)
        within = [one.loss for one in found if all(r.amount(one.subnet) <= r.limit for r in resources)]
        assert bool(within) == (best is not None)
        if best is not None:
            seen += 1
            assert min(within) == pytest.approx(problem.additive(best.subnet), rel=1e-6)
    assert seen >= 5


def test_a_trial_has_all_values_and_its_constraints(tmp_path: Path) -> None:
    problem, path = _problem(55.0), tmp_path / "study.journal"
    search = FrontSearch(60.0, Counted(problem), _journal(path), "one", points=81)
    found = search.search(problem, _starts(problem))
    study = optuna.load_study(study_name="one", storage=_journal(path))
    sampler = LatticeSampler(problem, Plain(problem), "front", search.aims(problem), (), 81)
    assert [one.name for one in study.directions] == ["MINIMIZE"] * 3
    assert len(study.trials) == len(found.candidates) == found.trace["trials"] > 6
    losses = {one.subnet: one.loss for one in found.candidates}
    memory, time, disk = problem.resources
    for trial in study.trials:
        subnet = sampler.subnet(trial.params)
        assert trial.values == [losses[subnet], memory.amount(subnet), time.amount(subnet)]
        assert trial.constraints == {one.name: one.amount(subnet) - one.limit for one in (memory, time, disk)}
        assert max(trial.constraints.values()) <= 0
    best = {sampler.subnet(trial.params) for trial in study.best_trials}
    assert best == set(undominated(search.amounts(problem, losses)))


def test_a_study_goes_on_within_other_limits_and_measures_nothing_twice(tmp_path: Path) -> None:
    wide, narrow, path = _problem(), _problem(40.0, 14.0), tmp_path / "study.journal"
    first, second = Counted(wide), Counted(narrow)
    FrontSearch(60.0, first, _journal(path), "one", points=25).search(wide, _starts(wide))
    said: list[str] = []
    search = FrontSearch(60.0, second, _journal(path), "one", points=25, show=said.append)
    found = search.search(narrow, _starts(narrow)).candidates
    assert all(narrow.feasible(one.subnet) for one in found)
    assert second.measured and not set(first.measured) & set(second.measured)
    both = [one for one in (*first.measured, *second.measured) if narrow.feasible(one)]
    assert {one.subnet for one in found} == set(both) > set(second.measured)
    front = undominated(search.amounts(narrow, {one.subnet: one.loss for one in found}))
    assert said[-1] == f"{len(found)} subnets, {len(front)} of them on the front, KL {found[0].loss:.4g} at best"


def test_the_clock_ends_it_after_what_is_being_measured() -> None:
    problem = _problem()
    landscape = Counted(problem)
    FrontSearch(4.0, landscape, clock=lambda: float(len(landscape.measured))).search(problem, _starts(problem))
    assert len(landscape.measured) == 4  # the start, and three together


def test_it_begins_with_what_it_is_given_within_the_limits() -> None:
    problem = _problem(30.0)
    landscape = Counted(problem)
    search = FrontSearch(2.0, landscape, first=SUBNETS, clock=lambda: float(len(landscape.measured)))
    search.search(problem, _starts(problem))
    within = [subnet for subnet in SUBNETS if problem.feasible(subnet)]
    assert 0 < len(within) < len(SUBNETS)
    assert landscape.measured[1:] == [one for one in within if one != landscape.measured[0]][:3]


def test_more_is_measured_where_more_is_to_be_won() -> None:
    """What is measured first are the ends: without them most limits have nothing."""
    problem = _problem()
    landscape = Counted(problem)
    search = FrontSearch(10.0, landscape, clock=lambda: float(len(landscape.measured)))
    found = search.search(problem, _starts(problem)).candidates
    memory, time, _ = problem.resources
    assert memory.least(problem.space) in [memory.amount(one.subnet) for one in found]
    assert time.least(problem.space) == min(time.amount(one.subnet) for one in found)


points = st.dictionaries(
    st.sampled_from(SUBNETS), st.tuples(st.floats(1e-6, 10), st.integers(1, 9), st.integers(1, 9)), min_size=1
)


@settings(max_examples=100, deadline=None)
@given(points)
def test_the_undominated_are_those_that_no_other_beats(amounts: dict[Subnet, tuple[float, ...]]) -> None:
    kept = undominated(amounts)

    def beaten(one: Subnet) -> bool:
        rivals = (amounts[other] for other in amounts if amounts[other] != amounts[one])
        return any(all(a <= b for a, b in zip(rival, amounts[one], strict=True)) for rival in rivals)

    assert {amounts[one] for one in kept} == {amounts[one] for one in amounts if not beaten(one)}
    assert len(kept) == len({amounts[one] for one in kept})
    assert [amounts[one][0] for one in kept] == sorted(amounts[one][0] for one in kept)


@settings(max_examples=50, deadline=None)
@given(points, st.integers(1, 9))
def test_a_few_stand_for_the_front(amounts: dict[Subnet, tuple[float, ...]], count: int) -> None:
    whole, kept = undominated(amounts), spread(amounts, count)
    assert len(kept) == min(count, len(whole)) and set(kept) <= set(whole)
    assert kept[0] == whole[0]


def test_what_goes_first_is_what_the_front_misses_least() -> None:
    a, b, c, d = SUBNETS[:4]
    near = {a: (1.0, 100.0), b: (1.01, 99.0), c: (10.0, 50.0), d: (100.0, 10.0)}
    assert spread(near, 3) == [a, c, d]
    assert spread(near, 2) == [a, d] or spread(near, 2) == [a, c]
