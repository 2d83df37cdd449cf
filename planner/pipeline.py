"""The stages joined: supernet, device and request in; a plan out. Nothing here imports torch."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from itertools import chain, product
from pathlib import Path
from typing import Any, Protocol, cast

from planner.bands import BANDS, QUICK, TPOT, bands, is_quick
from planner.costs import Costs
from planner.plan import PLANNED, UNIFORM, Compared, DeviceSummary, Plan
from planner.quality import (
    SENSITIVITY_FILE,
    Measure,
    Measured,
    SensitivityTable,
    as_quality,
    measured_on,
    predicted_from,
)
from planner.request import Budget, Workload
from planner.runtimes.base import Progress, Runtime
from planner.search.base import Candidate, Found, Problem, ranked
from planner.search.depth import around, split
from planner.search.exact import ExactSearch
from planner.search.optuna_search import OptunaSearch
from planner.shortage import budget_error, readable
from profiles.detect import Skipped, detect
from profiles.device import DeviceProfile
from profiles.kernels import KernelEntry, KernelTable
from records.errors import InputError
from supernet.space import SearchSpace, Subnet
from supernet.spec import ModelSpec

TRIALS = 400
TOP = 2
DEPTHS = 4
"""Units of one role are priced in this many stretches of depth."""
APART = 0.05
"""Finalists differ in at least this share of the units: closer ones cannot be told apart by measuring."""


class Supernet(Protocol):
    """What planning reads of an open supernet."""

    @property
    def path(self) -> Path: ...
    @property
    def deploys(self) -> str: ...
    @property
    def spec(self) -> ModelSpec: ...
    @property
    def space(self) -> SearchSpace: ...
    @property
    def fingerprint(self) -> str: ...


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
    spec, refusal = files.spec, _refusal(runtime, device)
    if refusal is not None:
        raise InputError(f"{refusal}, got {device.name}; plan for another --device")
    if files.deploys not in runtime.deploys:
        raise InputError(
            f"{runtime.name} runs adapters folded into {' or '.join(runtime.deploys)}, those of {files.path} deploy "
            f"as a {files.deploys} path, which it would run slowly; train with --adapter scales"
        )
    workload.check(spec)
    space, dropped = loadable(files.space, spec, runtime)
    table = SensitivityTable.load(files.path / SENSITIVITY_FILE)
    table.check(space, files.fingerprint)
    limits, notes = _limits(budget, device)
    costs = Costs(runtime, spec, workload, device)
    problem = Problem(space, table.by_choice, costs.resources(space, limits), groups=_groups(spec))
    uniforms = _uniforms(problem, spec)
    found = _search(problem, uniforms, trials, seed)
    if not found[-1].candidates:
        raise budget_error(problem, budget, device.name)
    near = _near_the_mean(problem, spec, found[-1].candidates[0].subnet)
    finalists = _finalists(found[-1].candidates, near, uniforms, top)
    compared = _compare(costs, finalists, measure)
    best = compared[0]
    return Plan(
        supernet=str(files.path),
        fingerprint=files.fingerprint,
        model=_summary(spec),
        runtime=runtime.name,
        device=_device(device),
        workload=workload,
        budget=budget,
        limits=limits,
        compared=compared,
        memory=costs.memory(best.subnet).to_json(),
        latency=costs.latency(best.subnet).to_json(),
        search=tuple(f.trace for f in found),
        dropped=dropped,
        notes=(
            *notes,
            *_verdict(compared),
            *measured_on(compared[0].measured),
            *predicted_from(table),
            *_basis(device),
        ),
        versions={"python": platform.python_version(), **_versions("scipy", "optuna"), **device.kernels.versions},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        bands=dict(bands(device)),
    )


def loadable(space: SearchSpace, spec: ModelSpec, runtime: Runtime) -> tuple[SearchSpace, dict[str, str]]:
    """`space` without what `runtime` cannot load, and the reason for each choice that a unit lost."""
    refusal = runtime.model_refusal(spec)
    if refusal is not None:
        raise InputError(f"{runtime.name} cannot load {spec.name}: {refusal}")
    refusals = {(u, c): runtime.refusal(spec, spec.unit(u), c) for u, choices in space for c in choices}
    dropped: dict[str, str] = {}
    for (unit, choice), reason in refusals.items():
        if reason is not None:
            role = spec.unit(unit).role
            dropped.setdefault(f"{choice} of {role}", reason)
    for unit, choices in space:
        if all(refusals[unit, c] for c in choices):
            raise InputError(
                f"{runtime.name} loads none of the choices of {unit} ({refusals[unit, choices[0]]}); "
                "train a supernet with other --bits or --group-size"
            )
    return space.restrict(lambda unit, choice: refusals[unit, choice] is None), dropped


def _limits(budget: Budget, device: DeviceProfile) -> tuple[Budget, tuple[str, ...]]:
    """The budget, or what the device has where that is less, and a note that says so."""
    usable = device.usable_bytes
    if budget.memory_bytes <= usable:
        return budget, ()
    has = "has" if device.available_bytes is None else "has available"
    asked, less = readable("bytes", budget.memory_bytes), readable("bytes", usable, math.floor)
    note = f"the memory budget of {asked} exceeds the {less} that {device.name} {has}: planned for {less}"
    return replace(budget, memory_bytes=usable), (note,)


def _groups(spec: ModelSpec) -> dict[str, str]:
    """Unit -> units that are alike: one role, one stretch of depth."""
    depth = {u.name: 0 if u.layer is None else u.layer * DEPTHS // spec.num_layers for u in spec.units}
    return {u.name: f"{u.role} {depth[u.name]}" for u in spec.units}


def _uniforms(problem: Problem, spec: ModelSpec) -> tuple[Candidate, ...]:
    """Every linear at one bit-width, embedding and head at any one choice each: those within the limits, best first."""
    tables = [unit.name for unit in spec.units if unit.is_table]
    proposals = []
    for bits in problem.space.bits(spec):
        for choices in product(*(problem.space[name] for name in tables)):
            subnet = problem.space.uniform(spec, bits)
            for name, choice in zip(tables, choices, strict=True):
                subnet = subnet.replace(name, choice)
            proposals.append((subnet, f"uniform {bits} bits"))
    return ranked(problem, proposals)


def _search(problem: Problem, uniforms: Sequence[Candidate], trials: int, seed: int) -> tuple[Found, ...]:
    """The exact solution of the additive problem, then Optuna from there; the last one's candidates hold all."""
    exact = ExactSearch().search(problem, uniforms, seed)
    if not exact.candidates or trials < 1:
        return (exact,)
    return exact, OptunaSearch(trials=trials).search(problem, exact.candidates, seed)


