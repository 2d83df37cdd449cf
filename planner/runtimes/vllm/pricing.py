"""What vLLM costs on a GPU, or on each of several: memory as it takes it, time by bytes over bandwidth."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.runtimes.base import ESTIMATE, PREFILL, CardShare, LatencyItem, MemoryItem
from planner.runtimes.folder_runtime import BandwidthPricing
from planner.runtimes.vllm import memory, split
from profiles.roofline import SPREAD
from supernet.space import Subnet

SUMS = "sums over the GPUs"


@dataclass(frozen=True)
class VllmPricing(BandwidthPricing):
    def memory(self, subnet: Subnet) -> tuple[MemoryItem, ...]:
        part = split.divided(self.spec, self.workload.gpus)
        sizes = {unit.name: self.holding.unit_bytes(unit, subnet[unit.name]) for unit in part.units}
        return memory.items(self.spec, self.workload, self.device, self.cache, sizes)

    def share(self, subnet: Subnet, limit_bytes: int) -> CardShare | None:
        pool = memory.blocks_of(self.spec, self.workload, self.device, self.cache)
        return memory.share(self.memory(subnet), pool, self.device, self.workload, limit_bytes)

    def latency(self, subnet: Subnet, phase: str) -> tuple[LatencyItem, ...]:
        """Each GPU does its part at the same time, and waits for the sums."""
        gpus, load = self.workload.gpus, self.workload
        if gpus == 1:
            return super().latency(subnet, phase)
        alone = replace(self, spec=split.divided(self.spec, gpus), workload=replace(load, gpus=1))
        rows = load.batch * (load.prompt_tokens if phase == PREFILL else 1)
        ms = split.sums_ms(self.spec, self.device, rows, -(-rows // self.usual.chunk_tokens), gpus)
        return (*alone.latency(subnet, phase), LatencyItem(SUMS, ms, ESTIMATE, None, SPREAD))

    def rests_on(self) -> str | None:
        said = super().rests_on()
        if self.workload.gpus == 1:
            return said
        return f"{said}; what sums over {self.workload.gpus} GPUs take is a guess, no figure is of several GPUs"
