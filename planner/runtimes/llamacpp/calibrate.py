"""Measures what llama.cpp costs beyond its products, on small models: two that differ in depth alone, a wide one.

All are GGUF files with random weights, served in fresh processes. The products of the narrow ones are timed apart, in
cache as they are there, and subtracted; what is left per layer, per step, per value and per attention score is what
every model pays. The wide one does not fit in a cache and has many tokens: what it takes over the sum of all that is
known by then, the kernel table included, is a factor of its products. Memory comes from all three with a long prompt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planner.request import Workload
from planner.runtimes.base import DECODE, ESTIMATE, PREFILL, Progress
from planner.runtimes.caches import CacheType
from planner.runtimes.calibrated import times_as_long
from planner.runtimes.child import Measurement
from planner.runtimes.llamacpp import amounts, costs, fresh, kernels, latency, memory, random_gguf, tensors
from planner.runtimes.llamacpp.formats import type_of
from planner.runtimes.llamacpp.serving import CHUNK_TOKENS, RUNTIME, cache_of
from planner.runtimes.shapes import Shape
from profiles.device import Calibration
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec

SHALLOW = Shape("shallow", 4, 256, 768, 4, 2, 64, 4096)
DEEP = replace(SHALLOW, name="deep", layers=16)
WIDE = Shape("wide", 6, 896, 4864, 14, 2, 64, 65536)
SHORT, MIDDLE, LONG, CONTEXT = 16, 256, 1000, 2048
CHOICE = Choice(4, 32, "sym")
WIDE_CHOICES = (CHOICE, Choice(8, 32, "sym"))
CACHED_BYTES = 2**19  # of weights to walk over twice, for products that stay in cache
PEAKS = 3  # processes of one model whose peaks show the spread


@dataclass(frozen=True)
class Times:
    """Milliseconds: per token of both narrow models, to the first token of the deep one by prompt, and of a layer's
    products by rows; `long_tpot` after the LONG prompt."""

    shallow_tpot: float
    deep_tpot: float
    long_tpot: float
    ttft: Mapping[int, float]
    products: Mapping[int, float]
    head: float


def calibrate(device: Any, progress: Progress | None = None) -> tuple[Calibration, ...]:
    """The numbers of costs.py for this machine, with the device's threads and kernel table; about half a minute."""
    report = progress or (lambda what, share: None)
    threads = device.threads or 1
    with tempfile.TemporaryDirectory(prefix="bitfleet-") as scratch:
        report("writing three models", 0.0)
        packages = {
            shape: random_gguf.write(shape, subnet(shape), CONTEXT, threads, Path(scratch) / shape.name)
            for shape in (SHALLOW, DEEP, WIDE)
        }
        kept = {
            cache: random_gguf.write(DEEP, subnet(DEEP), CONTEXT, threads, Path(scratch) / cache.name, 0, cache.name)
            for cache in costs.QUANTIZED
        }
        report("serving the narrow ones", 0.1)
        shallow = fresh.measure(packages[SHALLOW], SHORT, CONTEXT, repeats=5)
        deep = fresh.measure(packages[DEEP], SHORT, CONTEXT, repeats=5)
        middle = fresh.measure(packages[DEEP], MIDDLE, CONTEXT, new_tokens=2, repeats=3)
        long = fresh.measure(packages[DEEP], LONG, CONTEXT, repeats=2)
        report("serving with other types of cache", 0.5)
        rounded = {cache: fresh.measure(folder, LONG, CONTEXT, repeats=2) for cache, folder in kept.items()}
        report("serving the wide one", 0.65)
        wide = fresh.measure(packages[WIDE], SHORT, CONTEXT, repeats=5)
        report("measuring peaks of memory", 0.75)
        peaks = {SHALLOW: [served(packages[SHALLOW]) for _ in range(PEAKS)], DEEP: [long]}
        peaks[WIDE] = [served(packages[WIDE])]
    report("timing their products", 0.9)
    rows = sorted({1, *(rows for prompt in (MIDDLE, LONG) for rows, _ in latency.chunks(prompted(prompt)))})
    products, head = in_cache_ms(rows, threads)
    ttft = {MIDDLE: middle.ttft_ms, LONG: long.ttft_ms}
    times = Times(shallow.tpot_ms, deep.tpot_ms, long.tpot_ms, ttft, products, head)
    solved = solve_times(times)
    for cache, one in rounded.items():
        solved |= solve_cache(cache, one.ttft_ms - long.ttft_ms, one.tpot_ms - long.tpot_ms, solved)
    found = [Calibration(RUNTIME, n, v, costs.UNITS[n]) for n, v in solved.items()]
    found += solve_memory(peaks, device.architecture)
    return (*found, *product_factor(replace(device, calibrations=tuple(found)), wide.tpot_ms))


