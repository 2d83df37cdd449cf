"""The subnet of a plan for another runtime: what it costs there, or why that cannot load it."""

from __future__ import annotations

from dataclasses import replace

from planner.choose import choose
from planner.decide import decide
from planner.frame import Framed
from planner.plan import Plan
from planner.propose import Proposed
from planner.runtimes.base import Runtime
from planner.scenario import PlanSource, Scenario
from planner.search.base import Candidate
from profiles.device import DeviceProfile
from records.errors import InputError
from supernet.sensitivity_table import SENSITIVITY_FILE, SensitivityTable


def replanned(files: PlanSource, made: Plan, runtime: Runtime, device: DeviceProfile) -> Plan:
    """The plan of the same subnet, device and workload for `runtime`, with what was measured of the subnet.

    The budget stays what it was; where the runtime takes more, a note says so. InputError where it cannot load the
    subnet, or does not run on the device.
    """
    table = SensitivityTable.load(files.path / SENSITIVITY_FILE)
    counts = runtime.placements(files.spec, device)  # another runtime may count no layers, or take them all
    workload = made.workload if made.workload.gpu_layers in counts else replace(made.workload, gpu_layers=None)
    framed = decide(Scenario(files, table, runtime, device, workload, made.budget))
    _check_loadable(framed, made)
    chosen = made.chosen
    proposed = Proposed(((chosen.kind, Candidate(made.subnet, chosen.predicted_kl, chosen.source)),), made.search)
    found = choose(framed, proposed, {made.subnet: chosen.measured} if chosen.measured else {}, made.command)
    subnet = framed.tied(made.subnet)
    over = [one.name for one in framed.problem.resources if one.amount(subnet) > one.limit]
    notes = (f"planned for {made.runtime}; takes more {' and '.join(over)} than its budget here",) if over else ()
    return replace(found, fingerprint=made.fingerprint, tuned=made.tuned, notes=(*found.notes, *notes))


def _check_loadable(framed: Framed, made: Plan) -> None:
    for unit, choice in framed.tied(made.subnet):
        if choice not in framed.problem.space[unit]:
            name, role = framed.scenario.runtime.name, framed.costs.spec.unit(unit).role
            why = framed.dropped.get(f"{choice} of {role}", "it is none of its choices")
            raise InputError(f"{name} cannot load {unit} at {choice}: {why}")
