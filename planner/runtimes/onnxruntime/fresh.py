"""Start the worker in a fresh process and read what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WORKER = "planner.runtimes.onnxruntime.worker"
ROOT = Path(__file__).resolve().parents[3]  # the folder that holds the `planner` package


@dataclass(frozen=True)
class Measurement:
    """What one process that loaded a package and generated took."""

    loaded_bytes: int
    peak_bytes: int
    ttft_ms: float
    tpot_ms: float


def measure(
    folder: Path, prompt_tokens: int, context: int, batch: int = 1, new_tokens: int = 64, repeats: int = 3
) -> Measurement:
    """Serve one prompt from `folder` in a fresh process: peak memory, time to first token, median time per token."""
    numbers = (prompt_tokens, new_tokens, context, batch, repeats)
    return Measurement(**json.loads(_run("measure", str(folder), *map(str, numbers)).splitlines()[-1]))


def logits(folder: Path, windows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits [windows, tokens, vocabulary] for token windows of equal length, from a fresh process."""
    with tempfile.TemporaryDirectory() as scratch:
        source, result = Path(scratch) / "windows.npy", Path(scratch) / "logits.npy"
        np.save(source, windows)
        _run("logits", str(folder), str(source), str(result))
        return np.asarray(np.load(result, allow_pickle=False))


def _run(*arguments: str) -> str:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", WORKER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ValueError(f"a package must load in onnxruntime-genai, {arguments[1]} did not: {last}")
    return done.stdout
