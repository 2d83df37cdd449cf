"""What workers have in common: each runs in a process of its own and loads this by its path, as `child` says.

Nothing of the project is imported, since what such a process holds counts; numpy is there only where logits are read.
A package is read by `stretches`: for windows of at most so many tokens, a function that makes of one window its logits
`(tokens, vocabulary)`, some tokens at a time.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

OK, PACKAGE, SYSTEM = 0, 1, 5  # exit codes
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE)

Stretches = Callable[[int], Callable[[Any], Iterator[Any]]]


def beside(file: str, name: str) -> Any:
    """The module of that name in the folder of `file`."""
    spec = importlib.util.spec_from_file_location(name, Path(file).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peak_bytes() -> int:
    """The highest resident memory this process has had. Linux keeps it per process; elsewhere the C library does."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def fastest(
    served: Callable[[int], list[float]], prompt_tokens: int, new_tokens: int, context: int, repeats: int,
    settle_s: float,
) -> dict[str, float]:  # fmt: skip
    """The fastest time to first token and the fastest median time per token, once the package is loaded.

    `served` generates after the first tokens of the prompt, so many of them, and gives the times at which it began and
    at which each new token was there, in seconds. The fastest, because whatever else the machine does only ever adds:
    at least `repeats` times, and where that is quick for `settle_s`: a short disturbance does not cover them all.
    Where the prompt leaves no room for `new_tokens`, the time per token is that of a prompt which does; NaN where the
    context has one token to give.
    """
    loaded, peak, started = peak_bytes(), 0, time.perf_counter()
    shorter = min(prompt_tokens, max(1, context - new_tokens))

    def gaps(length: int) -> list[float]:
        times = served(length)
        return [1e3 * (after - before) for before, after in zip(times, times[1:], strict=False)]

    first: list[float] = []
    steps: list[float] = []
    while len(first) < repeats or (repeats > 1 and time.perf_counter() - started < settle_s):
        took = gaps(prompt_tokens)
        peak = peak or peak_bytes()  # to serve again may take more than to serve
        first.append(took[0])
        after = took if shorter == prompt_tokens else gaps(shorter)
        steps += [median(after[1:])] if len(after) > 1 else []
    return {"loaded_bytes": loaded, "peak_bytes": peak, "ttft_ms": min(first), "tpot_ms": min(steps, default=math.nan)}


def write_logits(windows: str, out: str, vocabulary: int, stretches: Stretches) -> dict[str, Any]:
    """Teacher-forced logits of every position, float32 [windows, tokens, vocabulary]. `windows` and `out` are .npy
    files."""
    import numpy as np

    tokens = np.load(windows, allow_pickle=False)
    read = stretches(tokens.shape[1])
    with open(out, "wb") as file:  # no memory map: where the disk is full, writing to one kills the process
        header = {"descr": "<f4", "fortran_order": False, "shape": (*tokens.shape, vocabulary)}
        np.lib.format.write_array_header_1_0(file, header)
        for window in tokens:
            for part in read(window):
                file.write(np.ascontiguousarray(part, np.float32).data)
    return {}


def write_log_probs(asked: str, out: str, reading_s: float, vocabulary: int, stretches: Stretches) -> dict[str, Any]:
    """What the package says at positions of windows, as far as it comes in the time: the log probabilities of the ids
    that `asked` names for each, and the likeliest token, written to `out`; both .npz files."""
    import numpy as np

    with np.load(asked, allow_pickle=False) as given:
        tokens, lengths, positions, ids = (given[name] for name in ("tokens", "lengths", "positions", "ids"))
    if max(tokens.max(), ids.max()) >= vocabulary:
        raise ValueError(f"tokens must be below the vocabulary of {vocabulary}, got {max(tokens.max(), ids.max())}")
    read, until = stretches(int(lengths.max())), time.perf_counter() + reading_s
    found: list[Any] = []
    likeliest: list[int] = []
    start = 0
    for window in np.split(tokens, np.cumsum(lengths)[:-1]):
        wanted = positions[(positions >= start) & (positions < start + len(window))] - start
        at, start = 0, start + len(window)
        for part in read(window[: wanted[-1] + 1] if len(wanted) else window[:0]):
            for row in wanted[(wanted >= at) & (wanted < at + len(part))] - at:
                logits = part[row]
                top = float(logits.max())
                total = top + math.log(float(np.exp(logits - top, dtype=np.float32).sum(dtype=np.float64)))
                found.append((logits[ids[len(found)]] - total).astype(np.float32))
                likeliest.append(int(logits.argmax()))
            at += len(part)
            if time.perf_counter() > until:
                break
        if time.perf_counter() > until:
            break
    log_probs = np.array(found, np.float32).reshape(-1, ids.shape[1])  # of no position, too
    np.savez(out, log_probs=log_probs, likeliest=np.array(likeliest, np.int32))
    return {}


def main(request: Path, tasks: Mapping[str, Callable[..., Any]], no_room: Sequence[str]) -> int:
    """Do what the file `request` asks: a task, a package's folder and the task's arguments. What it returns is written
    as JSON to the request's `result`.

    Exit code OK, PACKAGE where the package does not load or run, SYSTEM where memory or disk ran out: a library says
    that in one of the words of `no_room`.
    """
    asked = json.loads(request.read_text(encoding="utf-8"))
    sys.path += asked["libraries"]
    try:
        found = tasks[asked["task"]](Path(asked["folder"]), **asked["arguments"])
        Path(asked["result"]).write_text(json.dumps(found), encoding="utf-8")
    except Exception as error:
        sys.stderr.write(" ".join(f"{type(error).__name__}: {error}".split()) + "\n")
        full = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _FULL)
        return SYSTEM if full or any(words in str(error) for words in no_room) else PACKAGE
    return OK
