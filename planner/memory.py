"""Peak memory of a subnet on a runtime, itemised; every item says where its number comes from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import cast

from planner.plan import MemoryRow, MemoryTable
from planner.runtimes.base import MemoryItem, Pricing, weakest
from supernet.space import Subnet


@dataclass(frozen=True)
class MemoryEstimate:
    """`total_bytes` is the sum of the items. `basis` is the weakest of theirs."""

    items: tuple[MemoryItem, ...]

    @property
    def total_bytes(self) -> int:
        return sum(item.bytes for item in self.items)

    @property
    def basis(self) -> str:
        return weakest(item.basis for item in self.items)

    def to_json(self) -> MemoryTable:
        items = [cast(MemoryRow, asdict(item)) for item in self.items]
        return {"total_bytes": self.total_bytes, "basis": self.basis, "items": items}


def estimate_memory(pricing: Pricing, subnet: Subnet) -> MemoryEstimate:
    """Peak memory of a process that loads the subnet's package and serves the workload on the device."""
    return MemoryEstimate(pricing.memory(subnet))