def subnet(shape: Shape) -> Subnet:
    """All at CHOICE; the layers of the wide model in turns at 4 and 8 bits."""
    turns = WIDE_CHOICES if shape == WIDE else (CHOICE,)
    return Subnet.of({unit.name: turns[(unit.layer or 0) % len(turns)] for unit in shape.spec().units})


def prompted(prompt: int) -> Workload:
    return Workload(CONTEXT, 1, prompt)


def served(package: Path) -> Measurement:
    return fresh.measure(package, LONG, CONTEXT, new_tokens=2, repeats=1)


def in_cache_ms(rows: Sequence[int], threads: int) -> tuple[dict[int, float], float]:
    """All products of one narrow layer, by rows, and the head's for one row."""
    kind, spec = type_of(CHOICE), replace(SHALLOW, layers=1).spec()
    sizes = [size for unit in spec.units if not unit.is_table for size in amounts.products(spec, unit)]
    cases = [(kind, k, n, tuple(rows)) for k, n in sorted(set(sizes))]
    found = kernels.timed([*cases, (kind, SHALLOW.hidden, SHALLOW.vocabulary, (1,))], threads, CACHED_BYTES, 3)
    times = {(e.in_features, e.out_features, e.rows): e.p10_ms for e in found}
    head = times[SHALLOW.hidden, SHALLOW.vocabulary, 1]
    return {n: sum(times[k, m, n] for k, m in sizes) for n in rows}, head


def solve_times(times: Times) -> dict[str, float]:
    """The constants from the measurements; times that noise has made negative become 0."""
    spec = DEEP.spec()
    values, width = amounts.layer_values(spec), DEEP.heads * DEEP.head_dim
    per_layer = (times.deep_tpot - times.shallow_tpot) / (DEEP.layers - SHALLOW.layers) - times.products[1]
    picking = costs.USUAL[costs.LOGIT] * DEEP.vocabulary / 1e6
    step = times.deep_tpot - DEEP.layers * (per_layer + times.products[1]) - times.head - picking
    decode = (times.long_tpot - times.deep_tpot) / (DEEP.layers * (LONG - SHORT) * width)

    def left(prompt: int) -> float:
        """What a layer takes of a prompt beyond its products: value * tokens + score * scores."""
        passes = latency.chunks(prompted(prompt))
        layer = (times.ttft[prompt] - len(passes) * step - times.head - picking) / DEEP.layers
        return max(0.0, layer - sum(times.products[rows] + per_layer for rows, _ in passes))

    def scores(prompt: int) -> int:
        return sum(rows * known for rows, known in latency.chunks(prompted(prompt)))

    growth = left(LONG) / LONG - left(MIDDLE) / MIDDLE
    score = max(0.0, growth / (scores(LONG) / LONG - scores(MIDDLE) / MIDDLE))
    value = max(0.0, (left(LONG) - score * scores(LONG)) / LONG)
    decode_start = decode * (SHORT + latency.DECODED_TOKENS / 2) * width
    return {
        costs.STEP: max(0.0, step),
        costs.LAYER: max(0.0, per_layer - decode_start - value),
        costs.VALUE: 1e6 * value / values,
        costs.SCORE_DECODE: max(0.0, 1e6 * decode),
        costs.SCORE_PREFILL: 1e6 * score / width,
    }


