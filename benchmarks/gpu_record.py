"""What a part of the GPU run says: where it ran and what it found so far, as a JSON file that is always whole."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from planner.runtimes import shapes
from profiles.device import dump
from records.atomic import write_text

PACKAGES = ("torch", "transformers", "accelerate", "peft", "triton", "humming-kernels", "vllm")


@dataclass(frozen=True)
class Shape(shapes.Shape):
    """One whose model transformers makes."""

    def config(self, **changes: Any) -> Any:
        from transformers import LlamaConfig

        return LlamaConfig(
            **{
                "hidden_size": self.hidden, "intermediate_size": self.feed_forward, "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
                "vocab_size": self.vocabulary, "tie_word_embeddings": self.tied, "max_position_embeddings": 4096,
            } | changes
        )  # fmt: skip

    def model(self, device: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
        """With random weights, made where it is to be."""
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        with torch.device(device):
            made = AutoModelForCausalLM.from_config(self.config(**changes), dtype=dtype)
        return made.eval().requires_grad_(False)


LLAMA_1B = Shape("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128256, True)
LLAMA_8B = Shape("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128256, False)
TINY = Shape("tiny", 2, 256, 512, 4, 2, 64, 1024, True)


class Record:
    """`found` is what is written, after every `add` too: a part may be ended at any time."""

    def __init__(self, path: Path, device: str, seconds: float) -> None:
        self.path, self.device, self.end = path, device, time.monotonic() + seconds
        self.found: dict[str, Any] = {
            "device": name_of(device), "on_gpu": self.on_gpu, "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
        }  # fmt: skip
        self.save()

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def left_s(self) -> float:
        return self.end - time.monotonic()

    def shape(self, wanted: Shape) -> Shape:
        """A GPU has the shape that is wanted, a processor one that takes seconds."""
        return wanted if self.on_gpu else TINY

    def add(self, **found: Any) -> None:
        self.found |= found
        self.save()

    def save(self) -> None:
        write_text(self.path, dump(self.found) + "\n")

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds_of(self, work: Callable[[], object]) -> float:
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started

    def forget_peak(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int | None:
        """Since `forget_peak`, what is held already included; None on a processor."""
        return torch.cuda.max_memory_allocated(self.device) if self.on_gpu else None


def name_of(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "a processor"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in PACKAGES:
        try:
            found.setdefault(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    return found
