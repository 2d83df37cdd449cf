"""Optuna's sampler that steps along the slope of a measured loss.

Sensitivities add up losses that were told apart at the full model, and the exact program solves that sum. But losses do
not add: in a mixture units make up for each other's errors or make them worse. So the loss is linearized where the best
subnet stands (`supernet.slopes`). With each unit's own curvature from its sensitivities, a change of choice adds

    slope of the change + loss of the choice that is left + loss of the choice that comes

and the exact program is solved again with at most so many units moving. What comes true is a third to a tenth of what
is predicted (docs/log.md), so steps are short, several lengths are measured, and the next step starts where that was
best. Its kin, RCO and GAMMA, relax the choices where this solves for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from planner.search.base import Problem, Resource, Table
from planner.search.crew import Crew
from planner.search.measured import SOURCE, WORKER, Landscape, MeasuredSearch
from planner.search.program import solve
from supernet.space import Subnet

LONGEST, AGAIN, SHORTEST = 32, 16, 2
"""Units that a step moves at most: the first from a subnet, the first with slopes on other text, and the last; each is
half as long as the one before."""
BASES = 4
"""Steps start from one of so many of the best."""
TOGETHER = 3
"""Steps that are measured together: the full model's part is computed once for them."""
FORGOTTEN = timedelta(minutes=10)
"""A trial that runs for longer was left by a process that is gone, and its subnet may be tried again."""
MOST_KEPT = 2**16
"""Bytes of an attribute that every storage of Optuna can keep."""


