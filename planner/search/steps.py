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

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from planner.search.base import Problem, Resource, Table
from planner.search.measured import SOURCE, Landscape, MeasuredSearch
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


class StepSampler(BaseSampler):
    """Proposes what waits: first what it was given, then steps from the best subnet that has any left."""

    def __init__(self, problem: Problem, landscape: Landscape) -> None:
        self.problem, self.landscape = problem, landscape
        self.distributions: dict[str, BaseDistribution] = {
            "+".join(units): CategoricalDistribution(["+".join(map(str, option)) for option in options])
            for units, options in problem.space.blocks
        }
        self.waiting: list[tuple[Subnet, str]] = []
        self.slopes = 0  # that were taken
        self._bases: dict[Subnet, _Base] = {}

    def wait(self, subnet: Subnet, source: str) -> None:
        self.waiting.append((subnet, source))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
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
        """Every subnet that was measured, by whichever process, with its loss and who proposed it."""
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return {self.subnet(one.params): (one.values[0], one.user_attrs[SOURCE]) for one in trials}

    def prepare(self, study: Study) -> None:
        """Forget what waits and was measured; where nothing is left, let new steps wait. None do where no subnet has
        any left."""
        measured = self.measured(study)
        self.waiting = [(subnet, source) for subnet, source in self.waiting if subnet not in measured]
        if self.waiting:
            return
        known = {*measured, *self._running(study)}
        for base in sorted(measured, key=lambda subnet: measured[subnet][0])[:BASES]:
            state = self._bases.setdefault(base, _Base(base))
            self.waiting = [(step, MeasuredSearch.name) for step in self._steps(state, known)]
            if self.waiting:
                return

    def _running(self, study: Study) -> list[Subnet]:
        """What other processes measure now."""
        started = datetime.now() - FORGOTTEN
        trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        young = (one for one in trials if one.datetime_start is not None and one.datetime_start > started)
        return [self.subnet(one.params) for one in young if len(one.params) == len(self.distributions)]

    def _steps(self, base: _Base, known: set[Subnet]) -> list[Subnet]:
        """Up to `TOGETHER` new steps, long ones first; none where all are known down to the shortest."""
        found: list[Subnet] = []
        moved = self._moved(base.subnet)
        while len(found) < TOGETHER:
            if base.longest < SHORTEST:
                if found or base.sample + 1 >= self.landscape.samples:
                    break
                base.again()
            if base.costs is None:
                base.costs = self._linearized(base)
            moves = Resource("moves", "units", float(base.longest), 0.0, moved)
            solved = solve(self.problem.space, base.costs, (*self.problem.resources, moves))
            base.longest //= 2
            if solved is not None and solved.subnet not in known and solved.subnet not in found:
                found.append(solved.subnet)
        return found

    def _linearized(self, base: _Base) -> Table:
        """What every choice adds to the loss of the base."""
        self.slopes += 1
        slopes, loss, now = self.landscape.slopes(base.subnet, base.sample), self.problem.loss, base.subnet
        table: dict[str, dict[Any, float]] = {}
        for unit, choices in self.problem.space:
            known, left = slopes.get(unit, {}), loss[unit][now[unit]]
            added = {c: known[c] + loss[unit][c] + left if c in known else loss[unit][c] - left for c in choices}
            table[unit] = added | {now[unit]: 0.0}
        return table

    def _moved(self, base: Subnet) -> Table:
        """1 for every choice that the base does not have."""
        return {unit: {c: float(c != base[unit]) for c in choices} for unit, choices in self.problem.space}


@dataclass
class _Base:
    """A subnet that steps start from: how long the next one is, and the slopes there, from one sample of text."""

    subnet: Subnet
    longest: int = LONGEST
    sample: int = 0
    costs: Table | None = None

    def again(self) -> None:
        self.longest, self.sample, self.costs = AGAIN, self.sample + 1, None
