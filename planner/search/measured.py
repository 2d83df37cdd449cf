"""Optuna over losses that are measured, each trial a step along the slope of the loss (`planner.search.steps`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.search.base import Problem
from planner.search.study import Landscape, StudySearch
from supernet.space import Subnet

if TYPE_CHECKING:
    from planner.search.steps import StepSampler


@dataclass(frozen=True)
class MeasuredSearch(StudySearch):
    """Steps from the best of what it has measured, until no step gets better."""

    name = "measured"
    solver = "Optuna, steps along the measured slope"

    def sampler(self, problem: Problem, landscape: Landscape) -> StepSampler:
        from planner.search.steps import StepSampler

        return StepSampler(problem, landscape, self.name, self.crew.number)

    def said(self, problem: Problem, measured: Mapping[Subnet, float]) -> str:
        return f"{len(measured)} subnets, KL {min(measured.values()):.4g} at best"
