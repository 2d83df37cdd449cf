"""The first stage of planning: what is asked of one device as a problem that a search can solve."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from planner.bands import KL_LIMIT
from planner.costs import Costs
from planner.request import Budget, Workload
from planner.runtimes.base import FLOAT, Runtime
from planner.scenario import PlanSource, Scenario
from planner.search.base import Problem
from planner.shortage import readable
from profiles.device import DeviceProfile
from records.errors import InputError
from supernet.sensitivity_table import SensitivityTable
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import ModelSpec, UnitSpec
from supernet.ties import apart, fused_role, tied_space, together

DEPTHS = 4
"""Units of one role are priced in this many stretches of depth."""


@dataclass(frozen=True)
class Framed:
    """A scenario and the problem that it is: in the units of the costs' spec, of which some are several of the
    supernet's where the runtime ties them.

    `limits` are what is planned to: the budget, or less where the device has less. `dropped` are choices that the
    runtime cannot load, and why; `notes` what a reader must know by now. `cache_losses` is what keys and values lose
    beside what a subnet loses, by the types of cache of which that is known.
    """

    scenario: Scenario
    costs: Costs
    limits: Budget
    problem: Problem
    dropped: Mapping[str, str]
    notes: tuple[str, ...] = ()
    cache_losses: Mapping[str, float] = field(default_factory=dict)

    @property
    def cache_kl(self) -> float | None:
        """What keys and values lose as the workload has them kept; None where that is not known."""
        return self.cache_losses.get(self.scenario.runtime.cache(self.scenario.workload).name)

    @property
    def most(self) -> Budget:
        """The budget with all memory that the runtime may have of the device and of its host."""
        asked, hosted = self.scenario, self.limits.host_memory_bytes is not None
        whole = replace(asked.budget, memory_bytes=sys.maxsize, host_memory_bytes=None)
        return limits_on(whole, asked.device, hosted, asked.runtime, asked.workload.gpus)[0]

    def tied(self, subnet: Subnet) -> Subnet:
        """A subnet of the supernet in the problem's units. InputError where units differ that the runtime ties."""
        return together(subnet, self.costs.spec, self.scenario.runtime.name)

    def apart(self, subnet: Subnet) -> Subnet:
        """A subnet of the problem in the supernet's units."""
        return apart(subnet, self.costs.spec, self.scenario.files.spec)


def frame(scenario: Scenario) -> Framed:
    """What is left to be decided is the weights alone: the workload says all else. InputError for a device, a model,
    adapters or a context that the runtime cannot serve, and for sensitivities of other weights."""
    files, runtime, device, workload = scenario.files, scenario.runtime, scenario.device, scenario.workload
    refusal = runtime.device_refusal(device)
    if refusal is not None:
        got = "" if device.name in refusal else f", got {device.name}"
        raise InputError(f"{refusal}{got}; plan for another --device")
    if workload.batch > runtime.most_sequences:
        most = f"{runtime.name} serves {runtime.most_sequences} sequences at once at most"
        raise InputError(f"{most}, got a batch of {workload.batch}; use a smaller --batch")
    if workload.gpus > 1 and device.shares_memory:
        raise InputError(f"{device.name} has one GPU, got --gpus {workload.gpus}; plan for another --device")
    _check_timed(runtime, device)
    space, dropped = check_servable(files, scenario.table, runtime, workload.gpus)
    workload.check(files.spec)
    _check_placement(runtime, files.spec, workload, device)
    limits, notes = limits_on(
        scenario.budget, device, bool(runtime.placements(files.spec, device)), runtime, workload.gpus
    )
    costs = Costs.of(runtime, files.spec, workload, device, files.model_dir)
    costs.latency(Subnet(tuple((unit, choices[0]) for unit, choices in space)))  # refuses a device of unknown speed
    losses = scenario.table.tied(costs.spec).by_choice
    problem = Problem(space, losses, costs.resources(space, limits), groups=_groups(costs.spec))
    return Framed(scenario, costs, limits, problem, dropped, (*notes, *_unpriced(files, runtime)))


