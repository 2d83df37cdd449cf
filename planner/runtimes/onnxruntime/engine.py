"""ONNX Runtime on this machine: timed, and packages run by it in fresh processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from planner.chat import Messages
from planner.runtimes.engine import Engine, Server, Speaker, Timer
from planner.runtimes.onnxruntime import fresh
from planner.runtimes.passes import DECODED_TOKENS
from planner.runtimes.served import FreshServer, FreshSpeaker
from planner.runtimes.spoken import Spoken
from planner.runtimes.timed import Products, TableTimer
from profiles.kernels import KernelEntry

if TYPE_CHECKING:
    from planner.runtimes.onnxruntime.calibrate import OnnxCalibrator


class OnnxTimer(TableTimer):
    """Times `MatMulNBits`, and small packages with random weights."""

    def products(self) -> Products:
        from planner.runtimes.onnxruntime import kernels

        return kernels

    def calibrator(self) -> OnnxCalibrator:
        from planner.runtimes.onnxruntime.calibrate import OnnxCalibrator

        return OnnxCalibrator()

    def again(self, entries: Sequence[KernelEntry], cache_bytes: int) -> float:
        return fresh.slower(entries, cache_bytes)


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
