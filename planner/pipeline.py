"""The four stages of planning joined: frame, propose, measure, choose. Nothing here imports torch.

One device is a fleet of one: `planner.fleet` joins the same stages for many.
"""

from __future__ import annotations

from collections.abc import Iterable

from planner.choose import choose
from planner.frame import Supernet, frame
from planner.plan import Plan
from planner.propose import TOP, TRIALS, Proposed, propose
from planner.quality import Measure, Quality, as_quality
from planner.request import Budget, Workload
from planner.runtimes.base import Runtime
from planner.shortage import budget_error
from profiles.device import DeviceProfile
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable
from supernet.space import Subnet


def plan(
    files: Supernet,
    runtime: Runtime,
    device: DeviceProfile,
    workload: Workload,
    budget: Budget,
    measure: Measure | None = None,
    trials: int = TRIALS,
    seed: int = 0,
    top: int = TOP,
    command: str = "",
) -> Plan:
    """The subnet that loses least on `device` within `budget`, with its evidence.

    `measure` is given the finalists and the best uniform subnet, and returns what each loses on text that did not
    train; without it the predictions decide. Raises BudgetError when nothing meets the budget, InputError for a model
    or a context that cannot be served, MissingError without sensitivities.
    """
    workload.check(files.spec)
    table = SensitivityTable.load(files.path / SENSITIVITY_FILE)
    framed = frame(files, table, runtime, device, workload, budget)
    proposed = propose(framed.problem, files.spec, trials, seed, top)
    if not proposed.finalists:
        raise budget_error(framed.problem, budget, device.name)
    return choose(framed, proposed, measured([proposed], measure), command)


def measured(proposed: Iterable[Proposed], measure: Measure | None) -> dict[Subnet, Quality]:
    """What every distinct finalist was measured to lose: all in one call, which loads weights once. {} without
    `measure`."""
    subnets = list(dict.fromkeys(subnet for one in proposed for subnet in one.subnets))
    if measure is None or not subnets:
        return {}
    return dict(zip(subnets, map(as_quality, measure(subnets)), strict=True))
