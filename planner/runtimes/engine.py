"""What runs packages on this machine, in parts: what times it, what serves a workload, what a package says.

An engine has the parts that mean something here: one that computes as the runtime does, but not on the device that the
runtime is for, says what packages answer and times nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from planner.chat import Messages
from planner.request import Workload
from planner.runtimes.base import Progress
from planner.runtimes.child import Measurement
from planner.runtimes.spoken import Spoken
from profiles.device import Calibration, DeviceProfile
from profiles.kernels import KernelEntry

Ids: TypeAlias = NDArray[np.integer[Any]]
"""Token ids."""


class Timer(ABC):
    """Times a runtime on this machine, in fresh processes."""

    device_kinds: ClassVar[tuple[str, ...]] = ("cpu",)  # of what it times: the runtime may run on more

    @abstractmethod
    def best_threads(self, device: DeviceProfile) -> int:
        """With how many threads this machine generates fastest; what follows is measured with `device.threads`."""

    @abstractmethod
    def kernels(
        self, device: DeviceProfile, quick: bool = False, progress: Progress | None = None
    ) -> list[KernelEntry]:
        """Times of the runtime's quantized product."""

    @abstractmethod
    def calibrate(
        self, device: DeviceProfile, quick: bool = False, progress: Progress | None = None
    ) -> tuple[Calibration, ...]:
        """What the runtime costs beyond its products, which are in the device's kernels by now."""

    @abstractmethod
    def slower(self, entries: Sequence[KernelEntry], cache_bytes: int | None) -> float:
        """How many times as long these products take here and now; 1.0 where there are none, or where they are as fast.
        `cache_bytes` is the last-level cache of the machine that they were timed on, where it is known."""


class Server(ABC):
    """Serves workloads from a checked package, each in a fresh process. What does not load is InputError, what the
    machine has no room for SystemFailure; of a `Speaker` too."""

    @abstractmethod
    def measure(self, workload: Workload) -> Measurement:
        """What serving the workload takes."""

    @abstractmethod
    def longest_peak_bytes(self, workload: Workload) -> int:
        """Peak memory of serving the longest prompt that the context has room for."""


class Speaker(ABC):
    """Tells what a checked package says, each time in a fresh process."""

    @abstractmethod
    def logits(self, windows: Ids, unrounded: bool = False) -> NDArray[np.float32]:
        """Teacher-forced logits `(windows, tokens, vocabulary)` of windows `(windows, tokens)`. `unrounded` keeps keys
        and values as floats, whatever the package does: what is left is its weights' doing."""

    @abstractmethod
    def log_probs(
        self, windows: Sequence[Ids], positions: Ids, ids: Ids, seconds: float, unrounded: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """What is said at the first of the ascending `positions` `(n,)` in `windows` one after another, as far as it
        comes in the time: log probabilities of `ids` `(n, k)`, float32 `(done, k)`, and the likeliest tokens
        `(done,)`. `unrounded` as above."""

    @abstractmethod
    def continued(self, prompts: Sequence[Ids], new_tokens: int) -> list[list[int]]:
        """How a package goes on greedily after each of the prompts `(tokens,)`; it may stop."""

    @abstractmethod
    def spoken(self, texts: Sequence[str], chats: Sequence[Messages]) -> Spoken:
        """As `PackageFormat.spoken`, by the runtime's own tokenizer, for whoever loads a package without bitfleet."""

    @abstractmethod
    def generate(self, prompt: str, max_tokens: int) -> Iterator[str]:
        """The answer to `prompt`, piece by piece."""


class Engine(ABC):
    """A runtime that is installed here."""

    def timer(self) -> Timer | None:
        """What times it; None where this machine is no device of the runtime's."""
        return None

    def server(self, folder: Path) -> Server | None:
        """What serves workloads from the package in `folder`; None as above."""
        return None

    @abstractmethod
    def speaker(self, folder: Path) -> Speaker:
        """What tells what the package in `folder` says."""
