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
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from optuna import Study

from planner.search.base import Problem, Resource, Table
from planner.search.program import solve
from planner.search.study import Landscape
from planner.search.waiting import TOGETHER, WaitingSampler
from supernet.space import Subnet

LONGEST, AGAIN, SHORTEST = 32, 16, 2
"""Units that a step moves at most: the first from a subnet, the first with slopes on other text, and the last; each is
half as long as the one before."""
BASES = 4
"""Steps start from one of so many of the best."""
MOST_KEPT = 2**16
"""Bytes of an attribute that every storage of Optuna can keep."""


class StepSampler(WaitingSampler):
    """Proposes steps from the best subnet that has any left.

    Of several at one study, each worker begins with slopes of its own: on other text than those before it, and from
    another of the best subnets where there are more workers than samples of text.
    """

    def __init__(self, problem: Problem, landscape: Landscape, name: str, worker: int = 0) -> None:
        super().__init__(problem, landscape, name, worker)
        self._bases: dict[Subnet, _Base] = {}

    def more(self, study: Study, measured: Mapping[Subnet, float], known: Collection[Subnet]) -> list[Subnet]:
        best = sorted(measured, key=measured.__getitem__)[:BASES]
        first = self.worker // self.landscape.samples % max(1, len(best))
        for base in best[first:] + best[:first]:
            found = self._steps(study, self._bases.setdefault(base, _Base(base)), known)
            if found:
                return found
        return []

    def _steps(self, study: Study, base: _Base, known: Collection[Subnet]) -> list[Subnet]:
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
