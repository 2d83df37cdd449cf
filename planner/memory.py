"""Peak memory of a subnet on a runtime, itemised; every item says where its number comes from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from planner.runtimes.base import DEVICE, HOST, MemoryItem, Pricing, weakest
from records.reading import as_record
from supernet.space import Subnet


@dataclass(frozen=True)
class MemoryEstimate:
    """`total_bytes` is the sum of the items on the device, `host_bytes` of those on its host. `basis` is the weakest of
    all."""

    items: tuple[MemoryItem, ...]

    @property
    def total_bytes(self) -> int:
        return sum(item.bytes for item in self.items if item.pool == DEVICE)

    @property
    def host_bytes(self) -> int:
        return sum(item.bytes for item in self.items if item.pool == HOST)

    @property
    def basis(self) -> str:
        return weakest(item.basis for item in self.items)

    def to_json(self) -> dict[str, Any]:
        items = [asdict(item) for item in self.items]
        return {"total_bytes": self.total_bytes, "basis": self.basis, "items": items}

    @classmethod
    def from_json(cls, data: Any) -> MemoryEstimate:
        """The sums are made anew from the items. InputError for anything that `to_json` did not write."""
        return cls(tuple(as_record(_Table, data, "an estimate of memory")["items"]))


class _Table(TypedDict):
    total_bytes: int
    basis: str
    items: list[MemoryItem]


def estimate_memory(pricing: Pricing, subnet: Subnet) -> MemoryEstimate:
    """Peak memory of a process that loads the subnet's package and serves the workload on the device."""
    return MemoryEstimate(pricing.memory(subnet))
