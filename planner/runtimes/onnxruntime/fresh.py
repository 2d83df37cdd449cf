"""Start the worker in a fresh process on which nothing outside acts, and read what it found."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.runtimes.onnxruntime import worker
from profiles.kernels import KernelEntry
from records.child import run_child
from records.errors import InputError, SystemFailure

SPEAKING_S = 60.0  # for tokens and templates, loading included
PATIENCE_S, TOKEN_S = 600.0, 2.0  # for what computes: loading and whatever is quick, and each token that is computed
LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxruntime_genai")


class Endless(SystemFailure):
    """What a package computes did not end in its time: the machine is far too slow, or the graph is far too much."""


@dataclass(frozen=True)
class Measurement:
    """What one process that loaded a package and generated took. `tpot_ms` is NaN where a second token has no room."""

    loaded_bytes: int
    peak_bytes: int
    ttft_ms: float
    tpot_ms: float


def measure(
    folder: Path, prompt_tokens: int, context: int, batch: int = 1, new_tokens: int = 64, repeats: int = 3
) -> Measurement:
    """Serve one prompt from `folder` in a fresh process: peak memory, time to first token, median time per token."""
    numbers: dict[str, Any] = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "max_length": context}
    seconds = patience(2 * repeats * batch * (prompt_tokens + new_tokens))
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        return Measurement(**ask("measure", folder, Path(scratch), seconds, **numbers, batch=batch, repeats=repeats))


def patience(tokens: int) -> float:
    """Seconds after which a process that computes so many tokens is taken to hang: many more than one takes."""
    return PATIENCE_S + TOKEN_S * tokens


def logits(folder: Path, windows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits [windows, tokens, vocabulary] for token windows of equal length, from a fresh process."""
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        source, result = Path(scratch) / "windows.npy", Path(scratch) / "logits.npy"
        np.save(source, windows)
        ask("logits", folder, Path(scratch), patience(windows.size), windows=str(source), out=str(result))
        return np.asarray(np.load(result, allow_pickle=False))


def log_probs(
    folder: Path, windows: Sequence[NDArray[Any]], positions: NDArray[Any], ids: NDArray[Any], seconds: float
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """As `Runtime.log_probs`."""
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        source, result = Path(scratch) / "asked.npz", Path(scratch) / "said.npz"
        lengths = [len(window) for window in windows]
        np.savez(source, tokens=np.concatenate(windows), lengths=lengths, positions=positions, ids=ids)
        arguments: dict[str, Any] = {"asked": str(source), "out": str(result), "reading_s": seconds}
        ask("log_probs", folder, Path(scratch), patience(0) + seconds, **arguments)
        with np.load(result, allow_pickle=False) as said:
            return said["log_probs"], said["likeliest"]


def continued(folder: Path, prompts: NDArray[Any], new_tokens: int) -> list[list[int]]:
    """As `Runtime.continued`."""
    seconds = patience(len(prompts) * (prompts.shape[1] + new_tokens))
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        found = ask("continued", folder, Path(scratch), seconds, prompts=prompts.tolist(), new_tokens=new_tokens)
    return [list(map(int, tokens)) for tokens in found]


def slower(entries: Sequence[KernelEntry], cache_bytes: int) -> float:
    """As `Runtime.slower`: the mean of how much longer the products take, in a fresh process."""
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


def spoken(folder: Path, texts: list[str], chats: list[Any]) -> tuple[list[Any], list[Any], list[int]]:
    """As `Runtime.spoken`: texts and chats in processes of their own, so that a template takes no tokenizer with it."""
    found: list[list[Any]] = []
    for task, asked in (("encoded", texts), ("rendered", chats)):
        with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
            try:
                found.append(ask(task, folder, Path(scratch), SPEAKING_S, asked=asked) if asked else [])
            except (InputError, Endless) as error:
                found.append([str(error)] * len(asked))
    stops = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"].get("eos_token_id", [])
    return found[0], found[1], [stops] if isinstance(stops, int) else list(stops)


def ask(task: str, folder: Path, scratch: Path, seconds: float, **arguments: Any) -> Any:
    """What the worker's `task` returns for the package in `folder`; files of the request lie in the empty `scratch`.

    InputError where the package does not load, SystemFailure where the system has no room for it,
    and where it takes more than `seconds` (Endless). The worker imports
    nothing but the standard library and LIBRARIES, from where they are installed: Python's isolated mode ignores the
    current folder and every variable of its own, and the worker starts in `scratch`.
    """
    request, result = scratch / "request.json", scratch / "result.json"
    wanted = {"task": task, "folder": str(folder.resolve()), "arguments": arguments, "result": str(result)}
    request.write_text(json.dumps({**wanted, "libraries": _installed()}), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-I", str(Path(worker.__file__).resolve()), str(request)]
    try:
        done = run_child(command, timeout=seconds, env=environment, cwd=scratch, text=True, errors="replace")
    except subprocess.TimeoutExpired:
        raise Endless(f"what {folder} computes must end, it did not within {seconds:.0f} s") from None
    if done.returncode != worker.OK:
        raise _failure(folder, done.returncode, (done.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(result.read_text(encoding="utf-8"))


def _installed() -> list[str]:
    """The folders that this process imports LIBRARIES from: a user's own, say, which isolated mode leaves out."""
    found = (importlib.util.find_spec(name) for name in LIBRARIES)
    return sorted({str(Path(spec.origin).resolve().parents[1]) for spec in found if spec and spec.origin})


def _failure(folder: Path, code: int, said: str) -> Exception:
    if code == worker.SYSTEM:
        return SystemFailure(
            f"the system has no room to load {folder}: {said}; free memory or space in {tempfile.gettempdir()}"
        )
    if code == -signal.SIGKILL:
        return SystemFailure(f"the process that loaded {folder} was killed, as the system does when memory runs out")
    if code < 0:
        said = f"the process ended by {signal.Signals(-code).name}"
    return InputError(f"a package must load in onnxruntime-genai, {folder} did not: {said}")
