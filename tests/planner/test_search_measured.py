"""The search that measures, on a loss that is known whole: units that make each other worse."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from planner.search.base import Candidate, Found, Problem, Resource, Table
from planner.search.crew import Crew, fresh_names
from planner.search.exact import ExactSearch
from planner.search.front import FrontSearch
from planner.search.measured import MeasuredSearch
from planner.search.steps import LONGEST, TOGETHER, StepSampler
from planner.search.study import StudySearch
from records.child import beside
from records.signals import stoppable
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


@dataclass
class Dying(Neighbours):
    """Its process is killed while it measures."""

    def losses(self, subnets: Sequence[Subnet]) -> list[float]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []


@dataclass
class Asked(Neighbours):
    """Its process is asked to stop while it measures."""

    def losses(self, subnets: Sequence[Subnet]) -> list[float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return []


@dataclass
class Patient(Neighbours):
    """Measures once another worker has begun to."""

    path: Path = Path()

    def losses(self, subnets: Sequence[Subnet]) -> list[float]:
        while len({trial.user_attrs["worker"] for trial in _trials(self.path)}) < 2:
            time.sleep(0.05)
        return super().losses(subnets)


def _starts(problem: Problem) -> list[Candidate]:
    """One for each of two workers."""
    return [Candidate(problem.space.at([0] * len(UNITS)), 0.0, "low"), ExactSearch().search(problem).candidates[0]]


def _search(name: str, landscape: Neighbours, path: Path, crew: Crew) -> Found:
    searches = {"measured": MeasuredSearch, "front": partial(FrontSearch, points=17)}
    search: StudySearch = searches[name](60.0, landscape, _journal(path), "one", crew=crew)
    return search.search(landscape.problem, _starts(landscape.problem))


def _work(name: str, path: Path, landscape: Neighbours, crew: Crew) -> None:
    _search(name, landscape, path, crew)


def _shared(path: Path, other: Neighbours, name: str = "measured") -> tuple[Found, tuple[str, ...], list[str]]:
    """What this process finds together with one more, their names, and what was said."""
    names, resting, said = fresh_names(2), multiprocessing.get_context("spawn").Array("b", 2), list[str]()
    with beside([(_work, name, path, other, Crew(1, names, resting))]) as others:
        crew, landscape = Crew(0, names, resting, others, said.append), Patient(other.problem, 2, path=path)
        return _search(name, landscape, path, crew), names, said


def _trials(path: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="one", storage=_journal(path)).trials


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
    said = list[tuple[int, str]]()
    again = MeasuredSearch(
        60.0, second, _journal(path), "one", show=lambda line: said.append((len(second.measured), line))
    )
    whole = again.search(problem, starts)
    assert said[0] == (0, f"{len(first.measured)} subnets, KL {short.candidates[0].loss:.4g} at best")
    assert first.measured and second.measured
    assert not set(first.measured) & set(second.measured)
    assert whole.candidates[0].loss <= short.candidates[0].loss
    assert {one.subnet for one in short.candidates} <= {one.subnet for one in whole.candidates}
    alone = MeasuredSearch(60.0, Neighbours(problem)).search(problem, starts)
    assert whole.candidates[0].loss == pytest.approx(alone.candidates[0].loss)


def _asked(study: optuna.Study, sampler: StepSampler) -> optuna.Trial:
    """A trial of what waits longest, which says who proposed it, as those of a search do."""
    source = sampler.waiting[0][1]
    trial = study.ask(sampler.distributions)
    trial.set_user_attr("source", source)
    return trial


def test_what_a_killed_process_measured_is_tried_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = _problem()
    storage = _journal(tmp_path / "study.journal")
    start = ExactSearch().search(problem).candidates[0]
    sampler = StepSampler(problem, Neighbours(problem), "measured")
    study = optuna.create_study(storage=storage, sampler=sampler)
    sampler.wait(start.subnet, start.source)
    left = _asked(study, sampler)  # and its process is gone
    assert [sampler.subnet(one.params) for one in sampler.running(study)] == [sampler.subnet(left.params)]

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):  # type: ignore[no-untyped-def,override]
            return datetime.now(tz) + timedelta(hours=1)

    monkeypatch.setattr("planner.search.waiting.datetime", Later)
    assert sampler.running(study) == []


def test_two_processes_measure_different_steps(tmp_path: Path) -> None:
    problem, path = _problem(), tmp_path / "study.journal"
    start = ExactSearch().search(problem).candidates[0]
    landscape = Neighbours(problem)
    MeasuredSearch(0.0, landscape, _journal(path), "one").search(problem, [start])
    taken: list[Subnet] = []
    for _ in range(2):
        sampler = StepSampler(problem, landscape, "measured")
        study = optuna.load_study(study_name="one", storage=_journal(path), sampler=sampler)
        sampler.prepare(study)
        trials = [_asked(study, sampler) for _ in range(len(sampler.waiting))]
        taken += [sampler.subnet(trial.params) for trial in trials]
    assert len(taken) == len(set(taken)) > TOGETHER


def test_one_worker_measures_what_it_always_did() -> None:
    problem = _problem()
    for samples in (1, 2):
        landscape = Neighbours(problem, samples)
        MeasuredSearch(600.0, landscape).search(problem, ExactSearch().search(problem).candidates)
        losses = [round(landscape.loss(subnet), 3) for subnet in landscape.measured]
        assert losses == [
            92.7, 89.697, 88.297, 87.933, 88.521, 82.795, 82.235, 85.329, 79.12, 78.308, 80.282, 76.061, 72.722,
            76.908, 72.687, 71.063, 69.831, 71.161, 69.635, 68.305, 69.733,
        ]  # fmt: skip


@pytest.mark.parametrize("name", ["measured", "front"])
def test_workers_share_a_study_and_measure_nothing_twice(name: str, tmp_path: Path) -> None:
    problem, path = _problem(), tmp_path / "study.journal"
    found, names, said = _shared(path, Neighbours(problem, 2), name)
    trials = _trials(path)
    measured = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert said == [] and {trial.user_attrs["worker"] for trial in measured} == set(names)
    assert len(found.candidates) == len(measured)
    twice = [trial for trial in trials if trial.state != TrialState.COMPLETE]  # proposed by both at once
    assert all(trial.state == TrialState.FAIL for trial in twice)
    assert all(any(trial.params == one.params for one in measured) for trial in twice)
    alone = _search(name, Neighbours(problem, 2), tmp_path / "alone.journal", Crew())
    assert found.candidates[0].loss <= 1.05 * alone.candidates[0].loss


def test_a_worker_that_is_asked_to_stop_did_not_fail(tmp_path: Path) -> None:
    _, _, said = _shared(tmp_path / "study.journal", Asked(_problem(), 2))
    assert said == ["worker 2 was stopped; the others go on, and what it was at is open again"]


@pytest.mark.parametrize("name", ["measured", "front"])
def test_a_worker_killed_in_mid_trial_loses_nothing(name: str, tmp_path: Path) -> None:
    problem, path = _problem(), tmp_path / "study.journal"
    found, names, said = _shared(path, Dying(problem, 2), name)
    trials = _trials(path)
    (lost,) = [trial for trial in trials if trial.user_attrs["worker"] == names[1]]
    again = [trial for trial in trials if trial.params == lost.params and trial is not lost]
    assert lost.state == TrialState.FAIL
    assert [(trial.state, trial.user_attrs) for trial in again] == [
        (TrialState.COMPLETE, {"source": "exact", "worker": names[0]})
    ]
    assert said == ["worker 2 ended with code -9; the others go on, and what it was at is open again"]
    assert found.candidates[0].loss <= Neighbours(problem).loss(_starts(problem)[1].subnet)
    assert len(found.candidates) > 2


def test_what_is_stopped_in_mid_trial_may_be_tried_at_once(tmp_path: Path) -> None:
    class Stopped(Neighbours):
        def losses(self, subnets: Sequence[Subnet]) -> list[float]:
            raise KeyboardInterrupt

    problem, path = _problem(), tmp_path / "study.journal"
    starts = ExactSearch().search(problem).candidates
    with pytest.raises(KeyboardInterrupt):
        MeasuredSearch(30.0, Stopped(problem), _journal(path), "one").search(problem, starts)
    study = optuna.load_study(study_name="one", storage=_journal(path))
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]


@pytest.mark.parametrize("name", ["measured", "front"])
@pytest.mark.parametrize("call", ["add_trial", "tell"])
def test_a_signal_while_a_trial_is_written_leaves_none_running(
    call: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised as soon as all is written; what was measured by then is kept, what was not is open again."""
    problem, path = _problem(), tmp_path / "study.journal"
    written, asked = getattr(optuna.Study, call), list[int]()

    def stopped(self: optuna.Study, *args: Any, **others: Any) -> Any:
        if not asked:
            asked.append(1)
            os.kill(os.getpid(), signal.SIGTERM)
        return written(self, *args, **others)

    monkeypatch.setattr(optuna.Study, call, stopped)
    with pytest.raises(KeyboardInterrupt), stoppable():
        _search(name, Neighbours(problem), path, Crew())
    states = [trial.state for trial in _trials(path)]
    assert states and set(states) == {TrialState.FAIL if call == "add_trial" else TrialState.COMPLETE}


