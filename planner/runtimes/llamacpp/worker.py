"""Runs in a process of its own, so that its peak memory is that of serving the package and of nothing else.

    python -I worker.py REQUEST.json

As `planner.runtimes.child` says. Nothing of the project is imported but alone.py and capi.py, by their paths.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.runtimes import alone
    from planner.runtimes.llamacpp import capi

SEED = 2654435761  # of the made-up prompt
PICKED_FROM = 8  # tokens that are read before one is picked
OUT_OF_MEMORY = ("bad_alloc", "failed to allocate", "unable to allocate", "Cannot allocate memory")


def model_of(folder: Path, library: str, **more: Any) -> Any:
    return capi.Model(capi.Library(library), folder / "model.gguf", **more)


def measure(
    folder: Path, library: str, settings: dict[str, Any], prompt_tokens: int, new_tokens: int, context: int, batch: int,
    repeats: int, settle_s: float,
) -> dict[str, float]:  # fmt: skip
    """Load, prefill and generate greedily, as `alone.fastest` says."""
    model = model_of(folder, library)
    serving = capi.Context(model, context, batch=batch, **settings)

    def served(length: int) -> list[float]:
        serving.clear()
        ids = [[(SEED * (1 + s * prompt_tokens + i) >> 7) % model.vocabulary for i in range(length)]
               for s in range(batch)]  # fmt: skip
        times = [time.perf_counter()]
        tokens = []
        for sequence, prompt in enumerate(ids):
            serving.read(prompt, sequence=sequence)
            tokens.append(serving.likeliest())
        times.append(time.perf_counter())
        for position in range(length, min(context, length + new_tokens) - 1):
            serving.step(tokens, position)
            tokens = [serving.likeliest(s) for s in range(batch)]
            times.append(time.perf_counter())
        return times

    return alone.fastest(served, prompt_tokens, new_tokens, context, repeats, settle_s)


def logits(folder: Path, library: str, settings: dict[str, Any], windows: str, out: str) -> dict[str, Any]:
    model = model_of(folder, library)
    return alone.write_logits(windows, out, model.vocabulary, _stretches(model, settings))


def log_probs(
    folder: Path, library: str, settings: dict[str, Any], asked: str, out: str, reading_s: float
) -> dict[str, Any]:
    model = model_of(folder, library)
    return alone.write_log_probs(asked, out, reading_s, model.vocabulary, _stretches(model, settings))


def _stretches(model: Any, settings: dict[str, Any]) -> alone.Stretches:
    """A chunk of a window at a time, each after the cache of the last."""

    def longest(length: int) -> Callable[[Any], Iterator[Any]]:
        context = capi.Context(model, length, **settings, outputs=settings["chunk"])

        def read(window: Any) -> Iterator[Any]:
            context.clear()
            for start in range(0, len(window), settings["chunk"]):
                yield context.all_logits(window[start : start + settings["chunk"]].tolist(), start)

        return read

    return longest


def continued(
    folder: Path, library: str, settings: dict[str, Any], prompts: list[list[int]], new_tokens: int, stops: list[int]
) -> list[list[int]]:
    """How the package goes on after each prompt, taking the likeliest token, until it stops or has `new_tokens`."""
    model = model_of(folder, library)
    context = capi.Context(model, max(map(len, prompts)) + new_tokens, **settings)
    return [list(answer(context, prompt, new_tokens, stops)) for prompt in prompts]


def generate(
    folder: Path, library: str, settings: dict[str, Any], ids: list[int], new_tokens: int, stops: list[int]
) -> None:
    """Prints each token of the answer in a line of its own, as it comes."""
    model = model_of(folder, library)
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


def picking(folder: Path, library: str, settings: dict[str, Any], repeats: int) -> float:
    """Milliseconds of picking the likeliest token, the least of so many times."""
    context, found = capi.Context(model_of(folder, library), PICKED_FROM, **settings), []
    context.read(list(range(1, PICKED_FROM)))
    for _ in range(repeats):
        started = time.perf_counter()
        context.likeliest()
        found.append(1e3 * (time.perf_counter() - started))
    return min(found)


def encoded(folder: Path, library: str, asked: list[str]) -> list[list[int]]:
    """The token ids of each text by llama.cpp's own tokenizer."""
    model = model_of(folder, library, vocab_only=True)
    return [model.tokens(text) for text in asked]


def products(
    folder: Path, library: str, cases: list[dict[str, Any]], threads: int, tries: int, each_s: float, steady: float,
    slow_ms: float,
) -> list[Any]:  # fmt: skip
    """(case, rows, times in ms, ascending) of each number of rows of each case; the fastest of up to `tries`.

    More rows are left out once a product takes longer than `slow_ms`.
    """
    timing = alone.beside(__file__, "products")
    loaded, found = capi.Library(library), []
    for case in cases:
        shape = case["inputs"], case["outputs"]
        run = timing.Products(loaded, case["kind"], *shape, case["copies"], threads, case["evicted"])
        for rows in case["rows"]:
            best = run.times(rows, 4, each_s)
            for _ in range(tries - 1):
                if (best[-1] - best[0]) / (2 * alone.median(best)) > steady:
                    best = min(best, run.times(rows, 4, each_s), key=alone.median)
            found.append((case, rows, best))
            if alone.median(best) > slow_ms:
                break
        run.close()
    return found


TASKS: dict[str, Callable[..., Any]] = {
    "measure": measure,
    "logits": logits,
    "log_probs": log_probs,
    "continued": continued,
    "generate": generate,
    "picking": picking,
    "encoded": encoded,
    "products": products,
}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    alone = import_module("alone")
    del sys.path[0]
    capi = alone.beside(__file__, "capi")
    os.environ["GGML_NO_BACKTRACE"] = "1"  # where the library aborts it would start a debugger
    sys.exit(alone.main(Path(sys.argv[1]), TASKS, OUT_OF_MEMORY))