def _near_the_mean(problem: Problem, spec: ModelSpec, best: Subnet) -> Iterator[Candidate]:
    """Subnets of the two bit-widths around the mean of `best`: split at a depth, and the exact solution among them.

    Losses add worst where bit-widths far apart meet, and where they change often: on SmolLM2 such subnets measured best
    at every average although they are never predicted to be (docs/log.md).
    """
    near = around(problem.space.bits(spec), best.mean_bits(spec))
    if near is None:
        return
    cut = split(problem, spec, *near, base=best)
    if cut is not None:
        yield Candidate(cut, problem.value(cut), f"{near[0]} and {near[1]} bits, split at a depth")
    tables = {unit.name for unit in spec.units if unit.is_table}
    if all(unit in tables or choice.bits in near for unit, choice in best):
        return  # `best` is that solution
    space = problem.space.restrict(lambda unit, choice: unit in tables or choice.bits in near)
    for candidate in ExactSearch().search(replace(problem, space=space)).candidates:
        yield replace(candidate, source=f"{candidate.source}, near the mean")


def _finalists(
    candidates: Sequence[Candidate], near: Iterable[Candidate], uniforms: Sequence[Candidate], top: int
) -> list[tuple[str, Candidate]]:
    """The best of all, those `near` its mean and the next best mixed candidates, `top` that differ enough to be told
    apart; and the best uniform one, whatever its rank.

    Where a uniform subnet is expected to be best of all, no mixed one is worth measuring.
    """
    known = {candidate.subnet for candidate in uniforms}
    best = [(UNIFORM, candidate) for candidate in uniforms[:1]]
    if candidates[0].subnet in known:
        return best
    kept: list[Candidate] = []
    for candidate in chain(candidates[:1], near, candidates[1:]):
        if len(kept) == top:
            break  # before another one near the mean is solved for
        least = max(1, round(APART * len(candidate.subnet.items)))
        distinct = all(_distance(candidate.subnet, other.subnet) >= least for other in kept)
        if distinct and candidate.subnet not in known:
            kept.append(candidate)
    return [(PLANNED, candidate) for candidate in kept] + best


def _distance(a: Subnet, b: Subnet) -> int:
    """Units that differ."""
    return sum(a[unit] != choice for unit, choice in b)


