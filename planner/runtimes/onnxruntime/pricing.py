"""What a subnet costs in ONNX Runtime."""

from __future__ import annotations

from planner.runtimes.base import LatencyItem, MemoryItem, Pricing
from planner.runtimes.onnxruntime import latency, memory
from supernet.space import Subnet


class OnnxPricing(Pricing):
    """On a CPU, from its profile where that was measured."""

    def memory(self, subnet: Subnet) -> tuple[MemoryItem, ...]:
        return memory.items(self.spec, subnet, self.workload, self.device)

    def latency(self, subnet: Subnet, phase: str) -> tuple[LatencyItem, ...]:
        return latency.items(self.spec, subnet, self.workload, self.device, phase)
