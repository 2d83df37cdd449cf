"""ONNX Runtime on this machine: timed, and packages run by it in fresh processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from planner.request import Workload
from planner.runtimes.base import Engine, Progress
from planner.runtimes.child import Measurement
from planner.runtimes.onnxruntime import fresh, latency
from profiles.device import Calibration, DeviceProfile
from profiles.kernels import KernelEntry

ASSUMED_CACHE_BYTES = 64 * 2**20  # of a device whose caches are unknown


class OnnxEngine(Engine):
    """onnxruntime-genai on CPU."""

    def best_threads(self, device: DeviceProfile) -> int:
        from planner.runtimes.onnxruntime import kernels

        return kernels.best_threads(device.threads or 1, device.last_level_cache_bytes or ASSUMED_CACHE_BYTES)

    def measure_kernels(
        self, device: DeviceProfile, quick: bool = False, progress: Progress | None = None
    ) -> list[KernelEntry]:
        from planner.runtimes.onnxruntime import kernels

        cache = device.last_level_cache_bytes or ASSUMED_CACHE_BYTES
        return kernels.measure(device.threads or 1, cache, quick, progress)

    def calibrate(self, device: DeviceProfile, progress: Progress | None = None) -> tuple[Calibration, ...]:
        from planner.runtimes.onnxruntime import calibrate

        return calibrate.calibrate(device, progress)

    def slower(self, device: Mapping[str, Any]) -> float:
        return fresh.slower(device.get("kernels") or [], device.get("last_level_cache_bytes") or ASSUMED_CACHE_BYTES)

    def measure(self, folder: Path, workload: Workload) -> Measurement:
        return fresh.measure(folder, workload.prompt_tokens, workload.context, workload.batch, latency.DECODED_TOKENS)

    def longest_peak_bytes(self, folder: Path, workload: Workload) -> int:
        new = min(latency.DECODED_TOKENS, max(1, workload.context // 2))
        longest = workload.context - new
        return fresh.measure(folder, longest, workload.context, workload.batch, new_tokens=2, repeats=1).peak_bytes

    def logits(self, folder: Path, windows: Any) -> Any:
        return fresh.logits(folder, windows)

    def log_probs(self, folder: Path, windows: Any, positions: Any, ids: Any, seconds: float) -> tuple[Any, Any]:
        return fresh.log_probs(folder, windows, positions, ids, seconds)

    def continued(self, folder: Path, prompts: Any, new_tokens: int) -> list[list[int]]:
        return fresh.continued(folder, prompts, new_tokens)

    def spoken(self, folder: Path, texts: list[str], chats: list[Any]) -> tuple[list[Any], list[Any], list[int]]:
        return fresh.spoken(folder, texts, chats)

    def generate(self, folder: Path, prompt: str, max_tokens: int) -> Iterator[str]:
        from planner.runtimes.onnxruntime.generate import generate

        return generate(folder, prompt, max_tokens)
