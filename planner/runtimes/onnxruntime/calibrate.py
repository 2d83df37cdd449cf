"""Measures what ONNX Runtime costs beyond its products; the models are real packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from planner.runtimes.caches import CacheType
from planner.runtimes.calibrated import ACTIVATIONS, BASE, LAYER_BYTES
from planner.runtimes.calibrator import Calibrator
from planner.runtimes.child import Measurement
from planner.runtimes.onnxruntime import costs, fresh, kernels, latency, memory, random_package, storage
from planner.runtimes.onnxruntime.cache import CACHES
from planner.runtimes.onnxruntime.pricing import OnnxPricing
from planner.runtimes.shapes import Shape
from planner.runtimes.solving import CONTEXT, DEEP, LONG, SHALLOW, Solver, by_layers, middle, peak_spread, prompted
from profiles.device import Calibration, DeviceProfile
from profiles.measure import per_call, time_callable
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec

WIDE = Shape("wide", 8, 896, 4864, 14, 2, 64, 4096)
CHOICE = Choice(4, 32)


class OnnxCalibrator(Calibrator):
    """The graph computes logits in each pass; picking a token from them is part of a step."""

    solver = Solver(latency.PASSES, head_each_pass=True)
    pricing = OnnxPricing
    wide = WIDE
    choices = (CHOICE, Choice(8, 32))
    caches = CACHES

    def write(self, shape: Shape, threads: int, folder: Path, cache: CacheType) -> Path:
        return random_package.write(shape, self.subnet(shape), CONTEXT, threads, folder, cache=cache)

    def serve(self, package: Path, prompt_tokens: int, new_tokens: int, repeats: int) -> Measurement:
        return fresh.measure(package, prompt_tokens, CONTEXT, new_tokens=new_tokens, repeats=repeats)

    def products_ms(self, rows: Sequence[int], threads: int) -> tuple[dict[int, float], float]:
        products = {n: sum(in_cache_ms(n, threads, k, m) for k, m in layer_products(DEEP)) for n in rows}
        return products, in_cache_ms(1, threads, DEEP.hidden, DEEP.vocabulary)

    def solve_memory(
        self, processes: Mapping[Shape, Sequence[Measurement]], device: DeviceProfile
    ) -> tuple[Calibration, ...]:
        left = {
            shape: middle(some).peak_bytes - exact_bytes(shape.spec(), self.subnet(shape))
            for shape, some in processes.items()
        }
        layer, alone = by_layers(left)
        values = {shape: costs.CHUNK_TOKENS * 4 * memory.layer_values(shape.spec()) for shape in processes}
        factor = max(0.0, (alone[WIDE] - alone[SHALLOW]) / (values[WIDE] - values[SHALLOW]))
        base = alone[SHALLOW] - factor * values[SHALLOW]
        return (
            costs.KNOWN.calibration(BASE, base, peak_spread(processes, base)),
            costs.KNOWN.calibration(LAYER_BYTES, layer),
            costs.KNOWN.calibration(ACTIVATIONS, factor),
        )


def layer_products(shape: Shape) -> list[tuple[int, int]]:
    spec = replace(shape, layers=1).spec()
    return [size for unit in spec.units if not unit.is_table for size in storage.products(spec, unit)]


def in_cache_ms(rows: int, threads: int, inputs: int, outputs: int) -> float:
    copies = 4
    run = kernels.session(inputs, outputs, CHOICE, copies, threads)
    feed = {"x": np.zeros((rows, inputs), np.float32)}
    return per_call(time_callable(lambda: run.run(["y0"], feed), min_time_s=0.1), copies).p10_ms


def exact_bytes(spec: ModelSpec, chosen: Subnet) -> int:
    """What is in memory beside the process and its activations."""
    workload = prompted(LONG)
    units = sum(memory.unit_bytes(spec, unit, chosen[unit.name]) for unit in spec.units)
    rest = memory.kv_bytes(spec, workload) + storage.float_bytes(spec, CONTEXT)
    return units + rest + memory.activation_bytes(spec, workload, 0.0)
