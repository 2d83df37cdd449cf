"""The search that measures, on a loss that is known whole: units that make each other worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from planner.search.base import Candidate, Problem, Resource, Table
from planner.search.exact import ExactSearch
from planner.search.measured import MeasuredSearch
from planner.search.steps import LONGEST, TOGETHER, StepSampler
from supernet.space import Choice, SearchSpace, Subnet

LOW, MIDDLE, HIGH = (Choice(bits, 32) for bits in (2, 4, 8))
UNITS = [f"unit{number:02}" for number in range(40)]
NUMBER = {unit: number for number, unit in enumerate(UNITS)}
ALONE = {LOW: 1.0, MIDDLE: 0.3, HIGH: 0.0}


def _problem() -> Problem:
    space = SearchSpace.of(dict.fromkeys(UNITS, (LOW, MIDDLE, HIGH)))
    loss = {unit: {c: ALONE[c] * (1 + 0.01 * NUMBER[unit]) for c in (LOW, MIDDLE, HIGH)} for unit in UNITS}
    size = {unit: {c: float(c.bits) for c in (LOW, MIDDLE, HIGH)} for unit in UNITS}
    return Problem(space, loss, (Resource("memory", "bytes", 3 * len(UNITS), 0, size),))


@dataclass
class Neighbours:
    """Adds to the sum what two neighbours lose together: the square of their errors."""

    problem: Problem
    samples: int = 1
    measured: list[Subnet] = field(default_factory=list)

    def losses(self, subnets: Sequence[Subnet]) -> list[float]:
        self.measured += subnets
        return [self.loss(subnet) for subnet in subnets]

    def loss(self, subnet: Subnet) -> float:
        errors = [ALONE[subnet[unit]] for unit in UNITS]
        return self.problem.additive(subnet) + sum(3 * a * b for a, b in zip(errors, errors[1:], strict=False))

    def slopes(self, subnet: Subnet, sample: int) -> Table:
        found = {}
        for unit in UNITS:
            near = [UNITS[n] for n in (NUMBER[unit] - 1, NUMBER[unit] + 1) if 0 <= n < len(UNITS)]
            pull = 3 * sum(ALONE[subnet[other]] for other in near)
            now = subnet[unit]
            # errors of two choices of a unit have nothing in common: all that one loses alone is slope, twice
            own = {c: 0.0 if c == now else -2 * self.problem.loss[unit][now] for c in ALONE}
            found[unit] = {c: pull * (ALONE[c] - ALONE[now]) + own[c] for c in ALONE}
        return found


def _journal(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))


def test_steps_find_what_no_sum_tells() -> None:
    problem = _problem()
    landscape = Neighbours(problem)
    starts = ExactSearch().search(problem).candidates
    found = MeasuredSearch(60.0, landscape).search(problem, starts).candidates
    before, after = landscape.loss(starts[0].subnet), found[0].loss
    assert after == pytest.approx(landscape.loss(found[0].subnet))
    assert after < 0.85 * before
    assert all(problem.feasible(one.subnet) for one in found)
    assert [one.source for one in found if one.subnet == starts[0].subnet] == ["exact"]


def test_a_step_moves_no_more_units_than_it_may() -> None:
    problem = _problem()
    landscape = Neighbours(problem)
    starts = ExactSearch().search(problem).candidates
    MeasuredSearch(0.0, landscape, clock=iter([0.0, 0.0, 1.0, 1.0]).__next__).search(problem, starts)
    assert landscape.measured[0] == starts[0].subnet
    steps = [sum(step[unit] != starts[0].subnet[unit] for unit in UNITS) for step in landscape.measured[1:]]
    assert all(0 < moved <= LONGEST for moved in steps)


def test_no_time_measures_the_starts_alone() -> None:
    problem = _problem()
    landscape = Neighbours(problem)
    starts = ExactSearch().search(problem).candidates
    ticks = iter(range(10))
    found = MeasuredSearch(0.5, landscape, clock=lambda: float(next(ticks))).search(problem, starts)
    assert landscape.measured == [start.subnet for start in starts]
    assert found.trace["trials"] == len(starts)


def test_a_kept_study_goes_on_and_measures_nothing_twice(tmp_path: Path) -> None:
    problem, path = _problem(), tmp_path / "study.journal"
    starts = ExactSearch().search(problem).candidates
    first, second = Neighbours(problem), Neighbours(problem)
    ticks = iter(range(1000))
    short = MeasuredSearch(3.5, first, _journal(path), "one", lambda: float(next(ticks))).search(problem, starts)
    whole = MeasuredSearch(60.0, second, _journal(path), "one").search(problem, starts)
    assert first.measured and second.measured
    assert not set(first.measured) & set(second.measured)
    assert whole.candidates[0].loss <= short.candidates[0].loss
    assert {one.subnet for one in short.candidates} <= {one.subnet for one in whole.candidates}
    alone = MeasuredSearch(60.0, Neighbours(problem)).search(problem, starts)
    assert whole.candidates[0].loss == pytest.approx(alone.candidates[0].loss)


def test_what_a_killed_process_measured_is_tried_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = _problem()
    storage = _journal(tmp_path / "study.journal")
    start = ExactSearch().search(problem).candidates[0]
    sampler = StepSampler(problem, Neighbours(problem))
    study = optuna.create_study(storage=storage, sampler=sampler)
    sampler.wait(start.subnet, start.source)
    left = study.ask(sampler.distributions)  # and its process is gone
    assert sampler._running(study) == [sampler.subnet(left.params)]

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):  # type: ignore[no-untyped-def,override]
            return datetime.now(tz) + timedelta(hours=1)

    monkeypatch.setattr("planner.search.steps.datetime", Later)
    assert sampler._running(study) == []


def test_two_processes_measure_different_steps(tmp_path: Path) -> None:
    problem, path = _problem(), tmp_path / "study.journal"
    start = ExactSearch().search(problem).candidates[0]
    landscape = Neighbours(problem)
    MeasuredSearch(0.0, landscape, _journal(path), "one").search(problem, [start])
    taken: list[Subnet] = []
    for _ in range(2):
        sampler = StepSampler(problem, landscape)
        study = optuna.load_study(study_name="one", storage=_journal(path), sampler=sampler)
        sampler.prepare(study)
        trials = [study.ask(sampler.distributions) for _ in range(len(sampler.waiting))]
        taken += [sampler.subnet(trial.params) for trial in trials]
    assert len(taken) == len(set(taken)) > TOGETHER


def test_starts_beyond_a_limit_are_left_out() -> None:
    problem = _problem()
    over = Candidate(Subnet.of(dict.fromkeys(UNITS, HIGH)), 0.0, "over")
    within = Candidate(Subnet.of(dict.fromkeys(UNITS, LOW)), 0.0, "within")
    found = MeasuredSearch(60.0, Neighbours(problem)).search(problem, [over, within]).candidates
    assert over.subnet not in {one.subnet for one in found}
    assert all(problem.feasible(one.subnet) for one in found)
