"""ONNX Runtime on this machine: timed, and packages run by it in fresh processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.chat import Messages
from planner.request import Workload
from planner.runtimes.base import Progress
from planner.runtimes.child import Measurement
from planner.runtimes.engine import Engine, Ids, Server, Speaker, Timer
from planner.runtimes.onnxruntime import fresh
from planner.runtimes.passes import DECODED_TOKENS
from planner.runtimes.spoken import Spoken
from profiles.device import Calibration, DeviceProfile
from profiles.kernels import KernelEntry

ASSUMED_CACHE_BYTES = 64 * 2**20  # of a device whose caches are unknown


class OnnxTimer(Timer):
    """Times `MatMulNBits`, and small packages with random weights."""

    def best_threads(self, device: DeviceProfile) -> int:
        from planner.runtimes.onnxruntime import kernels

        return kernels.best_threads(device.threads or 1, device.last_level_cache_bytes or ASSUMED_CACHE_BYTES)

    def kernels(
        self, device: DeviceProfile, quick: bool = False, progress: Progress | None = None
    ) -> list[KernelEntry]:
        from planner.runtimes.onnxruntime import kernels

        cache = device.last_level_cache_bytes or ASSUMED_CACHE_BYTES
        return kernels.measure(device.threads or 1, cache, quick, progress)

    def calibrate(self, device: DeviceProfile, progress: Progress | None = None) -> tuple[Calibration, ...]:
        from planner.runtimes.onnxruntime.calibrate import OnnxCalibrator

        return OnnxCalibrator().calibrate(device, progress)

    def slower(self, entries: Sequence[KernelEntry], cache_bytes: int | None) -> float:
        return fresh.slower(entries, cache_bytes or ASSUMED_CACHE_BYTES)


@dataclass(frozen=True)
class OnnxServer(Server):
    """onnxruntime-genai, with the package's own settings."""

    folder: Path

    def measure(self, workload: Workload) -> Measurement:
        return fresh.measure(self.folder, workload.prompt_tokens, workload.context, workload.batch, DECODED_TOKENS)

    def longest_peak_bytes(self, workload: Workload) -> int:
        new = min(DECODED_TOKENS, max(1, workload.context // 2))
        longest = workload.context - new
        return fresh.measure(self.folder, longest, workload.context, workload.batch, new_tokens=2, repeats=1).peak_bytes


@dataclass(frozen=True)
class OnnxSpeaker(Speaker):
    """The graph itself, and onnxruntime-genai where tokens are generated."""

    folder: Path

    def logits(self, windows: Ids, unrounded: bool = False) -> NDArray[np.float32]:
        return fresh.logits(self.folder, windows, unrounded)

    def log_probs(
        self, windows: Sequence[Ids], positions: Ids, ids: Ids, seconds: float, unrounded: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        return fresh.log_probs(self.folder, windows, positions, ids, seconds, unrounded)

    def continued(self, prompts: Ids, new_tokens: int) -> list[list[int]]:
        return fresh.continued(self.folder, prompts, new_tokens)

    def spoken(self, texts: Sequence[str], chats: Sequence[Messages]) -> Spoken:
        return fresh.spoken(self.folder, texts, chats)

    def generate(self, prompt: str, max_tokens: int) -> Iterator[str]:
        from planner.runtimes.onnxruntime.generate import generate

        return generate(self.folder, prompt, max_tokens)


class OnnxEngine(Engine):
    """onnxruntime-genai on CPU."""

    def timer(self) -> Timer:
        return OnnxTimer()

    def server(self, folder: Path) -> Server:
        return OnnxServer(folder)

    def speaker(self, folder: Path) -> Speaker:
        return OnnxSpeaker(folder)
