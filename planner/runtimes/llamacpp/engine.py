"""llama.cpp on this machine: timed, and packages run by it in fresh processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from planner.request import Workload
from planner.runtimes.base import Engine, Progress
from planner.runtimes.child import Measurement
from planner.runtimes.llamacpp import calibrate, fresh, kernels, latency
from planner.runtimes.llamacpp.serving import ASSUMED_CACHE_BYTES
from profiles.device import Calibration, DeviceProfile
from profiles.kernels import KernelEntry

LONGEST_NEW_TOKENS = 2


class LlamaEngine(Engine):
    """The pinned build of llama.cpp on a CPU."""

    def best_threads(self, device: DeviceProfile) -> int:
        return kernels.best_threads(device.threads or 1, device.last_level_cache_bytes or ASSUMED_CACHE_BYTES)

    def measure_kernels(
        self, device: DeviceProfile, quick: bool = False, progress: Progress | None = None
    ) -> list[KernelEntry]:
        cache = device.last_level_cache_bytes or ASSUMED_CACHE_BYTES
        return list(kernels.measure(device.threads or 1, cache, quick, progress))

    def calibrate(self, device: DeviceProfile, progress: Progress | None = None) -> tuple[Calibration, ...]:
        return calibrate.calibrate(device, progress)

    def slower(self, device: Mapping[str, Any]) -> float:
        cache = device.get("last_level_cache_bytes") or ASSUMED_CACHE_BYTES
        return kernels.slower(device.get("kernels") or [], cache)

    def measure(self, folder: Path, workload: Workload) -> Measurement:
        return fresh.measure(
            folder, workload.prompt_tokens, workload.context, workload.batch, latency.DECODED_TOKENS
        )  # fmt: skip

    def longest_peak_bytes(self, folder: Path, workload: Workload) -> int:
        prompt = max(1, workload.context - LONGEST_NEW_TOKENS)
        found = fresh.measure(folder, prompt, workload.context, workload.batch, LONGEST_NEW_TOKENS, repeats=1)
        return found.peak_bytes

    def logits(self, folder: Path, windows: Any) -> Any:
        return fresh.logits(folder, windows)

    def log_probs(self, folder: Path, windows: Any, positions: Any, ids: Any, seconds: float) -> tuple[Any, Any]:
        return fresh.log_probs(folder, windows, positions, ids, seconds)

    def continued(self, folder: Path, prompts: Any, new_tokens: int) -> list[list[int]]:
        return fresh.continued(folder, prompts, new_tokens)

    def generate(self, folder: Path, prompt: str, max_tokens: int) -> Iterator[str]:
        return fresh.generate(folder, prompt, max_tokens)

    def spoken(self, folder: Path, texts: list[str], chats: list[Any]) -> tuple[list[Any], list[Any], list[int]]:
        return fresh.spoken_by_others(folder, texts, chats)
