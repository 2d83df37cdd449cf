"""Times on a GPU, of what runtimes there do: products through whatever is installed, attention, launches.

The same code times a CPU, which is how it is tested where there is no GPU. On a GPU calls are captured into a CUDA
graph and replayed, as runtimes do, between two events; weights are repeated until no cache holds them.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

from profiles.device import Calibration, DeviceProfile
from profiles.gpu_ways import TORCH, WAYS, Product, Way
from profiles.kernels import KernelEntry, KernelTable
from profiles.measure import Timing, per_call, time_callable

# (in_features, out_features) of the products that runtimes make of a layer of Llama 1B, 8B and 70B.
SHAPES = (
    (2048, 3072), (2048, 2048), (2048, 16384), (8192, 2048), (4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096),
    (8192, 10240), (8192, 57344), (28672, 8192),
)  # fmt: skip
QUICK_SHAPES = ((2048, 3072), (2048, 16384), (4096, 4096), (4096, 28672), (14336, 4096))
ROWS, QUICK_ROWS = (1, 16, 64, 256, 2048), (1, 64)
CACHE_BYTES = 256 << 20  # more than the largest cache of a GPU today, several times
MOST_COPIES = 32
SIDE = 8192  # of the square product that shows how fast a GPU multiplies
HEADS, KEYS, VALUES = 32, 8, 128
CACHED = ((1, 4096), (1, 32768), (16, 4096))  # sequences, and tokens that each has in its cache
LAUNCHES = 200
COMPILING = 0.6  # of the time for products goes at most into compiling them
MOST_WORKERS = 14

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Sizes:
    """What is timed. `seconds` is how long all products may take, compiling included; `side` and `cached` as above."""

    shapes: tuple[tuple[int, int], ...] = SHAPES
    rows: tuple[int, ...] = ROWS
    seconds: float = 150.0
    repeats: int = 15
    side: int = SIDE
    cached: tuple[tuple[int, int], ...] = CACHED
    cache_bytes: int = CACHE_BYTES


FULL = Sizes()
QUICK = Sizes(QUICK_SHAPES, QUICK_ROWS, seconds=30.0, repeats=7)


def timing(calls: Sequence[Callable[[], Any]], device: str, repeats: int) -> Timing:
    """Of one of `calls`, which are made one after the other."""
    if not device.startswith("cuda"):
        return per_call(time_callable(lambda: [call() for call in calls], min_repeats=3, min_time_s=0.01), len(calls))
    import torch

    stream = torch.cuda.Stream(device)
    with torch.cuda.device(device), torch.cuda.stream(stream):
        for call in calls:
            call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
        graph.replay()
        stream.synchronize()
        times = [_replayed(graph, stream) for _ in range(repeats)]
        graph.reset()
    return per_call(Timing.of(times), len(calls))


def _replayed(graph: Any, stream: Any) -> float:
    """Milliseconds."""
    import torch

    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record(stream)
    graph.replay()
    after.record(stream)
    after.synchronize()
    return float(before.elapsed_time(after))


def products(
    device: str, sizes: Sizes, report: Report, ways: Sequence[Way] = WAYS, save: Callable[[Any], None] | None = None
) -> tuple[list[KernelEntry], dict[str, str]]:
    """Times of products, and why others have none, by kernel. `save` is given the entries so far, after each shape."""
    import torch  # noqa: F401 - before the clock starts

    entries: list[KernelEntry] = []
    reasons = {way.name: reason for way in ways if (reason := way.refusal(device)) is not None}
    able = [way for way in ways if way.name not in reasons]
    # The first width of every way before the second of any: time may be short.
    asked = sorted(
        ((shape, way, bits) for way in able for bits in way.bits for shape in sizes.shapes),
        key=lambda one: one[1].bits.index(one[2]),
    )
    end = time.monotonic() + sizes.seconds
    compiled = [one for one in asked if one[1].compiles]
    if compiled:
        report("compiling kernels", 0.0)
        compile_ahead(compiled, device, sizes.rows, sizes.seconds * COMPILING)
    for number, (shape, way, bits) in enumerate(asked):
        report(f"timing {way.name} of {bits} bits, {shape[0]} x {shape[1]}", number / len(asked))
        if time.monotonic() > end:
            reasons.setdefault("time", f"{len(asked) - number} of {len(asked)} products were left for want of time")
            break
        if way.name in reasons:
            continue
        try:
            entries += _entries(way, bits, shape, device, sizes)
        except Exception as error:  # a kernel of another library, on a GPU that it may not know
            reasons[way.name] = f"{bits} bits, {shape[0]} x {shape[1]}: {_line(error)}"
        if save:
            save(entries)
    return entries, reasons


def compile_ahead(asked: Sequence[tuple[Any, Way, int]], device: str, rows: Sequence[int], seconds: float) -> int:
    """Have several processes compile what these products need, as many as come in the time; how many those were.

    What a library compiles it keeps on disk. Failures come up again where a product is timed.
    """
    end = time.monotonic() + seconds
    workers = max(1, min(MOST_WORKERS, (os.cpu_count() or 1) - 1, len(asked)))
    done = 0
    with get_context("spawn").Pool(workers) as pool:
        for handle in [pool.apply_async(_compile, (way, bits, shape, device, rows)) for shape, way, bits in asked]:
            with suppress(Exception):
                handle.get(timeout=max(0.01, end - time.monotonic()))
                done += 1
        pool.terminate()
    return done


def _compile(way: Way, bits: int, shape: tuple[int, int], device: str, rows: Sequence[int]) -> None:
    import torch

    torch.set_num_threads(1)
    product = way.product(bits, way.group_size(bits), *shape, device)
    for count in rows:
        product(torch.randn(count, shape[0], dtype=torch.bfloat16, device=device))


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:240]


def _entries(way: Way, bits: int, shape: tuple[int, int], device: str, sizes: Sizes) -> list[KernelEntry]:
    import torch

    inputs, outputs = shape
    group = way.group_size(bits)
    copies = max(1, min(MOST_COPIES, -(-sizes.cache_bytes * 8 // (bits * inputs * outputs))))
    made = [way.product(bits, group, inputs, outputs, device) for _ in range(copies)]
    found = []
    for rows in sizes.rows:
        x = torch.randn(rows, inputs, dtype=torch.bfloat16, device=device)
        calls = [_call(product, x) for product in made]
        once = timing(calls, device, sizes.repeats)
        found.append(
            KernelEntry(
                way.runtime,
                bits,
                group,
                rows,
                inputs,
                outputs,
                1,
                once.median_ms,
                once.p10_ms,
                once.p90_ms,
                once.repeats,
                way.name,
            )  # fmt: skip
        )
    return found


def _call(product: Product, x: Any) -> Callable[[], Any]:
    return lambda: product(x)


def square_ops_per_s(device: str, sizes: Sizes) -> float:
    """Operations a second of a large product in bfloat16, of random numbers: zeros are multiplied faster."""
    import torch

    a, b = (torch.randn(sizes.side, sizes.side, dtype=torch.bfloat16, device=device) for _ in range(2))
    return float(2 * sizes.side**3 / (timing([lambda: a @ b] * 2, device, sizes.repeats).median_ms / 1e3))


def calibrations(device: str, sizes: Sizes) -> list[Calibration]:
    """What a kernel takes to begin, by itself and in a graph, and how fast one token's attention reads its cache."""
    import torch

    one = torch.zeros(1, device=device)
    in_graph = timing([lambda: one.add_(1)] * LAUNCHES, device, sizes.repeats)
    found = [
        Calibration(TORCH, "graph_kernel_ms", in_graph.median_ms, "ms", in_graph.spread),
        Calibration(TORCH, "launch_ms", _launch_ms(one), "ms"),
    ]
    for batch, tokens in sizes.cached:
        once, size = _attention(device, batch, tokens, sizes)
        name = f"attention_bytes_per_s_{batch}x{tokens}"
        found.append(Calibration(TORCH, name, size / (once.median_ms / 1e3), "bytes/s", once.spread))
    return found


