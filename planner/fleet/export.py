"""A fleet's packages in one folder, with an index of who takes which.

Every package appears whole, several are written at once where the memory allows it, and what is there already by its
content is not written again, so a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from planner.bands import bands
from planner.fleet.index import (
    INDEX,
    KIND,
    SUMS,
    Device,
    Index,
    Listed,
    Served,
    bits_text,
    loss_of,
    memory_of,
    sha256sums,
    slots_of,
)
from planner.fleet.page import PAGE
from planner.fleet.plan import FleetPlan, Member, Shared
from planner.package import (
    MANIFEST,
    Package,
    check_replaceable,
    open_package,
    promises_of,
    threads_of,
    write_manifest,
    write_package,
)
from planner.plan import Plan
from planner.runtimes.base import HOST, Progress, Runtime
from planner.runtimes.source import PackageSource
from profiles.cpu import profile_cpu
from profiles.device import DeviceProfile
from records.atomic import check_output, remove_left_over, sha256, write_text
from records.child import workers
from records.dates import made_now
from records.errors import InputError, SystemFailure
from records.lock import locked
from records.reading import read_json
from records.signals import stoppable
from supernet.spec import ModelSpec

LIBRARIES_BYTES, WEIGHTS = 700_000_000, 1.5  # what an export takes, and times the model's weights in bfloat16
"""Measured: benchmarks/half_billion.py."""
SERVED = ("context", "batch", "gpu_layers", "gpus")
"""What of a workload, beside the type of its cache, a package is made for."""
_NEXT = "give another --export"


@dataclass(frozen=True)
class Job:
    """A package to write in a process of its own."""

    supernet: str
    trust: bool
    runtime: Runtime
    plans: Mapping[str, Plan]
    out: Path
    threads: int


def check_folder(dist: Path) -> None:
    """InputError before the work unless an export can be written into `dist`: a free name, an older export, or a folder
    without files of an export's names."""
    if not dist.exists():
        check_output(dist, folder=True, next_step=_NEXT)
        return
    if not dist.is_dir():
        raise InputError(f"{dist} must be a folder or a free name, it is neither; {_NEXT}")
    for name in (INDEX, SUMS, PAGE):
        check_output(dist / name, next_step=_NEXT)
    odd = next((name for name in (INDEX, SUMS, PAGE) if (dist / name).exists()), None)
    if odd is not None and not _is_index(dist / INDEX):
        raise InputError(f"{dist / odd} is of no export and would be replaced; {_NEXT}")


def _is_index(path: Path) -> bool:
    try:
        return read_json(path, "index", _NEXT).get("kind") == KIND
    except InputError:
        return False


def check_names(planned: FleetPlan, dist: Path) -> None:
    """InputError before the work where a package could not appear in `dist`."""
    for package in planned.packages:
        check_output(dist / package.name, folder=True, next_step=_NEXT)
        check_replaceable(dist / package.name)


