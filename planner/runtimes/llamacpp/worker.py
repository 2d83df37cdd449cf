"""Runs in a process of its own, so that its peak memory is that of serving the package and of nothing else.

    python -I worker.py REQUEST.json

As `planner.runtimes.child` says. Nothing of the project is imported but capi.py, by its path: what this process holds
counts, so numpy is there only where logits are read.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.runtimes.llamacpp import capi

SETTLE_S = 4.0
SEED = 2654435761  # of the made-up prompt
OK, PACKAGE, SYSTEM = 0, 1, 5  # exit codes
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE)
OUT_OF_MEMORY = ("bad_alloc", "failed to allocate", "unable to allocate", "Cannot allocate memory")


def peak_bytes() -> int:
    """The highest resident memory this process has had. Linux keeps it per process; elsewhere the C library does."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def measure(
    file: Path, library: str, settings: dict[str, Any], prompt_tokens: int, new_tokens: int, context: int, batch: int,
    repeats: int,
) -> dict[str, float]:  # fmt: skip
    """Load, prefill and generate greedily; the fastest time to first token and the fastest median time per token.

    The fastest, because whatever else the machine does only ever adds: at least `repeats` times, and where that is
    quick for SETTLE_S, so that a short disturbance does not cover them all. Where the prompt leaves no room for
    `new_tokens`, the time per token is that of a prompt which does; NaN where the context has one token to give.
    """
    model = capi.Model(capi.Library(library), file)
    served = capi.Context(model, context, batch=batch, **settings)
    loaded = peak_bytes()
    ids = [[(SEED * (1 + s * prompt_tokens + i) >> 7) % model.vocabulary for i in range(prompt_tokens)]
           for s in range(batch)]  # fmt: skip
    shorter = min(prompt_tokens, max(1, context - new_tokens))

    def gaps(length: int) -> list[float]:
        """Milliseconds of the first token and of each that follows."""
        served.clear()
        times = [time.perf_counter()]
        tokens = []
        for sequence, prompt in enumerate(ids):
            served.read(prompt[:length], sequence=sequence)
            tokens.append(served.likeliest())
        times.append(time.perf_counter())
        for position in range(length, min(context, length + new_tokens) - 1):
            served.step(tokens, position)
            tokens = [served.likeliest(s) for s in range(batch)]
            times.append(time.perf_counter())
        return [1e3 * (after - before) for before, after in zip(times, times[1:], strict=False)]

    first: list[float] = []
    steps: list[float] = []
    peak = 0
    started = time.perf_counter()
    while len(first) < repeats or (repeats > 1 and time.perf_counter() - started < SETTLE_S):
        took = gaps(prompt_tokens)
        peak = peak or peak_bytes()
        first.append(took[0])
        after = took if shorter == prompt_tokens else gaps(shorter)
        steps += [median(after[1:])] if len(after) > 1 else []
    return {"loaded_bytes": loaded, "peak_bytes": peak, "ttft_ms": min(first), "tpot_ms": min(steps, default=math.nan)}


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def logits(file: Path, library: str, settings: dict[str, Any], windows: str, out: str) -> dict[str, Any]:
    """Teacher-forced logits of every position, float32 [windows, tokens, vocabulary]. `windows` and `out` are .npy
    files."""
    import numpy as np

    tokens = np.load(windows, allow_pickle=False)
    model = capi.Model(capi.Library(library), file)
    context = _reader(model, tokens.shape[1], settings)
    with open(out, "wb") as written:  # no memory map: where the disk is full, writing to one kills the process
        header = {"descr": "<f4", "fortran_order": False, "shape": (*tokens.shape, model.vocabulary)}
        np.lib.format.write_array_header_1_0(written, header)
        for window in tokens.tolist():
            for part in stretches(context, window, settings["chunk"]):
                written.write(np.ascontiguousarray(part, np.float32).data)
    return {}


def log_probs(
    file: Path, library: str, settings: dict[str, Any], asked: str, out: str, reading_s: float
) -> dict[str, Any]:
    """What the package says at positions of windows, as far as it comes in the time: the log probabilities of the ids
    that `asked` names for each, and the likeliest token, written to `out`; both .npz files."""
    import numpy as np

    with np.load(asked, allow_pickle=False) as given:
        tokens, lengths, positions, ids = (given[name] for name in ("tokens", "lengths", "positions", "ids"))
    model = capi.Model(capi.Library(library), file)
    if max(tokens.max(), ids.max()) >= model.vocabulary:
        highest = max(tokens.max(), ids.max())
        raise ValueError(f"tokens must be below the vocabulary of {model.vocabulary}, got {highest}")
    context = _reader(model, int(lengths.max()), settings)
    until = time.perf_counter() + reading_s
    found: list[Any] = []
    likeliest: list[int] = []
    start = 0
    for length, window in zip(lengths.tolist(), np.split(tokens, np.cumsum(lengths)[:-1]), strict=True):
        wanted = positions[(positions >= start) & (positions < start + length)] - start
        at, start = 0, start + length
        for part in stretches(context, window[: wanted[-1] + 1].tolist() if len(wanted) else [], settings["chunk"]):
            for row in wanted[(wanted >= at) & (wanted < at + len(part))] - at:
                top = float(part[row].max())
                total = top + math.log(float(np.exp(part[row] - top, dtype=np.float32).sum(dtype=np.float64)))
                found.append((part[row][ids[len(found)]] - total).astype(np.float32))
                likeliest.append(int(part[row].argmax()))
            at += len(part)
            if time.perf_counter() > until:
                break
        if time.perf_counter() > until:
            break
    np.savez(out, log_probs=np.array(found, np.float32).reshape(-1, ids.shape[1]), likeliest=np.array(likeliest, int))
    return {}


