"""Measures what ONNX Runtime costs beyond its products, on small models: two that differ in depth alone, a wide one.

All are real packages with random weights, served in fresh processes. The products of the narrow ones are timed apart,
in cache as they are there, and subtracted; what is left per layer, per step, per value and per attention score is what
every model pays. The wide one does not fit in a cache: what it takes over the sum of all that is known by then, the
kernel table included, is a factor of its products. Memory comes from the peaks of all three with a long prompt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from planner.request import Workload
from planner.runtimes.base import DECODE, ESTIMATE, PREFILL, Progress
from planner.runtimes.calibrated import times_as_long
from planner.runtimes.onnxruntime import costs, fresh, kernels, latency, memory, random_package, storage
from planner.runtimes.onnxruntime.cache import INT8
from planner.runtimes.shapes import Shape
from profiles.device import Calibration
from profiles.measure import per_call, time_callable
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec

SHALLOW = Shape("shallow", 4, 256, 768, 4, 2, 64, 4096)
DEEP = replace(SHALLOW, name="deep", layers=16)
WIDE = Shape("wide", 8, 896, 4864, 14, 2, 64, 4096)
SHORT, MIDDLE, LONG, CONTEXT = 16, 256, 1000, 2048
CHOICE, WIDE_CHOICES = Choice(4, 32), (Choice(4, 32), Choice(8, 32))
PEAKS = 3  # processes of one package whose peaks show the spread


@dataclass(frozen=True)
class Times:
    """Milliseconds: per token of both narrow models, to the first token of the deep one by prompt, and of products
    by rows; `long_tpot` after the LONG prompt."""

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
            shape: random_package.write(shape, subnet(shape), CONTEXT, threads, Path(scratch) / shape.name)
            for shape in (SHALLOW, DEEP, WIDE)
        }
        rounded = random_package.write(DEEP, subnet(DEEP), CONTEXT, threads, Path(scratch) / "int8", cache=INT8)
        report("serving the narrow ones", 0.1)
        shallow = fresh.measure(packages[SHALLOW], SHORT, CONTEXT, repeats=5)
        deep = fresh.measure(packages[DEEP], SHORT, CONTEXT, repeats=5)
        middle = fresh.measure(packages[DEEP], MIDDLE, CONTEXT, new_tokens=2, repeats=3)
        long = fresh.measure(packages[DEEP], LONG, CONTEXT, repeats=2)
        kept = fresh.measure(rounded, LONG, CONTEXT, repeats=2)
        report("serving the wide one", 0.6)
        wide = fresh.measure(packages[WIDE], SHORT, CONTEXT, repeats=5)
        report("measuring peaks of memory", 0.75)
        peaks = {
            SHALLOW: sorted(peak_bytes(packages[SHALLOW]) for _ in range(PEAKS)),
            DEEP: [long.peak_bytes],
            WIDE: [peak_bytes(packages[WIDE])],
        }
    report("timing their products", 0.9)
    rows = sorted({1, *(rows for prompt in (MIDDLE, LONG) for rows, _ in latency.chunks(prompted(prompt)))})
    products = {n: sum(in_cache_ms(n, threads, k, m) for k, m in layer_products(DEEP)) for n in rows}
    head = in_cache_ms(1, threads, DEEP.hidden, DEEP.vocabulary)
    ttft = {MIDDLE: middle.ttft_ms, LONG: long.ttft_ms}
    times = Times(shallow.tpot_ms, deep.tpot_ms, long.tpot_ms, ttft, products, head)
    solved = solve_times(times)
    solved |= solve_int8(kept.ttft_ms - long.ttft_ms, kept.tpot_ms - long.tpot_ms, solved)
    found = [Calibration(costs.RUNTIME, n, v, costs.UNITS[n]) for n, v in solved.items()]
    found += solve_memory(peaks)
    return (*found, *product_factor(replace(device, calibrations=tuple(found)), wide.tpot_ms))


def subnet(shape: Shape) -> Subnet:
    """All at CHOICE; the layers of the wide model in turns at 4 and 8 bits."""
    spec = shape.spec()
    turns = WIDE_CHOICES if shape == WIDE else (CHOICE,)
    return Subnet.of({unit.name: turns[(unit.layer or 0) % len(turns)] for unit in spec.units})


def prompted(prompt: int) -> Workload:
    return Workload(CONTEXT, 1, prompt)


def layer_products(shape: Shape) -> list[tuple[int, int]]:
    spec = replace(shape, layers=1).spec()
    return [size for unit in spec.units if not unit.is_table for size in storage.products(spec, unit)]


def in_cache_ms(rows: int, threads: int, inputs: int, outputs: int) -> float:
    copies = 4
    run = kernels.session(inputs, outputs, CHOICE, copies, threads)
    feed = {"x": np.zeros((rows, inputs), np.float32)}
    return per_call(time_callable(lambda: run.run(["y0"], feed), min_time_s=0.1), copies).p10_ms


def peak_bytes(package: Path) -> int:
    return fresh.measure(package, LONG, CONTEXT, new_tokens=2, repeats=1).peak_bytes


def solve_times(times: Times) -> dict[str, float]:
    """The constants from the measurements; times that noise has made negative become 0."""
    spec = DEEP.spec()
    values, width = memory.layer_values(spec), DEEP.heads * DEEP.head_dim
    per_layer = (times.deep_tpot - times.shallow_tpot) / (DEEP.layers - SHALLOW.layers) - times.products[1]
    step = times.deep_tpot - DEEP.layers * (per_layer + times.products[1]) - times.head
    decode = (times.long_tpot - times.deep_tpot) / (DEEP.layers * (LONG - SHORT) * width)

    def left(prompt: int) -> float:
        """What a layer takes of a prompt beyond its products: value * tokens + score * scores."""
        passes = latency.chunks(prompted(prompt))
        layer = (times.ttft[prompt] - len(passes) * (step + times.head)) / DEEP.layers
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


def solve_int8(ttft_ms: float, tpot_ms: float, known: Mapping[str, float]) -> dict[str, float]:
    """How many times as long a score takes from a cache of int8, from what the LONG prompt takes more with it to its
    first token and per token after it."""
    width = DEEP.heads * DEEP.head_dim * DEEP.layers
    read = sum(rows * there for rows, there in latency.chunks(prompted(LONG)))
    more = {DECODE: (tpot_ms, LONG + latency.DECODED_TOKENS / 2), PREFILL: (ttft_ms, read)}
    found = {}
    for phase, (ms, scores) in more.items():
        plain, factor = costs.SCORES[phase]
        found[factor] = times_as_long(ms, known[plain] * scores * width / 1e6)
    return found


def solve_memory(peaks: Mapping[Shape, list[int]]) -> tuple[Calibration, ...]:
    """From what the peaks of each shape's processes, ascending, leave beyond weights and cache."""
    left = {shape: found[len(found) // 2] - exact_bytes(shape.spec(), subnet(shape)) for shape, found in peaks.items()}
    layer = max(0.0, (left[DEEP] - left[SHALLOW]) / (DEEP.layers - SHALLOW.layers))
    alone = {shape: rest - layer * shape.layers for shape, rest in left.items()}
    values = {shape: costs.CHUNK_TOKENS * 4 * memory.layer_values(shape.spec()) for shape in peaks}
    factor = max(0.0, (alone[WIDE] - alone[SHALLOW]) / (values[WIDE] - values[SHALLOW]))
    base = alone[SHALLOW] - factor * values[SHALLOW]
    spread = max((found[-1] - found[0]) / 2 for found in peaks.values()) / base
    return tuple(
        Calibration(costs.RUNTIME, name, value, costs.UNITS[name], known)
        for name, value, known in ((costs.BASE, base, spread), (costs.LAYER_BYTES, layer, None),
                                   (costs.ACTIVATIONS, factor, None))
    )  # fmt: skip


def exact_bytes(spec: ModelSpec, chosen: Subnet) -> int:
    """What is in memory beside the process and its activations."""
    workload = prompted(LONG)
    units = sum(memory.unit_bytes(spec, unit, chosen[unit.name]) for unit in spec.units)
    rest = memory.kv_bytes(spec, workload) + storage.float_bytes(spec, CONTEXT)
    return units + rest + memory.activation_bytes(spec, workload, 0.0)


def product_factor(device: Any, tpot_ms: float) -> tuple[Calibration, ...]:
    """The wide model's time per token against what is planned for it; none where its products were not measured.

    No model is faster than its products by themselves: less than 1 says that the machine was slower when those were
    timed. Half of what the factor changes is its spread: a shape between is nearer to the table than this one.
    """
    if not device.kernels:
        return ()
    spec = WIDE.spec()
    found = latency.items(spec, subnet(WIDE), prompted(SHORT), device, DECODE)
    products = sum(item.ms for item in found if item.unit)
    if any(item.basis == ESTIMATE for item in found if item.unit):
        return ()
    factor = max(1.0, (tpot_ms - sum(item.ms for item in found) + products) / products)
    return (Calibration(costs.RUNTIME, costs.PRODUCTS, factor, costs.UNITS[costs.PRODUCTS], abs(factor - 1) / 2),)
