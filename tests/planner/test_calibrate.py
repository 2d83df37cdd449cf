"""Calibration finds the numbers that measurements were made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from planner.memory import estimate_memory
from planner.runtimes.base import DECODE, PREFILL
from planner.runtimes.child import Measurement
from planner.runtimes.onnxruntime import costs, latency, memory, storage
from planner.runtimes.onnxruntime.cache import CACHES
from planner.runtimes.onnxruntime.calibrate import WIDE, OnnxCalibrator, layer_products
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.shapes import Shape
from planner.runtimes.solving import DEEP, LONG, MIDDLE, SHALLOW, SHORT, Times, prompted
from profiles.device import Calibration, DeviceProfile
from profiles.kernels import KernelEntry, KernelTable

TRUE = {
    costs.BASE: 64e6, costs.LAYER_BYTES: 2e5, costs.ACTIVATIONS: 1.5, costs.STEP: 0.3, costs.LAYER: 0.02,
    costs.VALUE: 0.4, costs.SCORE_DECODE: 0.15, costs.SCORE_PREFILL: 0.05, costs.PRODUCTS: 1.25,
}  # fmt: skip
MS_PER_ROW = 1e-3  # of every product
CALIBRATOR = OnnxCalibrator()


def device() -> DeviceProfile:
    """Products of any shape take MS_PER_ROW a row, whatever they hold; everything else as in TRUE."""
    products = {size for s in (SHALLOW, WIDE) for unit in s.spec().units for size in storage.products(s.spec(), unit)}
    entries = tuple(
        KernelEntry("onnxruntime", bits, 32, n, *size, 1, MS_PER_ROW * n, MS_PER_ROW * n, MS_PER_ROW * n, 5)
        for size in products for n in CALIBRATOR.rows() for bits in (4, 8)
    )  # fmt: skip
    known = tuple(Calibration("onnxruntime", name, value, costs.UNITS[name]) for name, value in TRUE.items())
    return DeviceProfile(
        name="test", kind="cpu", vendor="test", model="test", memory_bytes=2**34, measured=True, source="test",
        date="2026-01-01", threads=1, kernels=KernelTable(entries), calibrations=known,
    )  # fmt: skip


def known(name: str, **changes: float) -> DeviceProfile:
    calibrations = tuple(replace(c, value=changes.get(c.name, c.value)) for c in device().calibrations)
    return replace(device(), name=name, calibrations=calibrations)


def ms(shape: Shape, prompt: int, phase: str, on: DeviceProfile) -> float:
    workload = prompted(prompt)
    return sum(i.ms for i in latency.items(shape.spec(), CALIBRATOR.subnet(shape), workload, on, phase))


def test_times_are_solved_for_what_they_were_made_of() -> None:
    plain = known("narrow", **{costs.PRODUCTS: 1.0})  # what fits in a cache takes what the table says
    layer = len(layer_products(DEEP)) * MS_PER_ROW
    found = CALIBRATOR.solver.times(
        Times(
            ms(SHALLOW, SHORT, DECODE, plain), ms(DEEP, SHORT, DECODE, plain), ms(DEEP, LONG, DECODE, plain),
            ms(WIDE, SHORT, DECODE, plain), ms(WIDE, LONG, DECODE, plain),
            {prompt: ms(DEEP, prompt, PREFILL, plain) for prompt in (MIDDLE, LONG)},
            {n: layer * n for n in CALIBRATOR.rows()}, MS_PER_ROW,
        ),
        WIDE,
        threads=1,
    )  # fmt: skip
    for name, value in found.items():
        assert value == pytest.approx(TRUE[name], rel=0.05), name


def test_products_of_the_wide_model_give_their_factor() -> None:
    (found,) = CALIBRATOR.product_factor(
        known("table alone", **{costs.PRODUCTS: 1.0}), ms(WIDE, SHORT, DECODE, device())
    )
    assert found.value == pytest.approx(TRUE[costs.PRODUCTS])
    assert found.spread == pytest.approx(0.125)
    (less,) = CALIBRATOR.product_factor(known("table alone", **{costs.PRODUCTS: 1.0}), 0.001)
    assert less.value == 1.0 and less.spread == 0.0  # its products were timed while the machine was slower
    assert CALIBRATOR.product_factor(replace(device(), kernels=KernelTable()), 1.0) == ()


def test_peaks_are_solved_for_what_they_were_made_of() -> None:
    workload, reserve = prompted(LONG), memory.RESIDUAL_BYTES
    peaks = {
        shape: [
            estimate_memory(
                OnnxRuntime().pricing(shape.spec(), workload, device()), CALIBRATOR.subnet(shape)
            ).total_bytes
        ]
        for shape in (SHALLOW, DEEP, WIDE)
    }
    peaks = {shape: [found - reserve] for shape, (found,) in peaks.items()}
    peaks[SHALLOW] = [peaks[SHALLOW][0] + more for more in (-640_000, 0, 640_000)]
    processes = {s: [Measurement(0, found, 1.0, 1.0) for found in some] for s, some in peaks.items()}
    found = {c.name: c for c in CALIBRATOR.solve_memory(processes, device())}
    for name in (costs.BASE, costs.LAYER_BYTES, costs.ACTIVATIONS):
        assert found[name].value == pytest.approx(TRUE[name], rel=1e-6), name
    assert found[costs.BASE].spread == pytest.approx(0.01)


def test_the_models_of_a_calibration_are_served(tmp_path: Path) -> None:
    package = CALIBRATOR.write(SHALLOW, 1, tmp_path / "package", CACHES[0])
    found = CALIBRATOR.serve(package, SHORT, new_tokens=4, repeats=1)
    assert found.peak_bytes > found.loaded_bytes // 2 and found.tpot_ms > 0
