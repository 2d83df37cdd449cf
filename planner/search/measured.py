"""Optuna over losses that are measured, each trial a step along the slope of the loss (`planner.search.steps`).

A study may be kept in any of Optuna's storages, go on another day, and be worked on by several processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from planner.search.base import Candidate, Found, Problem, Search, Table
from supernet.space import Subnet

if TYPE_CHECKING:
    import optuna

    from planner.search.steps import StepSampler


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


SOURCE = "source"  # who proposed a trial, among its attributes


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
class MeasuredSearch(Search):
    """Measures the starts, and steps from the best for `seconds`, or until no step gets better.

    Losses of what is found are the measured ones. Without a start within the limits it starts where the
    problem's sum is least. Steps are solved for and not drawn: `seed` changes nothing.
    """

    name = "measured"
    seconds: float = 60.0
    landscape: Landscape | None = None
    """None for the problem's own losses."""
    storage: Any = None
    """Where the study is kept: one of Optuna's storages, or its address; None for memory."""
    study: str | None = None
    """Its name there, which goes on with what it has."""
    clock: Callable[[], float] = time.monotonic

    def search(self, problem: Problem, starts: Sequence[Candidate] = (), seed: int = 0) -> Found:
        import optuna

        from planner.search.program import solve
        from planner.search.steps import StepSampler

        began = self.clock()
        landscape = self.landscape or Plain(problem)
        sampler = StepSampler(problem, landscape)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=self.storage, study_name=self.study, sampler=sampler, load_if_exists=self.study is not None
        )
        for start in starts:
            if problem.feasible(start.subnet):
                sampler.wait(start.subnet, start.source)
        if not sampler.waiting:
            alone = solve(problem.space, problem.loss, problem.resources)
            if alone is not None:
                sampler.wait(alone.subnet, "the sum")
        sampler.prepare(study)
        while sampler.waiting:
            self._measure(problem, landscape, study, sampler)
            if self.clock() - began < self.seconds:
                sampler.prepare(study)
        measured = sampler.measured(study)
        found = [Candidate(subnet, loss, source) for subnet, (loss, source) in measured.items()]
        trace = {
            "solver": "Optuna, steps along the measured slope",
            "trials": len(measured),
            "slopes": sampler.slopes,
            "seconds": round(self.clock() - began, 3),
        }
        return Found(tuple(sorted(found, key=lambda one: one.loss)), trace)

    def _measure(self, problem: Problem, landscape: Landscape, study: optuna.Study, sampler: StepSampler) -> None:
        """Everything that waits, as trials of the study."""
        trials = []
        for _, source in tuple(sampler.waiting):
            trials.append(study.ask(sampler.distributions))
            trials[-1].set_user_attr(SOURCE, source)
        subnets = [sampler.subnet(trial.params) for trial in trials]
        for trial, subnet, loss in zip(trials, subnets, landscape.losses(subnets), strict=True):
            for resource in problem.resources:
                trial.set_constraint(resource.name, resource.amount(subnet) - resource.limit)
            study.tell(trial, loss)