def stretches(context: Any, window: list[int], length: int) -> Iterator[Any]:
    """The logits [tokens, vocabulary] of one window, `length` tokens at a time, each after the cache of the last."""
    context.clear()
    for start in range(0, len(window), length):
        yield context.all_logits(window[start : start + length], start)


def _reader(model: Any, length: int, settings: dict[str, Any]) -> Any:
    return capi.Context(model, length, **settings, outputs=settings["chunk"])


def continued(
    file: Path, library: str, settings: dict[str, Any], prompts: list[list[int]], new_tokens: int, stops: list[int]
) -> list[list[int]]:
    """How the package goes on after each prompt, taking the likeliest token, until it stops or has `new_tokens`."""
    model = capi.Model(capi.Library(library), file)
    context = capi.Context(model, max(map(len, prompts)) + new_tokens, **settings)
    return [list(answer(context, prompt, new_tokens, stops)) for prompt in prompts]


def generate(
    file: Path, library: str, settings: dict[str, Any], ids: list[int], new_tokens: int, stops: list[int]
) -> None:
    """Prints each token of the answer in a line of its own, as it comes."""
    model = capi.Model(capi.Library(library), file)
    context = capi.Context(model, len(ids) + new_tokens, **settings)
    for token in answer(context, ids, new_tokens, stops):
        sys.stdout.write(f"{token}\n")
        sys.stdout.flush()


def answer(context: Any, ids: list[int], new_tokens: int, stops: list[int]) -> Iterator[int]:
    context.clear()
    context.read(ids)
    for position in range(len(ids), len(ids) + new_tokens):
        token = context.likeliest()
        yield token
        if token in stops or position + 1 == len(ids) + new_tokens:
            return
        context.step([token], position)


def encoded(file: Path, library: str, asked: list[str]) -> list[list[int]]:
    """The token ids of each text by llama.cpp's own tokenizer."""
    model = capi.Model(capi.Library(library), file, vocab_only=True)
    return [model.tokens(text) for text in asked]


def products(
    folder: Path, library: str, cases: list[dict[str, Any]], threads: int, tries: int, each_s: float, steady: float,
    slow_ms: float,
) -> list[Any]:  # fmt: skip
    """(case, rows, times in ms, ascending) of each number of rows of each case; the fastest of up to `tries`.

    More rows are left out once a product takes longer than `slow_ms`.
    """
    timing = _beside("products")
    loaded, found = capi.Library(library), []
    for case in cases:
        run = timing.Products(loaded, case["kind"], case["inputs"], case["outputs"], case["copies"], threads)
        for rows in case["rows"]:
            best = run.times(rows, 4, each_s)
            for _ in range(tries - 1):
                if (best[-1] - best[0]) / (2 * median(best)) > steady:
                    best = min(best, run.times(rows, 4, each_s), key=median)
            found.append((case, rows, best))
            if median(best) > slow_ms:
                break
        run.close()
    return found


TASKS: dict[str, Callable[..., Any]] = {
    "measure": measure,
    "logits": logits,
    "log_probs": log_probs,
    "continued": continued,
    "generate": generate,
    "encoded": encoded,
    "products": products,
}


def main(request: Path) -> int:
    """Exit code OK, PACKAGE where the package does not load or run, SYSTEM where memory or disk ran out."""
    asked = json.loads(request.read_text(encoding="utf-8"))
    sys.path += asked["libraries"]
    os.environ["GGML_NO_BACKTRACE"] = "1"  # where the library aborts it would start a debugger
    try:
        found = TASKS[asked["task"]](Path(asked["folder"]) / "model.gguf", **asked["arguments"])
        Path(asked["result"]).write_text(json.dumps(found), encoding="utf-8")
    except Exception as error:
        sys.stderr.write(" ".join(f"{type(error).__name__}: {error}".split()) + "\n")
        full = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _FULL)
        return SYSTEM if full or any(words in str(error) for words in OUT_OF_MEMORY) else PACKAGE
    return OK


def _beside(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    capi = _beside("capi")
    sys.exit(main(Path(sys.argv[1])))
