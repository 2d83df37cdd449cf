"""A server and a speaker that run a package in fresh processes, for runtimes whose worker is asked as `asking` says."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from planner.request import Workload
from planner.runtimes.asking import Asking
from planner.runtimes.child import Measurement
from planner.runtimes.engine import Ids, Server, Speaker
from planner.runtimes.passes import DECODED_TOKENS

LONGEST_NEW_TOKENS = 2  # after the longest prompt


@dataclass(frozen=True)
class FreshServer(Server):
    """With the package's own settings."""

    folder: Path
    asking: ClassVar[Asking]

    @abstractmethod
    def longest_prompt(self, context: int) -> int:
        """Tokens of the longest prompt that is promised for, in a context of so many."""

    def measure(self, workload: Workload) -> Measurement:
        return self.asking.measure(
            self.folder, workload.prompt_tokens, workload.context, workload.batch, DECODED_TOKENS
        )

    def longest_peak_bytes(self, workload: Workload) -> int:
        prompt, context = self.longest_prompt(workload.context), workload.context
        found = self.asking.measure(self.folder, prompt, context, workload.batch, LONGEST_NEW_TOKENS, repeats=1)
        return found.peak_bytes


@dataclass(frozen=True)
class FreshSpeaker(Speaker):
    """What a package says in numbers; a runtime adds what it says in words."""

    folder: Path
    asking: ClassVar[Asking]

    def logits(self, windows: Ids, unrounded: bool = False) -> NDArray[np.float32]:
        return self.asking.logits(self.folder, windows, unrounded)

    def log_probs(
        self, windows: Sequence[Ids], positions: Ids, ids: Ids, seconds: float, unrounded: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        return self.asking.log_probs(self.folder, windows, positions, ids, seconds, unrounded)

    def continued(self, prompts: Sequence[Ids], new_tokens: int) -> list[list[int]]:
        return self.asking.continued(self.folder, prompts, new_tokens)
