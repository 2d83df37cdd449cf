"""What subnets cost on one runtime, device and workload: as resources for a search, and in full for one subnet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from planner.bands import MEMORY, TPOT, TTFT, bands
from planner.latency import LatencyEstimate, estimate_latency
from planner.memory import MemoryEstimate, estimate_memory
from planner.plan import Compared
from planner.request import Budget, Workload
from planner.runtimes.base import Runtime
from planner.search.base import Resource
from profiles.device import DeviceProfile
from supernet.space import Choice, SearchSpace, Subnet
from supernet.spec import ModelSpec


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
        return int(sum(amount for _, amount in self._disk_items(subnet)))

    def resources(self, space: SearchSpace, limits: Budget) -> tuple[Resource, ...]:
        """What `limits` limit, memory first, read off full estimates: every unit at its first choice, then the next.

        Each amount is with its band, so that what is measured keeps the limit as well as the promise.
        """
        memory, tpot, ttft, disk = _Parts(space), _Parts(space), _Parts(space), _Parts(space)
        for number in range(max(len(choices) for _, choices in space)):
            subnet = Subnet(tuple((unit, choices[min(number, len(choices) - 1)]) for unit, choices in space))
            latency = self.latency(subnet)
            memory.add(subnet, [(item.unit, item.bytes) for item in self.memory(subnet).items])
            tpot.add(subnet, [(item.unit, item.ms) for item in latency.decode])
            ttft.add(subnet, [(item.unit, item.ms) for item in latency.prefill])
            disk.add(subnet, self._disk_items(subnet))
        parts = (
            (MEMORY, "bytes", limits.memory_bytes, memory),
            (TPOT, "ms", limits.tpot_ms, tpot),
            (TTFT, "ms", limits.ttft_ms, ttft),
            ("disk", "bytes", limits.disk_bytes, disk),
        )
        over = bands(self.device)
        limited = [(name, unit, limit, p.times(1 + over.get(name, 0.0))) for name, unit, limit, p in parts if limit]
        return tuple(Resource(name, unit, limit, p.constant, p.table) for name, unit, limit, p in limited)

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

    def _disk_items(self, subnet: Subnet) -> list[tuple[str | None, float]]:
        fixed = self.runtime.fixed_disk_bytes(self.spec, self.workload)
        units = [(u.name, self.runtime.disk_bytes(self.spec, u, subnet[u.name])) for u in self.spec.units]
        return [(None, fixed), *units]


class _Parts:
    """Items of full estimates, by the unit and choice that they are of; those of no unit are the constant."""

    def __init__(self, space: SearchSpace) -> None:
        self.table: dict[str, dict[Choice, float]] = {unit: {} for unit, _ in space}
        self.constant = 0.0

    def times(self, factor: float) -> _Parts:
        self.constant *= factor
        self.table = {unit: {c: factor * amount for c, amount in known.items()} for unit, known in self.table.items()}
        return self

    def add(self, subnet: Subnet, items: Iterable[tuple[str | None, float]]) -> None:
        amounts: dict[str | None, float] = dict.fromkeys((None, *self.table), 0.0)
        for unit, amount in items:
            amounts[unit] += amount
        self.constant = max(self.constant, amounts[None])  # what little there is of loading goes as units grow
        for unit, choice in subnet:
            self.table[unit][choice] = amounts[unit]
