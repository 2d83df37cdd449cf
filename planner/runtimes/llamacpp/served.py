"""The half of the runtime that is about running: what serving costs, and what runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.request import Workload
from planner.runtimes.base import Engine, LatencyItem, MemoryItem, Runtime
from planner.runtimes.llamacpp import latency, memory
from profiles.device import DeviceProfile
from supernet.space import Subnet
from supernet.spec import ModelSpec


class Served(Runtime):
    """llama.cpp on a CPU, products with int8 activations, keys and values as float16."""

    def memory_items(
        self, spec: ModelSpec, subnet: Subnet, workload: Workload, device: DeviceProfile
    ) -> tuple[MemoryItem, ...]:
        return memory.items(spec, subnet, workload, device)

    def latency_items(
        self, spec: ModelSpec, subnet: Subnet, workload: Workload, device: DeviceProfile, phase: str
    ) -> tuple[LatencyItem, ...]:
        return latency.items(spec, subnet, workload, device, phase)

    def spoken(self, folder: Path, texts: list[str], chats: list[Any]) -> tuple[list[Any], list[Any], list[int]]:
        from planner.runtimes.llamacpp.fresh import spoken

        return spoken(folder, texts, chats)

    def versions(self) -> dict[str, str]:
        from planner.runtimes.llamacpp.installed import versions

        return versions()

    def engine(self) -> Engine:
        from planner.runtimes.llamacpp.engine import LlamaEngine
        from planner.runtimes.llamacpp.installed import versions

        versions()
        return LlamaEngine()