def _check_timed(runtime: Runtime, device: DeviceProfile) -> None:
    """InputError where a device was timed with another build than packages run in: its kernels are others."""
    for one in (device, device.host):
        if one is None or all(entry.runtime != runtime.name for entry in one.kernels.entries):
            continue
        for library, version in runtime.pinned.items():
            if (timed := one.kernels.versions.get(library, version)) != version:
                raise InputError(
                    f"{runtime.name} packages run in {library} {version}, {one.name} was timed with {timed}; "
                    "time it again with `bitfleet profile device`, or plan for another --device"
                )


def _check_placement(runtime: Runtime, spec: ModelSpec, workload: Workload, device: DeviceProfile) -> None:
    asked, numbers = workload.gpu_layers, runtime.placements(spec, device)
    if asked is None or asked in numbers:
        return
    if not numbers:
        raise InputError(f"{runtime.name} leaves no layers elsewhere on {device.name}, got --gpu-layers {asked}")
    can = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"all {numbers[0]}; name the others' --host"
    raise InputError(f"{runtime.name} puts layers of {spec.name} on {device.name}: {can}, got --gpu-layers {asked}")


def placed(framed: Framed, gpu_layers: int) -> Framed:
    """The same with so many layers on the GPU."""
    workload = replace(framed.scenario.workload, gpu_layers=gpu_layers)
    costs = framed.costs.serving(workload)
    problem = replace(framed.problem, resources=costs.resources(framed.problem.space, framed.limits))
    return replace(framed, scenario=framed.scenario.serving(workload), costs=costs, problem=problem)


def _unpriced(files: PlanSource, runtime: Runtime) -> tuple[str, ...]:
    """What the predicted loss leaves out. Supernets of before do not know what rounded activations cost."""
    if runtime.activations != FLOAT and runtime.activations not in files.activations:
        cost = f"what {runtime.activations} activations cost this model was not measured"
        return (f"{cost}: `verify` tells, or train again",)
    return ()


def beside_kl(framed: Framed) -> float:
    """Nats a token that the runtime's rounding of activations, keys and values costs, by itself; 0 where that is
    unknown."""
    activations = framed.scenario.files.activations.get(framed.scenario.runtime.activations, 0.0)
    return activations + (framed.cache_kl or 0.0)


def renamed(framed: Framed, device: DeviceProfile) -> Framed:
    """The same for a `device` that differs in its name alone."""
    scenario, hosted = framed.scenario, framed.limits.host_memory_bytes is not None
    taken = hosted, scenario.runtime, scenario.workload.gpus
    before, now = (limits_on(scenario.budget, one, *taken)[1] for one in (scenario.device, device))
    notes = dict(zip(before, now, strict=True))
    return replace(
        framed,
        scenario=replace(scenario, device=device),
        costs=replace(framed.costs, device=device),
        notes=tuple(notes.get(line, line) for line in framed.notes),
    )


def check_servable(
    files: PlanSource, table: SensitivityTable, runtime: Runtime, gpus: int = 1
) -> tuple[SearchSpace, dict[str, str]]:
    """What `runtime` can load of a supernet, and what it cannot with the reason: `loadable`. InputError where no device
    could be served."""
    if files.deploys not in runtime.deploys:
        raise InputError(
            f"{runtime.name} runs adapters folded into {' or '.join(runtime.deploys)}, those of {files.path} deploy "
            f"as a {files.deploys} path, which it would run slowly; train with --adapter scales"
        )
    lost = files.activations.get(runtime.activations, 0.0)
    if lost > KL_LIMIT:
        raise InputError(
            f"{runtime.name} multiplies activations as {runtime.activations}, which by itself costs {files.spec.name} "
            f"{lost:.3g} nats a token, and a package may be off by {KL_LIMIT:.3g}: a few channels are far larger than "
            "the rest; train with a larger --awq, which evens them out, or plan for another --runtime"
        )
    space, dropped = loadable(files.space, files.spec, runtime, gpus)
    table.tied(runtime.tied(files.spec)).check(space, files.fingerprint)
    return space, dropped