def write_packages(
    planned: FleetPlan, files: PackageSource, runtime_of: Callable[[str], Runtime], dist: Path,
    progress: Progress | None = None, waiting: Callable[[str], None] | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Write what is not in `dist` yet, in the fleet's order. Returns the names of what was written now.

    Errors are those of `planner.package.write_package`; what was finished stays. A package that another process is
    writing is waited for, which `waiting` is told; without it, that is an InputError.
    """
    report = progress or (lambda what, share: None)
    dist.mkdir(parents=True, exist_ok=True)
    todo = []
    for package in planned.packages:
        with locked(dist / package.name, "another export", waiting):
            if not _there(package, runtime_of(package.kind.runtime), dist / package.name):
                todo.append(package)
    remove_left_over(dist)
    done = len(planned.packages) - len(todo)
    report(f"exporting, {done} of {len(planned.packages)} packages", done / max(1, len(planned.packages)))
    if not todo:
        return ()
    machine = profile_cpu(measure_bandwidth=False)
    count = at_once(len(todo), weights_bytes(files.spec), machine)
    threads = max(1, (machine.threads or 1) // count)
    jobs = [
        Job(str(files.path), files.trusted, runtime_of(p.kind.runtime), p.plans, dist / p.name, threads) for p in todo
    ]

    def wrote(packages: int) -> None:
        report(f"exporting, {done + packages} of {len(planned.packages)} packages",
               (done + packages) / len(planned.packages))  # fmt: skip

    _run(jobs, count, wrote)
    return tuple(p.name for p in todo)


def _run(jobs: Sequence[Job], at_once: int, wrote: Callable[[int], None]) -> None:
    with workers(at_once) as pool:
        running: set[Future[None]] = {pool.submit(_export, job) for job in jobs}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for one in finished:
                try:
                    one.result()
                except BrokenProcessPool:
                    raise SystemFailure(
                        "a process that wrote a package was killed, which a system does where memory runs out; close "
                        "programs and run this again: it goes on"
                    ) from None
            wrote(len(jobs) - len(running))


def weights_bytes(spec: ModelSpec) -> int:
    """Of the model in bfloat16."""
    return 2 * (sum(unit.weights for unit in spec.units) + spec.float_parameters)


def at_once(packages: int, weights: int, machine: DeviceProfile) -> int:
    """How many exports `machine` has the memory for, at most one a core."""
    room = machine.usable_bytes // int(LIBRARIES_BYTES + WEIGHTS * weights)
    return max(1, min(packages, machine.threads or 1, room))


def _export(job: Job) -> None:
    with stoppable():  # what is half written goes
        import torch

        from supernet.checkpoint import open_supernet

        torch.set_num_threads(job.threads)
        files = open_supernet(job.supernet, trust_remote_code=job.trust)
        (_, plan), *others = job.plans.items()
        write_package(job.runtime, plan.opened(files), plan, job.out, others=dict(others))


def _there(package: Shared, runtime: Runtime, path: Path) -> bool:
    """Whether this package is there already, by what its files follow from and by their hashes. What it promises is
    brought up to date in its manifest."""
    plan, *others = package.plans.values()
    try:
        known = open_package(path)
        known.check(runtime)
    except InputError:
        return False
    same = (
        known.plan.fingerprint == plan.fingerprint
        and known.plan.subnet == package.subnet
        and all(getattr(known.plan.workload, name) == getattr(plan.workload, name) for name in SERVED)
        and runtime.cache(known.plan.workload) == runtime.cache(plan.workload)
        and threads_of([known.promised_to(name).plan for name in known.devices]) == threads_of([plan, *others])
        and dict(known.versions) == runtime.versions()
    )
    if not same:
        return False
    promises = promises_of(dict(list(package.plans.items())[1:]))
    if known.plan != plan.portable() or known.promises != promises:
        write_manifest(path, runtime, plan, promises, known.files)
    return True


def index_of(planned: FleetPlan, files: PackageSource, runtime_of: Callable[[str], Runtime], dist: Path) -> Index:
    """The index of what was written into `dist`, all slots open."""
    opened = {package.name: open_package(dist / package.name) for package in planned.packages}
    listed = {p.name: _listed(p, opened[p.name], files.spec) for p in planned.packages}
    takes = {member.wanted.name: p.name for p in planned.packages for member in p.members}
    served = {m.wanted.name: _served(m, takes.get(m.wanted.name)) for m in planned.members}
    slots = [
        slot
        for package in planned.packages
        for member in package.members
        for slot in slots_of(listed[package.name], served[member.wanted.name])
    ]
    first = next((member.plan for member in planned.members if member.plan is not None), None)
    versions: dict[str, str] = {}
    for name in sorted({package.kind.runtime for package in planned.packages}):
        versions |= runtime_of(name).versions()
    return Index(
        date=made_now(),
        supernet=files.fingerprint,
        model=first.model if first is not None else {"name": files.spec.name},
        max_loss=planned.max_loss,
        proven=planned.gap == 0,
        gap=planned.gap,
        versions=versions,
        packages=tuple(listed.values()),
        devices=tuple(served.values()),
        slots=tuple(slots),
    )


def write_sums(index: Index, dist: Path) -> None:
    write_text(dist / SUMS, sha256sums(dist, index))


def left_over(index: Index, dist: Path) -> tuple[str, ...]:
    """Packages in `dist` that the index does not list."""
    known = {package.name for package in index.packages}
    return tuple(sorted(path.parent.name for path in dist.glob(f"*/{MANIFEST}") if path.parent.name not in known))


def _listed(package: Shared, opened: Package, spec: ModelSpec) -> Listed:
    plan = next(iter(package.plans.values()))
    return Listed(
        name=package.name,
        runtime=package.kind.runtime,
        workload=plan.workload,
        manifest_sha256=sha256(opened.path / MANIFEST),
        bytes=sum(entry.bytes for entry in opened.files.values()) + (opened.path / MANIFEST).stat().st_size,
        files=opened.files,
        mean_bits=plan.chosen.mean_bits,
        disk_bytes=plan.chosen.disk_bytes,
        bits=bits_text(plan.subnet, spec),
        memory=memory_of(plan, spec),
        loss=loss_of(plan.chosen),
        devices=tuple(package.plans),
        host_memory=memory_of(plan, spec, HOST),
    )


def _served(member: Member, package: str | None) -> Served:
    wanted, plan = member.wanted, member.plan
    device = Device.of(replace(wanted.profile, name=wanted.name))
    if plan is None:
        return Served(wanted.name, device, wanted.runtime, wanted.budget, member.workload, None, member.refused)
    chosen = plan.chosen
    best = next(one for one in plan.compared if one.subnet == member.best)
    return Served(
        name=wanted.name,
        device=device,
        runtime=wanted.runtime,
        budget=wanted.budget,
        workload=member.workload,
        package=package,
        memory_bytes=chosen.memory_bytes,
        memory_basis=plan.memory.basis,
        tpot_ms=chosen.tpot_ms,
        ttft_ms=chosen.ttft_ms,
        latency_basis=plan.latency.basis,
        disk_bytes=chosen.disk_bytes,
        bands=dict(bands(wanted.profile, plan.runtime)),
        loss=loss_of(chosen),
        best_loss=loss_of(best),
        host_memory_bytes=chosen.host_bytes,
        layers=None if plan.placement is None else plan.placement["layers"],
    )
