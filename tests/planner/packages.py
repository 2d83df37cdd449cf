"""A tiny real package, and what it is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.costs import Costs
from planner.package import Package, write_package
from planner.plan import Plan
from planner.request import Budget, Workload
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from profiles.device import DeviceProfile
from supernet.checkpoint import SupernetFiles
from supernet.space import Subnet
from tests.planner.runtime_fixtures import RoundedModel, mixed, save_tiny

RUNTIME = OnnxRuntime()
DEVICE = DeviceProfile(
    name="test", kind="cpu", vendor="test", model="test", memory_bytes=2**34, measured=False, source="test",
    date="2026-01-01", threads=1, bandwidth_bytes_per_s=2e10, bandwidth_basis="datasheet", int8_ops_per_s=1e12,
)  # fmt: skip


def tiny_plan(
    files: RoundedModel | SupernetFiles, workload: Workload | None = None, subnet: Subnet | None = None, **changes: Any
) -> Plan:
    workload, subnet = workload or Workload(128, 1, 32), subnet or mixed(files.spec)
    costs = Costs.of(RUNTIME, files.spec, workload, DEVICE, files.model_dir)
    made = Plan(
        supernet=str(files.path), fingerprint=files.fingerprint, model={"name": "tiny"}, runtime=RUNTIME.name,
        device={"name": "test", "threads": 1}, workload=workload, budget=Budget(10**9), limits=Budget(10**9),
        compared=(costs.compared("planned", "test", subnet, 0.1),), memory=costs.memory(subnet),
        latency=costs.latency(subnet), search=(), dropped={}, notes=(), versions={}, date="2026-01-01",
    )  # fmt: skip
    return replace(made, **changes)


def tiny_package(
    folder: Path, family: str = "llama", workload: Workload | None = None, others: tuple[str, ...] = ()
) -> Package:
    """`others` are the names of further devices that it is for."""
    files = RoundedModel(save_tiny(family, folder / "model"))
    plan = tiny_plan(files, workload)
    plans = {name: replace(plan, device={"name": name, "threads": 1}) for name in others}
    return write_package(RUNTIME, files, plan, folder / "package", others=plans)
