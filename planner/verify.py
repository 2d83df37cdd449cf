"""What was promised of a package beside what is measured of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from planner.package import KL_LIMIT, MEMORY_TOLERANCE, TPOT_TOLERANCE, TTFT_TOLERANCE, Package, open_package
from planner.plan import Compared
from planner.runtimes.base import ESTIMATE, Progress, Runtime

KL_WINDOWS, KL_TOKENS = 4, 128
TRIES, PAUSE_S = 3, 3.0  # a promise of time is broken only if it is broken so often, so far apart


@dataclass(frozen=True)
class Row:
    """One promise. `holds` is None where it could not be checked, and `note` says why.

    `measured` must not exceed `promised` by more than the share `tolerance`; less than promised is kept as well.
    """

    name: str
    unit: str
    promised: float | None
    measured: float | None
    tolerance: float
    holds: bool | None
    note: str = ""


@dataclass(frozen=True)
class VerifyReport:
    package: str
    rows: tuple[Row, ...]

    @property
    def holds(self) -> bool:
        return all(row.holds is not False for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        return {"package": self.package, "holds": self.holds, "rows": [asdict(row) for row in self.rows]}


def verify(runtime: Runtime, path: Path, progress: Progress | None = None) -> VerifyReport:
    """Check a package's files, load it in a fresh process, measure it, and compare its logits with the supernet's.

    InputError where there is no whole package to measure, or none that may be loaded.
    """
    report = progress or (lambda what, share: None)
    package = open_package(path)
    report("checking files", 0.0)
    package.check(runtime)
    rows = [Row("files", "count", len(package.files), len(package.files), 0.0, True, "SHA-256 of each as written")]
    rows.append(_disk(runtime, package))
    report("serving the workload in a fresh process", 0.2)
    rows += _served(runtime, package)
    report("comparing logits with the supernet", 0.5)
    rows.append(_divergence(runtime, package))
    return VerifyReport(str(path), tuple(rows))


def _disk(runtime: Runtime, package: Package) -> Row:
    promised = package.plan.chosen.disk_bytes
    measured = sum((package.path / name).stat().st_size for name in runtime.weight_files())
    return Row("weights on disk", "bytes", promised, measured, 0.0, measured == promised)


def _served(runtime: Runtime, package: Package) -> Iterator[Row]:
    plan, chosen = package.plan, package.plan.chosen
    sure = plan.latency["basis"] != ESTIMATE
    found, tries = runtime.measure(package.path, plan.workload), 1
    while sure and tries < TRIES and any(row.holds is False for row in _times(chosen, found)):
        time.sleep(PAUSE_S)  # whatever else the machine does only ever adds: what is busy now may not be then
        again = runtime.measure(package.path, plan.workload)
        found = replace(again, ttft_ms=min(found.ttft_ms, again.ttft_ms), tpot_ms=min(found.tpot_ms, again.tpot_ms))
        tries += 1
    yield _within("peak memory", "bytes", chosen.memory_bytes, found.peak_bytes, MEMORY_TOLERANCE)
    for row in _times(chosen, found):
        if row.measured is None:
            yield replace(row, note="the context has no room for a second token")
        elif sure:
            yield replace(row, note=f"the fastest of {tries} tries" if tries > 1 else "")
        else:  # never more than an estimate: it neither holds nor breaks
            yield replace(row, holds=None, note=f"the promise is an estimate for {plan.device['name']}")


def _times(chosen: Compared, found: Any) -> tuple[Row, Row]:
    return (
        _within("time to first token", "ms", chosen.ttft_ms, found.ttft_ms, TTFT_TOLERANCE),
        _within("time per token", "ms", chosen.tpot_ms, found.tpot_ms, TPOT_TOLERANCE),
    )


def _within(name: str, unit: str, promised: float, measured: float, tolerance: float) -> Row:
    if math.isnan(measured):
        return Row(name, unit, promised, None, tolerance, None)
    return Row(name, unit, promised, measured, tolerance, measured <= promised * (1 + tolerance))


def _divergence(runtime: Runtime, package: Package) -> Row:
    """KL per token from the supernet's subnet in float32 to the package, on the supernet's held-out text."""
    from supernet.checkpoint import open_supernet

    name, unit = "KL to the supernet", "nats/token"
    source = package.plan.supernet
    try:
        files = open_supernet(source)
    except (FileNotFoundError, ValueError):
        return Row(name, unit, KL_LIMIT, None, 0.0, None, f"skipped: no supernet at {source}")
    if files.fingerprint != package.plan.fingerprint:
        return Row(name, unit, KL_LIMIT, None, 0.0, None, f"skipped: the supernet at {source} has changed since")
    measured, tokens = divergence(runtime, package, files)
    return Row(name, unit, KL_LIMIT, measured, 0.0, measured <= KL_LIMIT, f"over {tokens} tokens")


def divergence(runtime: Runtime, package: Package, files: Any) -> tuple[float, int]:
    """(KL per token in nats, tokens)."""
    import torch

    from supernet.build import extract

    windows = files.reference().windows[:KL_WINDOWS, : min(KL_TOKENS, package.plan.workload.context)]
    model = extract(files.load(), package.plan.subnet)
    packaged = runtime.logits(package.path, windows.numpy())
    total = 0.0
    for window, theirs in zip(windows, packaged, strict=True):
        with torch.no_grad():
            ours = model(window[None]).logits[0].double().log_softmax(-1)
        difference = ours - torch.from_numpy(theirs).double().log_softmax(-1)
        total += float((ours.exp() * difference).sum())
    return total / windows.numel(), windows.numel()
