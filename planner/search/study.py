"""A study of Optuna whose trials are measured losses of subnets, with whatever they take beside.

A study may be kept in any of Optuna's storages, go on another day, and be worked on by several processes.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from planner.search.base import Candidate, Found, Problem, Resource, Search, Table
from planner.search.crew import Crew
from records.signals import unbroken
from supernet.space import Subnet

if TYPE_CHECKING:
    import optuna

    from planner.search.waiting import WaitingSampler


class Landscape(Protocol):
    """Losses of subnets as they are measured, in nats per token on text for searching, and how they slope."""

    @property
    def samples(self) -> int:
        """Of text that slopes are taken on."""
        ...

    def losses(self, subnets: Sequence[Subnet]) -> Sequence[float]: ...

    def slopes(self, subnet: Subnet, sample: int) -> Table:
        """What choices add to the loss of `subnet`, to first order. Units and choices may be left out."""
        ...


SOURCE, WORKER = "source", "worker"  # who proposed a trial, and who measures it, among its attributes
LOOK_AGAIN_S = 0.2


@dataclass(frozen=True)
class Plain:
    """A landscape of what a problem says that subnets lose."""

    problem: Problem
    samples: int = 1

    def losses(self, subnets: Sequence[Subnet]) -> list[float]:
        return [self.problem.value(subnet) for subnet in subnets]

    def slopes(self, subnet: Subnet, sample: int) -> Table:
        return {}


@dataclass(frozen=True)
class StudySearch(Search):
    """Measures the starts, and what its sampler makes of them, for `seconds` or until that has nothing more.

    Losses of what is found are the measured ones, and all of it keeps the limits. Without a start within them it starts
    where the problem's sum is least. Proposals are solved for and not drawn: `seed` changes nothing. With a `crew`
    every worker searches so, in a process of its own and in one study, and the first finds what all have found.
    """

    solver: ClassVar[str]
    seconds: float = 60.0
    landscape: Landscape | None = None
    """None for the problem's own losses."""
    storage: Any = None
    """Where the study is kept: one of Optuna's storages, or its address; None for memory."""
    study: str | None = None
    """Its name there, which goes on with what it has."""
    clock: Callable[[], float] = time.monotonic
    crew: Crew = field(default_factory=Crew)
    show: Callable[[str], None] = lambda line: None

    @abstractmethod
    def sampler(self, problem: Problem, landscape: Landscape) -> WaitingSampler: ...

    def aims(self, problem: Problem) -> tuple[Resource, ...]:
        """What shall be little beside the loss."""
        return ()

    @abstractmethod
    def said(self, problem: Problem, measured: Mapping[Subnet, float]) -> str:
        """How far a search is, in a few words."""

    def search(self, problem: Problem, starts: Sequence[Candidate] = (), seed: int = 0) -> Found:
        import optuna

        began = self.clock()
        sampler = self.sampler(problem, self.landscape or Plain(problem))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=self.storage, study_name=self.study, sampler=sampler, load_if_exists=self.study is not None,
            directions=["minimize"] * (1 + len(self.aims(problem))),
        )  # fmt: skip
        sampler.start(_starts(problem, starts), self.crew)
        self._report(study, sampler)  # what it goes on with
        self._next(study, sampler, began)
        while sampler.waiting:
            self._measure(study, sampler)
            spent = self.clock() - began
            self._report(study, sampler)
            if spent < self.seconds:
                self._next(study, sampler, began)
        self.crew.joined()
        for number in self.crew.gone():
            sampler.fail(study, self.crew.names[number])
        self._report(study, sampler)
        measured = _within(problem, sampler.measured(study))
        found = [Candidate(subnet, loss, source) for subnet, (loss, source) in measured.items()]
        trace = {
            "solver": self.solver,
            "trials": len(measured),
            "slopes": sampler.slopes,
            "seconds": round(self.clock() - began, 3),
        }
        return Found(tuple(sorted(found, key=lambda one: one.loss)), trace)

    def _next(self, study: optuna.Study, sampler: WaitingSampler, began: float) -> None:
        """New proposals wait. Where there are none, for those that others' results open, until nobody has any."""
        while True:
            for number in self.crew.gone():
                sampler.take_over(study, self.crew, number)
            sampler.prepare(study)
            if sampler.waiting:
                self.crew.works()
                return
            if self.crew.all_rest() or self.clock() - began >= self.seconds:
                return
            time.sleep(LOOK_AGAIN_S)

    def _measure(self, study: optuna.Study, sampler: WaitingSampler) -> None:
        """Everything that waits, as trials of the study."""
        from optuna.trial import TrialState

        begun: dict[int, Subnet] = {}
        try:
            with unbroken():
                begun |= self._begun(study, sampler)
            losses = sampler.landscape.losses(list(begun.values())) if begun else []
            aims = self.aims(sampler.problem)
            with unbroken():
                for number, loss in zip(list(begun), losses, strict=True):
                    study.tell(number, [loss, *(aim.amount(begun[number]) for aim in aims)])
                    del begun[number]
        except BaseException:
            with unbroken():  # others may try them, now and not in ten minutes
                for number in begun:
                    study.tell(number, state=TrialState.FAIL)
            raise

    def _begun(self, study: optuna.Study, sampler: WaitingSampler) -> dict[int, Subnet]:
        """What waits as running trials, by their numbers, but for proposals that another worker has begun meanwhile.
        Each is written whole: `ask` writes every parameter by itself, and a model has hundreds."""
        from optuna.trial import TrialState, create_trial

        while sampler.waiting:
            source = sampler.waiting[0][1]
            parameters = sampler.proposed()
            subnet = sampler.subnet(parameters)
            study.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params=parameters,
                    distributions=sampler.distributions,
                    user_attrs={SOURCE: source, WORKER: self.crew.name},
                    constraints={one.name: one.amount(subnet) - one.limit for one in sampler.problem.resources},
                )
            )
        begun = {}
        for trial in sampler.running(study, self.crew.name):
            if sampler.begun_before(study, trial):
                study.tell(trial.number, state=TrialState.FAIL)
            else:
                begun[trial.number] = sampler.subnet(trial.params)
        return begun

    def _report(self, study: optuna.Study, sampler: WaitingSampler) -> None:
        measured = _within(sampler.problem, sampler.measured(study))
        if measured:
            self.show(self.said(sampler.problem, {subnet: loss for subnet, (loss, _) in measured.items()}))


def _within(problem: Problem, measured: Mapping[Subnet, tuple[float, str]]) -> dict[Subnet, tuple[float, str]]:
    """Those that keep the limits, which may be others than a study began with."""
    return {subnet: one for subnet, one in measured.items() if problem.feasible(subnet)}


def _starts(problem: Problem, starts: Sequence[Candidate]) -> list[tuple[Subnet, str]]:
    """Those within the limits, or where there are none what loses least in sum."""
    from planner.search.program import solve

    within = [(start.subnet, start.source) for start in starts if problem.feasible(start.subnet)]
    alone = None if within else solve(problem.space, problem.loss, problem.resources)
    return within if alone is None else [(alone.subnet, "the sum")]
