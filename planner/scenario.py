"""One scenario to plan for: a supernet that a runtime shall serve on a device, with a workload, within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from planner.request import Budget, Workload
from planner.runtimes.base import Runtime
from profiles.device import DeviceProfile
from supernet.sensitivity_table import SensitivityTable
from supernet.space import SearchSpace
from supernet.spec import ModelSpec


class PlanSource(Protocol):
    """What planning reads of an open supernet."""

    @property
    def path(self) -> Path: ...
    @property
    def model_dir(self) -> Path: ...
    @property
    def deploys(self) -> str: ...
    @property
    def activations(self) -> Mapping[str, float]: ...
    @property
    def spec(self) -> ModelSpec: ...
    @property
    def space(self) -> SearchSpace: ...
    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Scenario:
    """`table` is of the supernet in `files`. The `workload` says what is settled beside the weights, and may leave some
    of it open."""

    files: PlanSource
    table: SensitivityTable
    runtime: Runtime
    device: DeviceProfile
    workload: Workload
    budget: Budget

    def serving(self, workload: Workload) -> Scenario:
        """The same for another workload."""
        return replace(self, workload=workload)