class StepSampler(BaseSampler):
    """Proposes what waits: first what it was given, then steps from the best subnet that has any left.

    Of several at one study, each `worker` begins with slopes of its own: on other text than those before it, and from
    another of the best subnets where there are more workers than samples of text.
    """

    def __init__(self, problem: Problem, landscape: Landscape, worker: int = 0) -> None:
        self.problem, self.landscape, self.worker = problem, landscape, worker
        self.options = {
            "+".join(units): ["+".join(map(str, option)) for option in options]
            for units, options in problem.space.blocks
        }
        self.distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(options) for name, options in self.options.items()
        }
        self.starts: list[tuple[Subnet, str]] = []
        self.waiting: list[tuple[Subnet, str]] = []
        self.slopes = 0  # that were taken
        self._bases: dict[Subnet, _Base] = {}

    def start(self, starts: Sequence[tuple[Subnet, str]], crew: Crew) -> None:
        """Let this worker's part of the starts wait. Nobody steps from one before all are measured."""
        self.starts = list(starts)
        self.waiting += crew.part(self.starts)

    def wait(self, subnet: Subnet, source: str) -> None:
        self.waiting.append((subnet, source))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.proposed()

    def proposed(self) -> dict[str, Any]:
        """The parameters of what waits longest, which does no more."""
        subnet, _ = self.waiting.pop(0)
        blocks = zip(self.distributions, self.problem.space.blocks, strict=True)
        return {name: "+".join(str(subnet[unit]) for unit in units) for name, (units, _) in blocks}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise ValueError(f"a parameter is one of the space's blocks, got {param_name}")

    def subnet(self, parameters: Mapping[str, Any]) -> Subnet:
        numbers = (self.distributions[name].to_internal_repr(parameters[name]) for name in self.distributions)
        return self.problem.space.at([int(number) for number in numbers])

    def measured(self, study: Study) -> dict[Subnet, tuple[float, str]]:
        """Every subnet that was measured, by whichever process, with its loss and who proposed it. What else a study
        holds, from another version or by another hand, is passed over."""
        trials = filter(self._ours, study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        return {self.subnet(one.params): (one.values[0], one.user_attrs[SOURCE]) for one in trials}

    def _ours(self, trial: FrozenTrial) -> bool:
        values, options = trial.params, self.options
        return (
            isinstance(trial.user_attrs.get(SOURCE), str)
            and values.keys() == options.keys()
            and all(values[name] in options[name] for name in options)
        )

    def prepare(self, study: Study) -> None:
        """Forget what waits and was measured; where nothing is left, let new steps wait. None do where no subnet has
        any left."""
        measured = self.measured(study)
        self.waiting = [(subnet, source) for subnet, source in self.waiting if subnet not in measured]
        if self.waiting or any(subnet not in measured for subnet, _ in self.starts):
            return
        known = {*measured, *(self.subnet(trial.params) for trial in self.running(study))}
        best = sorted(measured, key=lambda subnet: measured[subnet][0])[:BASES]
        first = self.worker // self.landscape.samples % max(1, len(best))
        for base in best[first:] + best[:first]:
            state = self._bases.setdefault(base, _Base(base))
            self.waiting = [(step, MeasuredSearch.name) for step in self._steps(study, state, known)]
            if self.waiting:
                return

    def running(self, study: Study, worker: str | None = None) -> list[FrozenTrial]:
        """What is measured now, by one `worker` or by anybody."""
        started = datetime.now() - FORGOTTEN
        trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        young = (one for one in trials if one.datetime_start is not None and one.datetime_start > started)
        mine = (one for one in young if worker is None or one.user_attrs.get(WORKER) == worker)
        return [one for one in mine if self._ours(one)]

    def begun_before(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether a step is that of an earlier trial: of two that propose it at once, the first measures it."""
        if trial.user_attrs[SOURCE] != MeasuredSearch.name:
            return False
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [*self.running(study), *filter(self._ours, done)]
        return any(other.number < trial.number and other.params == trial.params for other in others)

    def fail(self, study: Study, worker: str) -> list[tuple[Subnet, str]]:
        """What a worker that is gone was at, which nobody measures now."""
        found = []
        for trial in self.running(study, worker):
            study.tell(trial.number, state=TrialState.FAIL)
            found.append((self.subnet(trial.params), trial.user_attrs[SOURCE]))
        return found

    def take_over(self, study: Study, crew: Crew, number: int) -> None:
        """Let what a worker was at wait here, and those of its starts that it never came to."""
        failed = self.fail(study, crew.names[number])
        self.waiting += failed + [one for one in crew.part(self.starts, number) if one not in failed]

    def _steps(self, study: Study, base: _Base, known: set[Subnet]) -> list[Subnet]:
        """Up to `TOGETHER` new steps, long ones first; none where all are known down to the shortest."""
        found: list[Subnet] = []
        moved = self._moved(base.subnet)
        while len(found) < TOGETHER:
            if base.longest < SHORTEST:
                if found or base.turn + 1 >= self.landscape.samples:
                    break
                base.again()
            if base.costs is None:
                base.costs = self._linearized(study, base)
            moves = Resource("moves", "units", float(base.longest), 0.0, moved)
            solved = solve(self.problem.space, base.costs, (*self.problem.resources, moves))
            base.longest //= 2
            if solved is not None and solved.subnet not in known and solved.subnet not in found:
                found.append(solved.subnet)
        return found

    def _linearized(self, study: Study, base: _Base) -> Table:
        """What every choice adds to the loss of the base."""
        slopes, loss, now = self._slopes(study, base), self.problem.loss, base.subnet
        table: dict[str, dict[Any, float]] = {}
        for unit, choices in self.problem.space:
            known, left = slopes.get(unit, {}), loss[unit][now[unit]]
            added = {c: known[c] + loss[unit][c] + left if c in known else loss[unit][c] - left for c in choices}
            table[unit] = added | {now[unit]: 0.0}
        return table

    def _slopes(self, study: Study, base: _Base) -> Table:
        """Of this worker's text, which the study keeps: others need not take them again, nor a later search."""
        sample = (base.turn + self.worker) % self.landscape.samples
        name = f"slopes {base.subnet.digest} {sample}"
        kept = study.user_attrs.get(name)
        if kept is None:
            self.slopes += 1
            found = self.landscape.slopes(base.subnet, sample)
            kept = {unit: {str(choice): slope for choice, slope in row.items()} for unit, row in found.items()}
            if len(json.dumps(kept)) < MOST_KEPT:
                study.set_user_attr(name, kept)
        space = self.problem.space
        return {unit: {c: row[str(c)] for c in space[unit] if str(c) in row} for unit, row in kept.items()}

    def _moved(self, base: Subnet) -> Table:
        """1 for every choice that the base does not have."""
        return {unit: {c: float(c != base[unit]) for c in choices} for unit, choices in self.problem.space}


@dataclass
class _Base:
    """A subnet that steps start from: how long the next one is, and the slopes there, from one sample of text; `turn`
    says which, the first of the worker's own."""

    subnet: Subnet
    longest: int = LONGEST
    turn: int = 0
    costs: Table | None = None

    def again(self) -> None:
        self.longest, self.turn, self.costs = AGAIN, self.turn + 1, None