def _compare(costs: Costs, finalists: Sequence[tuple[str, Candidate]], measure: Measure | None) -> tuple[Compared, ...]:
    """The finalists with all their numbers, best first: by what they were measured to lose, else by prediction."""
    subnets = [candidate.subnet for _, candidate in finalists]
    measured: Sequence[Any] = [{} for _ in subnets] if measure is None else measure(subnets)
    compared = [
        costs.compared(
            kind, candidate.source, candidate.subnet, candidate.loss, measured=cast(Measured, as_quality(quality))
        )
        for (kind, candidate), quality in zip(finalists, measured, strict=True)
    ]
    return tuple(sorted(compared, key=lambda c: c.measured.get("kl", c.predicted_kl)))


def _verdict(compared: Sequence[Compared]) -> Iterator[str]:
    """Whether searching was worth it here, in a line."""
    best, uniform = compared[0], next((c for c in compared if c.kind == UNIFORM), None)
    planned = next((c for c in compared if c.kind == PLANNED), None)
    if not best.measured:
        yield "quality is predicted from sensitivities, nothing was measured for this plan"
        return
    if uniform is None:
        yield "no uniform subnet fits this budget"
    elif planned is None:
        yield f"the best subnet for this budget is {uniform.source}"
    elif best.kind == UNIFORM:
        loss, other = best.measured["kl"], planned.measured["kl"]
        yield f"{best.source} measured best and was chosen: KL {loss:.4g}, the best mixed subnet {other:.4g}"
    else:
        loss, other = best.measured["kl"], uniform.measured["kl"]
        yield f"KL {loss:.4g} measured, against {other:.4g} of {uniform.source} within the same budget"


def _basis(device: DeviceProfile) -> Iterator[str]:
    if not device.measured:
        yield f"{device.name} was not measured: memory overheads and latency are estimates from {device.source}"
    elif is_quick(device):
        yield (
            f"{device.name} was profiled quickly ({len(device.kernels.entries)} products): time per token is promised "
            f"within {QUICK[TPOT]:.0%}, {BANDS[TPOT]:.0%} after `bitfleet profile device`, which is worth its minutes"
        )


def _summary(spec: ModelSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "architecture": spec.architecture,
        "layers": spec.num_layers,
        "units": len(spec.units),
        "linear_weights": spec.linear_weights,
        "max_context": spec.max_context,
        "tied": spec.tied,
    }


def _device(device: DeviceProfile) -> DeviceSummary:
    names = ("name", "kind", "model", "measured", "source", "date", "threads", "memory_bytes", "usable_bytes")
    again = {"last_level_cache_bytes": device.last_level_cache_bytes, "kernels": _timed_again(device)}
    return cast(DeviceSummary, {name: getattr(device, name) for name in names} | again)


def _timed_again(device: DeviceProfile) -> list[KernelEntry]:
    """Two kernels of the profile, of one row and more than a cache holds in a model: what `verify` times again, to tell
    a machine that is slower now from a promise that was wrong."""
    known = [
        e for e in device.kernels.entries if e.rows == 1 and e.threads == device.threads and e.out_features < 2**14
    ]
    found: list[KernelEntry] = []
    for bits in (4, 8):
        of = [entry for entry in known if entry.bits == bits]
        found += sorted(of, key=lambda entry: entry.in_features * entry.out_features)[-1:]
    return found


def _versions(*names: str) -> dict[str, str]:
    return {name: metadata.version(name) for name in names}


def profile_device(
    device: str, runtime: Runtime, quick: bool = False, progress: Progress | None = None
) -> tuple[DeviceProfile, tuple[Skipped, ...]]:
    """Probe a device of this machine and time `runtime` on it: its products, and what it costs beyond them.

    `device` as in `profiles.detect.detect`. Returns the profile, and the devices that were passed over with the reason.
    A device that the runtime does not run on is probed alone, and only when it is asked for by name.
    """
    report = progress or (lambda what, share: None)
    report("probing the device", 0.0)
    profile, skipped = detect(device, refuse_gpu=lambda gpu: _refusal(runtime, gpu) if device == "auto" else None)
    if _refusal(runtime, profile) is not None:
        return profile, skipped
    profile = replace(profile, threads=runtime.best_threads(profile))
    entries = runtime.measure_kernels(profile, quick, lambda what, share: report(f"timing products, {what}", share))
    kernels = KernelTable(tuple(entries), datetime.now(UTC).date().isoformat(), runtime.versions())
    profile = replace(profile, kernels=kernels)
    found = runtime.calibrate(profile, lambda what, share: report(f"timing small models, {what}", share))
    return replace(profile, calibrations=found), skipped


def _refusal(runtime: Runtime, device: DeviceProfile) -> str | None:
    kinds = runtime.device_kinds
    return None if device.kind in kinds else f"{runtime.name} runs on {' and '.join(kinds)}, not on {device.kind}"