def _launch_ms(one: Any) -> float:
    """Of kernels that are launched from Python one after the other."""
    import torch

    def wait() -> None:
        if one.is_cuda:
            torch.cuda.synchronize(one.device)

    taken = []
    for _ in range(5):
        wait()
        started = time.perf_counter()
        for _ in range(LAUNCHES):
            one.add_(1)
        wait()
        taken.append((time.perf_counter() - started) * 1e3 / LAUNCHES)
    return statistics.median(taken)


def _attention(device: str, batch: int, tokens: int, sizes: Sizes) -> tuple[Timing, int]:
    """Of one token of each sequence in one layer, and the bytes of keys and values that it reads."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    shape, size = (batch, KEYS, tokens, VALUES), 2 * 2 * batch * KEYS * tokens * VALUES
    copies = max(1, min(MOST_COPIES, -(-sizes.cache_bytes // size)))
    query = torch.randn(batch, HEADS, 1, VALUES, dtype=torch.bfloat16, device=device)
    pairs = [[torch.randn(shape, dtype=torch.bfloat16, device=device) for _ in range(2)] for _ in range(copies)]

    def call(keys: Any, values: Any) -> Callable[[], Any]:
        return lambda: scaled_dot_product_attention(query, keys, values, enable_gqa=True)

    return timing([call(*pair) for pair in pairs], device, sizes.repeats), size


def timed(
    profile: DeviceProfile, device: str, sizes: Sizes, report: Report, ways: Sequence[Way] = WAYS
) -> tuple[DeviceProfile, dict[str, str]]:
    """The profile with what products and attention take on `device`, and why some were not timed, by kernel."""
    import torch

    report("timing a large product", 0.0)
    rate = square_ops_per_s(device, sizes)
    entries, reasons = products(device, sizes, report, ways)
    report("timing attention and launches", 0.95)
    more = calibrations(device, sizes)
    versions = {**profile.kernels.versions, "torch": torch.__version__}
    return replace(
        profile,
        bf16_ops_per_s=rate,
        kernels=KernelTable((*profile.kernels.entries, *entries), profile.date, versions),
        calibrations=(*profile.calibrations, *more),
    ), reasons


def refusal(device: str) -> str | None:
    """Why nothing can be timed on a GPU such as cuda:0 here, in one line; None where it can."""
    try:
        import torch
    except ImportError:
        return "times of its products need torch with CUDA, which is not installed"
    index = int(device.removeprefix("cuda:"))
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return f"times of its products need torch with CUDA, torch {torch.__version__} does not see {device}"
    return None
