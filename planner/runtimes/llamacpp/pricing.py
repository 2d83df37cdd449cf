"""What a subnet costs in llama.cpp."""

from __future__ import annotations

from planner.runtimes.base import LatencyItem, MemoryItem, Pricing
from planner.runtimes.llamacpp import latency, memory
from supernet.space import Subnet


class LlamaPricing(Pricing):
    """From the device's profile where it was measured, else from what others published."""

    def memory(self, subnet: Subnet) -> tuple[MemoryItem, ...]:
        return memory.items(self.spec, subnet, self.workload, self.device)

    def latency(self, subnet: Subnet, phase: str) -> tuple[LatencyItem, ...]:
        return latency.items(self.spec, subnet, self.workload, self.device, phase)
