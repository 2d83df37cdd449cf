"""ONNX Runtime on this machine: timed, and packages run by it in fresh processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from planner.chat import Messages
from planner.runtimes.base import Progress
from planner.runtimes.engine import ASSUMED_CACHE_BYTES, Engine, Server, Speaker, Timer
from planner.runtimes.onnxruntime import fresh
from planner.runtimes.passes import DECODED_TOKENS
from planner.runtimes.served import FreshServer, FreshSpeaker
from planner.runtimes.spoken import Spoken
from profiles.device import Calibration, DeviceProfile
from profiles.kernels import KernelEntry


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


class OnnxServer(FreshServer):
    """onnxruntime-genai, with the package's own settings."""

    asking = fresh.ASKING

    def longest_prompt(self, context: int) -> int:
        return context - min(DECODED_TOKENS, max(1, context // 2))


class OnnxSpeaker(FreshSpeaker):
    """The graph itself, and onnxruntime-genai where tokens are generated."""

    asking = fresh.ASKING

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
