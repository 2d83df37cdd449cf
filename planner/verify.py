"""What was promised of a package, and what the user limited, beside what is measured of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from planner.answers import NOT_RUN, against_model, against_supernet, beside, from_proof
from planner.limits import MEMORY, TPOT, TTFT
from planner.package import Package, open_package
from planner.plan import Plan
from planner.probes import PROBES, check_probes
from planner.rows import BROKEN, HOLDS, PEAK_HOST_MEMORY, PEAK_MEMORY, SLOW, Row, row, unchecked
from planner.runtimes.base import ESTIMATE, Progress, Runtime
from planner.runtimes.child import Measurement, fastest
from planner.runtimes.engine import Engine

TRIES, PAUSE_S = 3, 3.0  # a promise of time is broken only if it is broken so often, so far apart
PROVES = (
    "what this proves: the files are those of this manifest, and the numbers were measured now; not who made them, "
    "and a forger of the files can forge the proof"
)


@dataclass(frozen=True)
class VerifyReport:
    package: str
    rows: tuple[Row, ...]

    @property
    def broken(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.verdict == BROKEN)

    @property
    def unchecked(self) -> tuple[Row, ...]:
        """What was promised and could not be checked: the result is incomplete."""
        return tuple(row for row in self.rows if row.open)

    @property
    def holds(self) -> bool:
        return not self.broken

    @property
    def verdict(self) -> str:
        """The last line: what follows of all rows."""
        if self.broken:
            return f"broken: {', '.join(row.name for row in self.broken)}"
        if self.unchecked:
            names = ", ".join(row.name for row in self.unchecked)
            return f"incomplete: {names} could not be checked, all else holds (--allow-unchecked takes that for enough)"
        return "every promise holds"

    def to_json(self) -> dict[str, Any]:
        rows = [{**asdict(row), "holds": row.holds} for row in self.rows]
        return {
            "package": self.package,
            "holds": self.holds,
            "complete": not self.unchecked,
            "proves": PROVES,
            "rows": rows,
        }


def verify(
    runtime: Runtime, path: Path, progress: Progress | None = None, supernet: str | None = None,
    against: str | None = None, trust_remote_code: bool = False, device: str | None = None, elsewhere: bool = False,
    others: Sequence[tuple[Runtime, Package]] = (),
) -> VerifyReport:  # fmt: skip
    """Check a package's files, load it in fresh processes, measure it, and hold its answers against its proof.

    With `supernet` its logits are compared with those of the subnet in that folder too, in full; with `against` those
    of the original model, a folder, file or name, which a supernet made from another model would not pass. Both need
    torch. `device` names one of the package's devices, whose promises are held; `elsewhere` says that this machine is
    none of them, and its times hold nothing. `others` are checked packages of the same subnet that it is
    compared with. InputError where there is no whole package to measure, or none that may be loaded.
    """
    report = progress or (lambda what, share: None)
    package = open_package(path)
    if device is not None:
        package = package.promised_to(device)
    report("checking files", 0.0)
    package.check(runtime)
    rows = [Row("files", "count", len(package.files), len(package.files), note="SHA-256 of each as written")]
    rows.append(_disk(runtime, package))
    report("serving the workload in a fresh process", 0.1)
    rows += served(runtime, package, elsewhere)
    report("comparing answers with the proof", 0.4)
    rows += from_proof(runtime, package)
    report("comparing tokens with the model's own", 0.5)
    rows += check_probes(runtime, package.path, PROBES in package.files)
    if supernet is not None:
        report("comparing logits with the supernet", 0.6)
        rows.append(against_supernet(runtime, package, supernet, trust_remote_code))
    if against is not None:
        report("comparing logits with the original model", 0.8)
        rows += against_model(runtime, package, against, trust_remote_code)
    for other_runtime, other in others:
        report(f"comparing answers with {other.path.name}", 0.9)
        rows.append(beside(runtime, package, other_runtime, other))
    return VerifyReport(str(path), tuple(rows))


def _disk(runtime: Runtime, package: Package) -> Row:
    promised, limit = package.plan.chosen.disk_bytes, package.plan.budget.disk_bytes
    measured = sum((package.path / name).stat().st_size for name in runtime.packages.weight_files)
    found = row("weights on disk", "bytes", promised, measured, 0.0, limit)
    return found if measured == promised else replace(found, verdict=BROKEN, note="not the planned size")


def served(runtime: Runtime, package: Package, elsewhere: bool = False) -> Iterator[Row]:
    """Memory and times of the workload, measured in fresh processes."""
    plan, engine = package.plan, runtime.engine()
    server = None if engine is None else engine.server(package.path)
    if engine is None or server is None:
        command, chosen = runtime.packages.command(package.path, plan.workload, plan.share), plan.chosen
        note = f"{_unserved(runtime, engine)}: {command}"
        yield unchecked(PEAK_MEMORY, "bytes", chosen.memory_bytes, note)
        if chosen.host_bytes is not None:
            yield unchecked(PEAK_HOST_MEMORY, "bytes", chosen.host_bytes, note)
        yield unchecked("time per token", "ms", chosen.tpot_ms, note)
        return
    found, tries = server.measure(plan.workload), 1
    while not elsewhere and tries < TRIES and any(row.verdict == BROKEN for row in _times(package, found)):
        time.sleep(PAUSE_S)  # whatever else the machine does only ever adds: what is busy now may not be then
        found = fastest((found, server.measure(plan.workload)))
        tries += 1
    peak, longest = found.peak_bytes, server.longest_peak_bytes(plan.workload)
    note = "" if longest <= peak else "with the longest prompt"
    band, limit = plan.bands[MEMORY], plan.budget.memory_bytes
    yield row(PEAK_MEMORY, "bytes", plan.chosen.memory_bytes, max(peak, longest), band, limit, note)
    times = list(_times(package, found))
    if elsewhere:
        yield from (replace(one, verdict=None, promises=False, note="of another machine") for one in times)
        return
    slower = _slower(engine, plan) if any(row.verdict == BROKEN for row in times) else 1.0
    for one in times:
        yield _excused(replace(one, note=one.note or (f"the fastest of {tries} tries" if tries > 1 else "")), slower)


def _unserved(runtime: Runtime, engine: Engine | None) -> str:
    if engine is None:
        return NOT_RUN.format(runtime.name)
    return f"bitfleet runs {runtime.name} here, but not as its devices do"


def _slower(engine: Engine, plan: Plan) -> float:
    """How many times as long the kernels that the plan keeps of its device take now."""
    timer, kernels = engine.timer(), plan.device.get("kernels", [])
    return 1.0 if timer is None else timer.slower(kernels, plan.device.get("last_level_cache_bytes"))


def _times(package: Package, found: Measurement) -> Iterator[Row]:
    """An estimate is no promise: it neither holds nor breaks. What the user limited is limited all the same."""
    plan, chosen = package.plan, package.plan.chosen
    sure = plan.latency.basis != ESTIMATE
    for name, key, promised, measured, limit in (
        ("time to first token", TTFT, chosen.ttft_ms, found.ttft_ms, plan.budget.ttft_ms),
        ("time per token", TPOT, chosen.tpot_ms, found.tpot_ms, plan.budget.tpot_ms),
    ):
        if math.isnan(measured):
            yield Row(name, "ms", promised, None, note="the context has no room for a second token", promises=False)
        else:
            made = row(name, "ms", promised, measured, plan.bands[key] if sure else None, limit)
            yield made if sure else replace(made, note=f"{promised:.3g} ms is an estimate for {plan.device['name']}")


def _excused(found: Row, slower: float) -> Row:
    """A promise that is over by no more than the machine is slower now than when it was profiled is not checked. What
    the user limited is limited however slow the machine is."""
    if found.verdict != BROKEN or found.measured is None or slower < 1 + SLOW:
        return found
    said = f"this machine is {slower - 1:.0%} slower than when it was profiled (another load, or profile it again)"
    if found.limit is not None and found.measured > found.limit:
        return replace(found, note=f"over the limit; {said}")
    if row(found.name, found.unit, found.promised, found.measured / slower, found.band).verdict == HOLDS:
        return replace(found, verdict=None, note=said)
    return replace(found, note=said)
