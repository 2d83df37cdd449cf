"""llama.cpp on this machine: timed, and packages run by it in fresh processes."""

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
from planner.runtimes.llamacpp import fresh, kernels
from planner.runtimes.llamacpp.calibrate import LlamaCalibrator
from planner.runtimes.llamacpp.serving import ASSUMED_CACHE_BYTES
from planner.runtimes.passes import DECODED_TOKENS
from planner.runtimes.spoken import Spoken
from profiles.device import Calibration, DeviceProfile
from profiles.kernels import KernelEntry

LONGEST_NEW_TOKENS = 2


class LlamaTimer(Timer):
    """Times products of each type, and small GGUF files with random weights."""

    def best_threads(self, device: DeviceProfile) -> int:
        return kernels.best_threads(device.threads or 1, device.last_level_cache_bytes or ASSUMED_CACHE_BYTES)

    def kernels(
        self, device: DeviceProfile, quick: bool = False, progress: Progress | None = None
    ) -> list[KernelEntry]:
        cache = device.last_level_cache_bytes or ASSUMED_CACHE_BYTES
        return list(kernels.measure(device.threads or 1, cache, quick, progress))

    def calibrate(self, device: DeviceProfile, progress: Progress | None = None) -> tuple[Calibration, ...]:
        return LlamaCalibrator().calibrate(device, progress)

    def slower(self, entries: Sequence[KernelEntry], cache_bytes: int | None) -> float:
        return kernels.slower(entries, cache_bytes or ASSUMED_CACHE_BYTES)


@dataclass(frozen=True)
class LlamaServer(Server):
    """The pinned build, with the package's own settings."""

    folder: Path

    def measure(self, workload: Workload) -> Measurement:
        return fresh.measure(self.folder, workload.prompt_tokens, workload.context, workload.batch, DECODED_TOKENS)

    def longest_peak_bytes(self, workload: Workload) -> int:
        prompt = max(1, workload.context - LONGEST_NEW_TOKENS)
        found = fresh.measure(self.folder, prompt, workload.context, workload.batch, LONGEST_NEW_TOKENS, repeats=1)
        return found.peak_bytes


@dataclass(frozen=True)
class LlamaSpeaker(Speaker):
    """The pinned build, by its C interface."""

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
        return fresh.spoken_by_others(self.folder, texts, chats)

    def generate(self, prompt: str, max_tokens: int) -> Iterator[str]:
        return fresh.generate(self.folder, prompt, max_tokens)


class LlamaEngine(Engine):
    """The pinned build of llama.cpp on a CPU."""

    def timer(self) -> Timer:
        return LlamaTimer()

    def server(self, folder: Path) -> Server:
        return LlamaServer(folder)

    def speaker(self, folder: Path) -> Speaker:
        return LlamaSpeaker(folder)
