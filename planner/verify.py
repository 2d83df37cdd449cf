"""What was promised of a package beside what is measured of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planner.package import KL_LIMIT, MEMORY_TOLERANCE, TPOT_TOLERANCE, TTFT_TOLERANCE, Package, open_package
from planner.runtimes.base import ESTIMATE, Progress, Runtime

KL_WINDOWS, KL_TOKENS = 4, 128


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

    FileNotFoundError or ValueError where there is no whole package to measure.
    """
    report = progress or (lambda what, share: None)
    package = open_package(path)
    report("checking files", 0.0)
    package.check_files()
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
    plan = package.plan
    found = runtime.measure(package.path, plan.workload)
    yield _within("peak memory", "bytes", plan.chosen.memory_bytes, found.peak_bytes, MEMORY_TOLERANCE)
    note = f"the promise is an estimate for {plan.device['name']}" if plan.latency["basis"] == ESTIMATE else ""
    yield _within("time to first token", "ms", plan.chosen.ttft_ms, found.ttft_ms, TTFT_TOLERANCE, note)
    yield _within("time per token", "ms", plan.chosen.tpot_ms, found.tpot_ms, TPOT_TOLERANCE, note)


def _within(name: str, unit: str, promised: float, measured: float, tolerance: float, unsure: str = "") -> Row:
    """A row that holds up to the tolerance; where the promise was never more than an estimate, neither way."""
    holds = None if unsure else measured <= promised * (1 + tolerance)
    return Row(name, unit, promised, measured, tolerance, holds, unsure)


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

    windows = files.reference().windows[:KL_WINDOWS, :KL_TOKENS]
    model = extract(files.load(), package.plan.subnet)
    packaged = runtime.logits(package.path, windows.numpy())
    total = 0.0
    for window, theirs in zip(windows, packaged, strict=True):
        with torch.no_grad():
            ours = model(window[None]).logits[0].double().log_softmax(-1)
        difference = ours - torch.from_numpy(theirs).double().log_softmax(-1)
        total += float((ours.exp() * difference).sum())
    return total / windows.numel(), windows.numel()
