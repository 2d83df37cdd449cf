"""llama.cpp on this machine: timed, and packages run by it in fresh processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from planner.chat import Messages
from planner.runtimes.engine import Engine, Server, Speaker, Timer
from planner.runtimes.llamacpp import fresh, kernels
from planner.runtimes.llamacpp.calibrate import LlamaCalibrator
from planner.runtimes.llamacpp.serving import Serving
from planner.runtimes.served import LONGEST_NEW_TOKENS, FreshServer, FreshSpeaker
from planner.runtimes.spoken import Spoken
from planner.runtimes.timed import Products, TableTimer
from profiles.kernels import KernelEntry


class LlamaTimer(TableTimer):
    """Times products of each type, and small GGUF files with random weights."""

    def products(self) -> Products:
        return kernels

    def calibrator(self) -> LlamaCalibrator:
        return LlamaCalibrator()

    def again(self, entries: Sequence[KernelEntry], cache_bytes: int) -> float:
        return kernels.slower(entries, cache_bytes)


class LlamaServer(FreshServer):
    """The pinned build, with the package's own settings."""

    asking = fresh.ASKING

    def longest_prompt(self, context: int) -> int:
        return max(1, context - LONGEST_NEW_TOKENS)


class LlamaSpeaker(FreshSpeaker):
    """The pinned build, by its C interface."""

    asking = fresh.ASKING

    def spoken(self, texts: Sequence[str], chats: Sequence[Messages]) -> Spoken:
        return fresh.spoken_by_others(self.folder, texts, chats)

    def generate(self, prompt: str, max_tokens: int) -> Iterator[str]:
        return fresh.generate(self.folder, prompt, max_tokens)


class LlamaEngine(Engine):
    """The pinned build of llama.cpp on a CPU."""

    def timer(self) -> Timer:
        return LlamaTimer()

    def server(self, folder: Path) -> Server | None:
        """None for a package that is served with a GPU: this build computes on the processor alone."""
        return LlamaServer(folder) if Serving.load(folder).gpu_layers is None else None

    def speaker(self, folder: Path) -> Speaker:
        return LlamaSpeaker(folder)
