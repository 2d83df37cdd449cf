"""What an engine asks of its worker, whatever the runtime: requests and results as files of a scratch folder.

`ask(task, folder, scratch, seconds, **arguments)` is as `planner.runtimes.child.Worker.ask`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.runtimes.child import Measurement, patience
from planner.runtimes.engine import Ids

Ask = Callable[..., Any]


def measure(
    ask: Ask, folder: Path, prompt_tokens: int, new_tokens: int, batch: int, repeats: int, **context: int
) -> Measurement:
    """Serve one prompt: peak memory, time to first token, median time per token. `context` is by the worker's word."""
    numbers = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "batch": batch, "repeats": repeats, **context}
    seconds = patience(2 * repeats * batch * (prompt_tokens + new_tokens))
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        return Measurement(**ask("measure", folder, Path(scratch), seconds, **numbers))


def logits(ask: Ask, folder: Path, windows: Ids) -> NDArray[np.float32]:
    """As `Speaker.logits`."""
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        source, result = Path(scratch) / "windows.npy", Path(scratch) / "logits.npy"
        np.save(source, windows)
        ask("logits", folder, Path(scratch), patience(windows.size), windows=str(source), out=str(result))
        return np.asarray(np.load(result, allow_pickle=False))


def log_probs(
    ask: Ask, folder: Path, windows: Sequence[Ids], positions: Ids, ids: Ids, seconds: float
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """As `Speaker.log_probs`."""
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        source, result = Path(scratch) / "asked.npz", Path(scratch) / "said.npz"
        lengths = [len(window) for window in windows]
        np.savez(source, tokens=np.concatenate(windows), lengths=lengths, positions=positions, ids=ids)
        arguments: dict[str, Any] = {"asked": str(source), "out": str(result), "reading_s": seconds}
        ask("log_probs", folder, Path(scratch), patience(0) + seconds, **arguments)
        with np.load(result, allow_pickle=False) as said:
            return said["log_probs"], said["likeliest"].astype(np.int32)


def continued(ask: Ask, folder: Path, prompts: Ids, new_tokens: int, **more: Any) -> list[list[int]]:
    """As `Speaker.continued`; `more` is what this worker must be told besides."""
    seconds = patience(len(prompts) * (prompts.shape[1] + new_tokens))
    asked = {"prompts": prompts.tolist(), "new_tokens": new_tokens, **more}
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        found = ask("continued", folder, Path(scratch), seconds, **asked)
    return [list(map(int, tokens)) for tokens in found]
