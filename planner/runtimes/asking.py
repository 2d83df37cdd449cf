"""What an engine asks of its worker, whatever the runtime: requests and results as files of a scratch folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from planner.runtimes.child import Endless, Measurement, patience
from planner.runtimes.engine import Ids
from records.errors import InputError

SPEAKING_S = 60.0  # for tokens and templates, loading included
SETTLE_S = 4.0
"""A prompt that is served quickly is served again for so long: a short disturbance does not cover all of it."""


class Ask(Protocol):
    """As `planner.runtimes.child.Worker.ask`."""

    def __call__(self, task: str, folder: Path, scratch: Path, seconds: float, **arguments: Any) -> Any: ...


@dataclass(frozen=True)
class Asking:
    """What the worker behind `ask` finds of packages, each time in a fresh process.

    `context` is its word for how many tokens a cache has room for; `more` is what it must be told of a package besides,
    to go on after prompts.
    """

    ask: Ask
    context: str
    more: Callable[[Path], dict[str, Any]] = lambda folder: {}

    def measure(
        self, folder: Path, prompt_tokens: int, context: int, batch: int = 1, new_tokens: int = 64, repeats: int = 3
    ) -> Measurement:
        """Serve one prompt from `folder`: peak memory, time to first token, median time per token."""
        numbers = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "batch": batch, "repeats": repeats}
        seconds = patience(2 * repeats * batch * (prompt_tokens + new_tokens))
        with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
            asked = {**numbers, "settle_s": SETTLE_S, self.context: context}
            return Measurement(**self.ask("measure", folder, Path(scratch), seconds, **asked))

    def logits(self, folder: Path, windows: Ids, unrounded: bool = False) -> NDArray[np.float32]:
        """As `Speaker.logits`."""
        with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
            source, result = Path(scratch) / "windows.npy", Path(scratch) / "logits.npy"
            np.save(source, windows)
            asked = {"windows": str(source), "out": str(result), "unrounded": unrounded}
            self.ask("logits", folder, Path(scratch), patience(windows.size), **asked)
            return np.asarray(np.load(result, allow_pickle=False))

    def log_probs(
        self, folder: Path, windows: Sequence[Ids], positions: Ids, ids: Ids, seconds: float, unrounded: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """As `Speaker.log_probs`."""
        with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
            source, result = Path(scratch) / "asked.npz", Path(scratch) / "said.npz"
            lengths = [len(window) for window in windows]
            np.savez(source, tokens=np.concatenate(windows), lengths=lengths, positions=positions, ids=ids)
            asked = {"asked": str(source), "out": str(result), "reading_s": seconds, "unrounded": unrounded}
            self.ask("log_probs", folder, Path(scratch), patience(0) + seconds, **asked)
            with np.load(result, allow_pickle=False) as said:
                return said["log_probs"], said["likeliest"].astype(np.int32)

    def continued(self, folder: Path, prompts: Sequence[Ids], new_tokens: int) -> list[list[int]]:
        """As `Speaker.continued`."""
        seconds = patience(sum(len(prompt) + new_tokens for prompt in prompts))
        asked = {"prompts": [prompt.tolist() for prompt in prompts], "new_tokens": new_tokens, **self.more(folder)}
        with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
            found = self.ask("continued", folder, Path(scratch), seconds, **asked)
        return [list(map(int, tokens)) for tokens in found]


def answers(ask: Ask, task: str, folder: Path, asked: Sequence[Any]) -> list[Any]:
    """What the `task` makes of each that is asked; a line that says why not for each where there is no answer."""
    if not asked:
        return []
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        try:
            return list(ask(task, folder, Path(scratch), SPEAKING_S, asked=list(asked)))
        except (InputError, Endless) as error:
            return [str(error)] * len(asked)