def solve_cache(cache: CacheType, ttft_ms: float, tpot_ms: float, known: Mapping[str, float]) -> dict[str, float]:
    """How many times as long a score takes from a cache of this type, from what the LONG prompt takes more with it to
    its first token and per token after it."""
    width = DEEP.heads * DEEP.head_dim * DEEP.layers
    read = sum(rows * there for rows, there in latency.chunks(prompted(LONG)))
    more = {DECODE: (tpot_ms, LONG + latency.DECODED_TOKENS / 2), PREFILL: (ttft_ms, read)}
    found = {}
    for phase, (ms, scores) in more.items():
        plain = known[costs.SCORES[phase]] * scores * width / 1e6
        found[costs.factor_of(cache, phase)] = times_as_long(ms, plain)
    return found


def solve_memory(found: Mapping[Shape, Sequence[Measurement]], architecture: str | None) -> tuple[Calibration, ...]:
    """From what the processes of each shape leave beyond weights and cache: once loaded, and at their peak."""
    left, grown = {}, {}
    for shape, processes in found.items():
        middle = sorted(processes, key=lambda one: one.peak_bytes)[len(processes) // 2]
        left[shape] = middle.loaded_bytes - exact_bytes(shape.spec(), subnet(shape), architecture)
        picking = memory.activation_bytes(shape.spec(), prompted(LONG), 0.0)
        grown[shape] = middle.peak_bytes - middle.loaded_bytes - picking
    layer = max(0.0, (left[DEEP] - left[SHALLOW]) / (DEEP.layers - SHALLOW.layers))
    alone = {shape: rest - layer * shape.layers for shape, rest in left.items()}
    token = max(0.0, (alone[WIDE] - alone[SHALLOW]) / (WIDE.vocabulary - SHALLOW.vocabulary))
    values = {shape: CHUNK_TOKENS * amounts.FLOAT_BYTES * amounts.layer_values(shape.spec()) for shape in found}
    factor = max(0.0, (grown[WIDE] - grown[SHALLOW]) / (values[WIDE] - values[SHALLOW]))
    base = alone[SHALLOW] - token * SHALLOW.vocabulary + grown[SHALLOW] - factor * values[SHALLOW]
    peaks = [sorted(one.peak_bytes for one in processes) for processes in found.values()]
    spread = max((some[-1] - some[0]) / 2 for some in peaks) / base
    return tuple(
        Calibration(RUNTIME, name, value, costs.UNITS[name], known)
        for name, value, known in ((costs.BASE, base, spread), (costs.LAYER_BYTES, layer, None),
                                   (costs.TOKEN_BYTES, token, None), (costs.ACTIVATIONS, factor, None))
    )  # fmt: skip


def exact_bytes(spec: ModelSpec, chosen: Subnet, architecture: str | None) -> int:
    """What is in memory beside the process, its vocabulary and the buffers of a pass."""
    units = sum(memory.unit_bytes(spec, unit, chosen[unit.name], architecture) for unit in spec.units)
    return units + tensors.float_bytes(spec) + memory.kv_bytes(spec, CONTEXT, 1, cache_of(prompted(LONG)))


def product_factor(device: Any, tpot_ms: float) -> tuple[Calibration, ...]:
    """The wide model's time per token against what is planned for it; none where its products were not measured.

    No model is faster than its products by themselves: less than 1 says that the machine was slower when those were
    timed. Half of what the factor changes is its spread: a shape between is nearer to the table than this one.
    """
    if not device.kernels:
        return ()
    found = latency.items(WIDE.spec(), subnet(WIDE), prompted(SHORT), device, DECODE)
    products = sum(item.ms for item in found if item.unit)
    if any(item.basis == ESTIMATE for item in found if item.unit):
        return ()
    factor = max(1.0, (tpot_ms - sum(item.ms for item in found) + products) / products)
    return (Calibration(RUNTIME, costs.PRODUCTS, factor, costs.UNITS[costs.PRODUCTS], abs(factor - 1) / 2),)