def test_slopes_are_kept_with_the_study(tmp_path: Path) -> None:
    problem, path = _problem(), tmp_path / "study.journal"
    starts = ExactSearch().search(problem).candidates
    searches = [MeasuredSearch(600.0, Neighbours(problem), _journal(path), "one").search(problem, starts) for _ in "ab"]
    assert searches[0].trace["slopes"] > 0 == searches[1].trace["slopes"]
    assert searches[0].candidates == searches[1].candidates


def test_what_a_study_holds_of_others_is_neither_taken_nor_shown(tmp_path: Path) -> None:
    problem, path = _problem(), tmp_path / "study.journal"
    study = optuna.create_study(storage=_journal(path), study_name="one")
    known = StepSampler(problem, Neighbours(problem), "measured").distributions
    kinds = {**known, "more": CategoricalDistribution(["4"])}
    whole = {name: kind.choices[0] for name, kind in kinds.items() if isinstance(kind, CategoricalDistribution)}
    for names, attributes in ((), {"source": "x"}), (tuple(known), {}), (tuple(kinds), {"source": "x"}):
        params, asked = ({name: every[name] for name in names} for every in (whole, kinds))
        study.add_trial(create_trial(value=-1.0, params=params, distributions=asked, user_attrs=attributes))
    said: list[str] = []
    search = MeasuredSearch(0.0, Neighbours(problem), _journal(path), "one", show=said.append)
    found = search.search(problem, ExactSearch().search(problem).candidates)
    assert said[-1] == f"{len(found.candidates)} subnets, KL {found.candidates[0].loss:.4g} at best"
    assert found.candidates[0].loss > 0 and found.trace["trials"] == len(found.candidates)
    sampler = StepSampler(problem, Neighbours(problem), "measured")
    sampler.wait(sampler.subnet(whole), MeasuredSearch.name)
    study.sampler = sampler
    number = _asked(study, sampler).number
    asked = study.trials[number]
    assert asked.params == study.trials[1].params and not sampler.begun_before(study, asked)


def test_starts_beyond_a_limit_are_left_out() -> None:
    problem = _problem()
    over = Candidate(Subnet.of(dict.fromkeys(UNITS, HIGH)), 0.0, "over")
    within = Candidate(Subnet.of(dict.fromkeys(UNITS, LOW)), 0.0, "within")
    found = MeasuredSearch(60.0, Neighbours(problem)).search(problem, [over, within]).candidates
    assert over.subnet not in {one.subnet for one in found}
    assert all(problem.feasible(one.subnet) for one in found)
