"""Start the worker in a fresh process on which nothing outside acts, and read what it found."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.chat import Messages
from planner.runtimes import asking
from planner.runtimes.child import Endless, Measurement, Worker, patience
from planner.runtimes.engine import Ids
from planner.runtimes.onnxruntime import worker
from planner.runtimes.spoken import Spoken
from profiles.kernels import KernelEntry
from records.errors import InputError

SPEAKING_S = 60.0  # for tokens and templates, loading included
LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxruntime_genai")
ask = Worker(Path(worker.__file__), LIBRARIES, "onnxruntime-genai").ask


def measure(
    folder: Path, prompt_tokens: int, context: int, batch: int = 1, new_tokens: int = 64, repeats: int = 3
) -> Measurement:
    """Serve one prompt from `folder` in a fresh process: peak memory, time to first token, median time per token."""
    return asking.measure(ask, folder, prompt_tokens, new_tokens, batch, repeats, max_length=context)


def logits(folder: Path, windows: Ids, unrounded: bool = False) -> NDArray[np.float32]:
    """As `Speaker.logits`."""
    return asking.logits(partial(ask, unrounded=unrounded), folder, windows)


def log_probs(
    folder: Path, windows: Sequence[Ids], positions: Ids, ids: Ids, seconds: float, unrounded: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """As `Speaker.log_probs`."""
    return asking.log_probs(partial(ask, unrounded=unrounded), folder, windows, positions, ids, seconds)


def continued(folder: Path, prompts: Ids, new_tokens: int) -> list[list[int]]:
    """As `Speaker.continued`."""
    return asking.continued(ask, folder, prompts, new_tokens)


def slower(entries: Sequence[KernelEntry], cache_bytes: int) -> float:
    """As `Timer.slower`: the mean of how much longer the products take, in a fresh process."""
    if not entries:
        return 1.0
    root = str(Path(__file__).resolve().parents[3])
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        arguments: dict[str, Any] = {
            "entries": [asdict(entry) for entry in entries],
            "cache_bytes": cache_bytes,
            "root": root,
        }
        return max(1.0, float(ask("slower", Path(scratch), Path(scratch), patience(0), **arguments)))


def spoken(folder: Path, texts: Sequence[str], chats: Sequence[Messages]) -> Spoken:
    """As `Speaker.spoken`: texts and chats in processes of their own, so that a template takes no tokenizer with it."""
    found: list[list[Any]] = []
    for task, asked in (("encoded", list(texts)), ("rendered", [list(chat) for chat in chats])):
        with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
            try:
                found.append(ask(task, folder, Path(scratch), SPEAKING_S, asked=asked) if asked else [])
            except (InputError, Endless) as error:
                found.append([str(error)] * len(asked))
    stops = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"].get("eos_token_id", [])
    return Spoken(found[0], found[1], [stops] if isinstance(stops, int) else list(stops))
