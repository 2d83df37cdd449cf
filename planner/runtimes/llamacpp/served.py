"""The half of the runtime that is about running: what serving costs, and what llama.cpp does with a package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from planner.runtimes.base import LatencyItem, MemoryItem, Progress, Runtime
from planner.runtimes.llamacpp import latency, memory
from planner.runtimes.llamacpp.serving import ASSUMED_CACHE_BYTES
from supernet.space import Subnet
from supernet.spec import ModelSpec

LONGEST_NEW_TOKENS = 2


class Served(Runtime):
    """llama.cpp on a CPU, products with int8 activations, keys and values as float16."""

    def memory_items(self, spec: ModelSpec, subnet: Subnet, workload: Any, device: Any) -> tuple[MemoryItem, ...]:
        return memory.items(spec, subnet, workload, device)

    def latency_items(
        self, spec: ModelSpec, subnet: Subnet, workload: Any, device: Any, phase: str
    ) -> tuple[LatencyItem, ...]:
        return latency.items(spec, subnet, workload, device, phase)

    def best_threads(self, device: Any) -> int:
        from planner.runtimes.llamacpp import kernels

        return kernels.best_threads(device.threads or 1, device.last_level_cache_bytes or ASSUMED_CACHE_BYTES)

    def measure_kernels(self, device: Any, quick: bool = False, progress: Progress | None = None) -> list[Any]:
        from planner.runtimes.llamacpp import kernels

        cache = device.last_level_cache_bytes or ASSUMED_CACHE_BYTES
        return list(kernels.measure(device.threads or 1, cache, quick, progress))

    def calibrate(self, device: Any, progress: Progress | None = None) -> tuple[Any, ...]:
        from planner.runtimes.llamacpp import calibrate

        return calibrate.calibrate(device, progress)

    def slower(self, device: Mapping[str, Any]) -> float:
        from planner.runtimes.llamacpp import kernels

        cache = device.get("last_level_cache_bytes") or ASSUMED_CACHE_BYTES
        return kernels.slower(device.get("kernels") or [], cache)

    def measure(self, folder: Path, workload: Any) -> Any:
        from planner.runtimes.llamacpp import engine

        return engine.measure(
            folder, workload.prompt_tokens, workload.context, workload.batch, latency.DECODED_TOKENS
        )  # fmt: skip

    def longest_peak_bytes(self, folder: Path, workload: Any) -> int:
        from planner.runtimes.llamacpp import engine

        prompt = max(1, workload.context - LONGEST_NEW_TOKENS)
        found = engine.measure(folder, prompt, workload.context, workload.batch, LONGEST_NEW_TOKENS, repeats=1)
        return found.peak_bytes

    def logits(self, folder: Path, windows: Any) -> Any:
        from planner.runtimes.llamacpp import engine

        return engine.logits(folder, windows)

    def log_probs(self, folder: Path, windows: Any, positions: Any, ids: Any, seconds: float) -> tuple[Any, Any]:
        from planner.runtimes.llamacpp import engine

        return engine.log_probs(folder, windows, positions, ids, seconds)

    def continued(self, folder: Path, prompts: Any, new_tokens: int) -> list[list[int]]:
        from planner.runtimes.llamacpp import engine

        return engine.continued(folder, prompts, new_tokens)

    def spoken(self, folder: Path, texts: list[str], chats: list[Any]) -> tuple[list[Any], list[Any], list[int]]:
        from planner.runtimes.llamacpp import engine

        return engine.spoken(folder, texts, chats)

    def spoken_by_others(
        self, folder: Path, texts: list[str], chats: list[Any]
    ) -> tuple[list[Any], list[Any], list[int]]:
        from planner.runtimes.llamacpp import engine

        return engine.spoken_by_others(folder, texts, chats)

    def generate(self, folder: Path, prompt: str, max_tokens: int) -> Iterator[str]:
        from planner.runtimes.llamacpp import engine

        return engine.generate(folder, prompt, max_tokens)

    def versions(self) -> dict[str, str]:
        from planner.runtimes.llamacpp.installed import versions

        return versions()
