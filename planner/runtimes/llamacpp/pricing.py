"""What a subnet costs in llama.cpp."""

from __future__ import annotations

from planner.runtimes.base import LatencyItem, MemoryItem, Pricing
from planner.runtimes.llamacpp import gpu_latency, gpu_memory, latency, memory
from profiles.device import GPU_KINDS
from supernet.space import Subnet

ON_GPU = (
    "no GPU was measured with llama.cpp: what is where is its rule, what that takes is reckoned from logs and speeds "
    "that others published"
)


class LlamaPricing(Pricing):
    """From the device's profile where it was measured, else from what others published."""

    def memory(self, subnet: Subnet) -> tuple[MemoryItem, ...]:
        of = gpu_memory if self.on_gpu else memory
        return of.items(self.spec, subnet, self.workload, self.device)

    def latency(self, subnet: Subnet, phase: str) -> tuple[LatencyItem, ...]:
        of = gpu_latency if self.on_gpu else latency
        return of.items(self.spec, subnet, self.workload, self.device, phase)

    def rests_on(self) -> str | None:
        return ON_GPU if self.on_gpu else None

    @property
    def on_gpu(self) -> bool:
        return self.device.kind in GPU_KINDS
