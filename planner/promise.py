"""What one more device is promised by a package: a package may serve several, and its plan is of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from planner.plan import DeviceSummary, Plan
from planner.request import Budget, Workload
from records.reading import as_record, check


@dataclass(frozen=True)
class Promise:
    """The numbers of a device's own plan that differ from those of the plan in the manifest."""

    device: DeviceSummary
    workload: Workload
    budget: Budget
    memory_bytes: int
    tpot_ms: float
    ttft_ms: float
    latency_basis: str
    bands: Mapping[str, float]
    host_bytes: int | None = None

    def __post_init__(self) -> None:
        check("memory_bytes", self.memory_bytes, int, least=1)
        check("host_bytes", self.host_bytes, int, optional=True, least=1)
        for name in ("tpot_ms", "ttft_ms"):
            check(name, getattr(self, name), float, least=0)

    @classmethod
    def of(cls, plan: Plan) -> Promise:
        chosen = plan.chosen
        return cls(
            plan.device, plan.workload, plan.budget, chosen.memory_bytes, chosen.tpot_ms, chosen.ttft_ms,
            plan.latency.basis, plan.bands, chosen.host_bytes,
        )  # fmt: skip

    def in_place_of(self, plan: Plan) -> Plan:
        """`plan` with these promises: what a check holds this device to."""
        chosen = replace(
            plan.chosen, memory_bytes=self.memory_bytes, tpot_ms=self.tpot_ms, ttft_ms=self.ttft_ms,
            host_bytes=self.host_bytes,
        )  # fmt: skip
        return replace(
            plan, device=self.device, workload=self.workload, budget=self.budget, compared=(chosen,),
            latency=plan.latency.resting_on(self.latency_basis), bands=self.bands,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        device = {**self.device, "kernels": [asdict(kernel) for kernel in self.device.get("kernels", [])]}
        return {**asdict(replace(self, device=DeviceSummary(name=""))), "device": device}

    @classmethod
    def from_json(cls, data: Any) -> Promise:
        return cast(Promise, as_record(cls, data, "a promise"))