def loadable(
    space: SearchSpace, spec: ModelSpec, runtime: Runtime, gpus: int = 1
) -> tuple[SearchSpace, dict[str, str]]:
    """`space` in the units of `spec` as `runtime` ties them, without what it cannot load, divided over so many GPUs,
    and the reason for each choice that a unit lost."""
    spec = runtime.tied(spec)
    space = tied_space(space, spec)
    holding = runtime.holding(spec)
    refusal = holding.refusal()
    if refusal is not None:
        raise InputError(f"{runtime.name} cannot load {spec.name}: {refusal}")
    if (refusal := holding.split_refusal(gpus)) is not None:
        raise InputError(f"{runtime.name} cannot divide {spec.name} over {gpus} GPUs: {refusal}; use another --gpus")

    def lost(unit: UnitSpec, choice: Choice) -> str | None:
        return holding.unit_refusal(unit, choice) or holding.part_refusal(unit, choice, gpus)

    refusals = {(u, c): lost(spec.unit(u), c) for u, choices in space for c in choices}
    dropped: dict[str, str] = {}
    for (unit, choice), reason in refusals.items():
        if reason is not None:
            role = spec.unit(unit).role
            dropped.setdefault(f"{choice} of {role}", reason)
    for unit, choices in space:
        if all(refusals[unit, c] for c in choices):
            raise InputError(
                f"{runtime.name} loads none of the choices of {unit} ({refusals[unit, choices[0]]}); "
                f"train a supernet with other --bits or --group-size{' or use another --gpus' if gpus > 1 else ''}"
            )
    return space.restrict(lambda unit, choice: refusals[unit, choice] is None), dropped


def limits_on(
    budget: Budget, device: DeviceProfile, hosted: bool, runtime: Runtime, gpus: int = 1
) -> tuple[Budget, tuple[str, ...]]:
    """The budget, or what the device has where that is less, or what the `runtime` takes of it, and a note that says
    so; likewise of its host, where the runtime leaves it some layers (`hosted`)."""
    memory, notes = _at_most(budget.memory_bytes, device)
    if memory > (taken := max(1, runtime.usable_bytes(device, gpus))):
        said = readable("bytes", taken, math.floor)
        memory, notes = taken, (f"{runtime.name} takes at most {said} of {device.name} unasked: planned for that",)
    if device.host is None:
        return replace(budget, memory_bytes=memory, host_memory_bytes=None), notes
    if not hosted:
        unused = f"this runtime has the whole model on {device.name}: no layer of it is left to {device.host.name}"
        return replace(budget, memory_bytes=memory, host_memory_bytes=None), (*notes, unused)
    host, more = _at_most(budget.host_memory_bytes or device.host.usable_bytes, device.host)
    return replace(budget, memory_bytes=memory, host_memory_bytes=host), notes + more


def _at_most(asked: int, device: DeviceProfile) -> tuple[int, tuple[str, ...]]:
    usable = max(1, device.usable_bytes)
    if asked <= usable:
        return asked, ()
    has = "has" if device.available_bytes is None else "has available"
    said, less = readable("bytes", asked), readable("bytes", usable, math.floor)
    note = f"the memory budget of {said} exceeds the {less} that {device.name} {has}: planned for {less}"
    return usable, (note,)


def _groups(spec: ModelSpec) -> dict[str, str]:
    """Unit -> units that are alike: one role, one stretch of depth. Siblings are alike where nothing ties them, too:
    prices of groups are searched for, and the more groups there are, the less is found."""
    depth = {u.name: 0 if u.layer is None else u.layer * DEPTHS // spec.num_layers for u in spec.units}
    return {u.name: f"{fused_role(u.role)} {depth[u.name]}" for u in spec.units}
