"""Start the worker in a fresh process on which nothing outside acts, and read what it found."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from planner.chat import Messages
from planner.runtimes.asking import Asking, answers
from planner.runtimes.child import Worker, patience
from planner.runtimes.onnxruntime import worker
from planner.runtimes.spoken import Spoken
from profiles.kernels import KernelEntry

LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxruntime_genai")
ask = Worker(Path(worker.__file__), LIBRARIES, "onnxruntime-genai").ask
ASKING = Asking(ask, "max_length")
measure, logits, log_probs, continued = ASKING.measure, ASKING.logits, ASKING.log_probs, ASKING.continued


def slower(entries: Sequence[KernelEntry], cache_bytes: int) -> float:
    """As `TableTimer.again`: the mean of how much longer the products take, in a fresh process."""
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
    ids = answers(ask, "encoded", folder, texts)
    said = answers(ask, "rendered", folder, [list(chat) for chat in chats])
    stops = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"].get("eos_token_id", [])
    return Spoken(ids, said, [stops] if isinstance(stops, int) else list(stops))
