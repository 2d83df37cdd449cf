"""Optuna over several objectives: loss as it is measured, and what a problem's aims take (`planner.search.lattice`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.limits import MEMORY, TPOT
from planner.search.base import Problem, Resource
from planner.search.fronts import Amounts, undominated
from planner.search.study import Landscape, StudySearch
from supernet.space import Subnet

if TYPE_CHECKING:
    from planner.search.lattice import LatticeSampler


@dataclass(frozen=True)
class FrontSearch(StudySearch):
    """Fills the front of the loss against the resources that are `named`: solves the exact program within those limits
    at which most is expected to be won. Values of a trial are the loss and the amounts of these resources, what a
    promise may be off by included.

    A study of one problem may go on within other limits: `first` are subnets that it begins with beside the starts,
    where they keep them.
    """

    name = "front"
    solver = "Optuna, exact solutions where the front wins most"
    named: tuple[str, ...] = (MEMORY, TPOT)
    first: Sequence[Subnet] = ()
    points: int = 300
    """Of limits that are looked at, at most; where all that lies there is measured, the search ends."""

    def sampler(self, problem: Problem, landscape: Landscape) -> LatticeSampler:
        from planner.search.lattice import LatticeSampler

        aims, number = self.aims(problem), self.crew.number
        return LatticeSampler(problem, landscape, self.name, aims, self.first, self.points, number)

    def aims(self, problem: Problem) -> tuple[Resource, ...]:
        return tuple(one for one in problem.resources if one.name in self.named)

    def amounts(self, problem: Problem, measured: Mapping[Subnet, float]) -> Amounts:
        """The values of trials."""
        aims = self.aims(problem)
        return {subnet: (loss, *(aim.amount(subnet) for aim in aims)) for subnet, loss in measured.items()}

    def said(self, problem: Problem, measured: Mapping[Subnet, float]) -> str:
        front = undominated(self.amounts(problem, measured))
        return f"{len(measured)} subnets, {len(front)} of them on the front, KL {min(measured.values()):.4g} at best"
