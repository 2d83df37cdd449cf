"""What subnets cost on one runtime, device and workload: as resources for a search, and in full for one subnet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from planner.latency import LatencyEstimate, estimate_latency
from planner.memory import MemoryEstimate, estimate_memory
from planner.plan import Compared
from planner.request import Budget, Workload
from planner.runtimes.base import Runtime
from planner.search.base import Resource
from profiles.device import DeviceProfile
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import ModelSpec, UnitSpec


@dataclass(frozen=True)
class Costs:
    """The runtime's arithmetic with everything fixed but the subnet."""

    runtime: Runtime
    spec: ModelSpec
    workload: Workload
    device: DeviceProfile

    def memory(self, subnet: Subnet) -> MemoryEstimate:
        return estimate_memory(self.runtime, self.spec, subnet, self.workload, self.device)

    def latency(self, subnet: Subnet) -> LatencyEstimate:
        return estimate_latency(self.runtime, self.spec, subnet, self.workload, self.device)

    def disk_bytes(self, subnet: Subnet) -> int:
        units = sum(self.runtime.disk_bytes(self.spec, unit, subnet[unit.name]) for unit in self.spec.units)
        return units + self.runtime.fixed_disk_bytes(self.spec, self.workload)

    def resources(self, space: SearchSpace, limits: Budget) -> tuple[Resource, ...]:
        """What `limits` limit, memory first: what each choice adds, and what is left of one full estimate."""
        subnet = Subnet(tuple((unit, choices[0]) for unit, choices in space))
        latency = self.latency(subnet)
        rows = self.workload.batch * self.workload.prompt_tokens
        parts: tuple[tuple[str, str, float | None, float, Callable[[UnitSpec, Choice], float]], ...] = (
            ("memory", "bytes", limits.memory_bytes, self.memory(subnet).total_bytes, self._unit_bytes),
            ("tpot", "ms", limits.tpot_ms, latency.tpot_ms, lambda u, c: self._unit_ms(u, c, self.workload.batch)),
            ("ttft", "ms", limits.ttft_ms, latency.ttft_ms, lambda u, c: self._unit_ms(u, c, rows)),
            ("disk", "bytes", limits.disk_bytes, self.disk_bytes(subnet), self._unit_disk_bytes),
        )
        resources = []
        for name, unit, limit, total, cost in parts:
            if limit is not None:
                table = {u.name: {choice: cost(u, choice) for choice in space[u.name]} for u in self.spec.units}
                constant = total - sum(table[u][choice] for u, choice in subnet)
                resources.append(Resource(name, unit, limit, constant, table))
        return tuple(resources)

    def compared(self, kind: str, source: str, subnet: Subnet, predicted_kl: float, **measured: Any) -> Compared:
        latency = self.latency(subnet)
        return Compared(
            kind=kind,
            source=source,
            subnet=subnet,
            mean_bits=round(subnet.mean_bits(self.spec), 4),
            memory_bytes=self.memory(subnet).total_bytes,
            disk_bytes=self.disk_bytes(subnet),
            tpot_ms=latency.tpot_ms,
            ttft_ms=latency.ttft_ms,
            predicted_kl=predicted_kl,
            **measured,
        )

    def _unit_bytes(self, unit: UnitSpec, choice: Choice) -> float:
        return self.runtime.unit_memory_bytes(self.spec, unit, choice, self.device)

    def _unit_disk_bytes(self, unit: UnitSpec, choice: Choice) -> float:
        return self.runtime.disk_bytes(self.spec, unit, choice)

    def _unit_ms(self, unit: UnitSpec, choice: Choice, rows: int) -> float:
        return self.runtime.unit_ms(self.spec, unit, choice, rows, self.device).ms
