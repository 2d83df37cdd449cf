"""Latency: products from the kernel table, the rest from calibrations, and a plain word where neither was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.latency import LatencyEstimate, estimate_latency
from planner.request import Workload
from planner.runtimes.onnxruntime import costs, kernels, storage
from planner.runtimes.onnxruntime.calibrate import layer_products
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.solving import SHALLOW
from profiles.device import Calibration, DeviceProfile
from profiles.kernels import KernelEntry, KernelTable
from supernet.space import Choice, Subnet

RUNTIME = OnnxRuntime()
SPEC = SHALLOW.spec()
DATASHEET = DeviceProfile(
    name="catalogue", kind="cpu", vendor="test", model="test", memory_bytes=2**34, measured=False, source="test",
    date="2026-01-01", bandwidth_bytes_per_s=2e10, bandwidth_basis="datasheet", int8_ops_per_s=1e12,
)  # fmt: skip


def measured_device(ms: float = 0.5, **more: float) -> DeviceProfile:
    """Every product of the model measured at `ms`, and the runtime's own costs at nothing but 2 ms a step."""
    shapes = {shape for unit in SPEC.units for shape in storage.products(SPEC, unit)}
    entries = tuple(
        KernelEntry("onnxruntime", bits, 32, rows, k, n, 1, ms, ms, ms, 5)
        for k, n in shapes for bits in (4, 8) for rows in (1, 64)
    )  # fmt: skip
    values = {**dict.fromkeys(costs.USUAL, 0.0), costs.PRODUCTS: 1.0, costs.STEP: 2.0, **more}
    found = tuple(Calibration(RUNTIME.name, name, value, costs.UNITS[name]) for name, value in values.items())
    return replace(DATASHEET, measured=True, kernels=KernelTable(entries), calibrations=found)


def estimate(device: DeviceProfile, bits: int = 4, **workload: int) -> LatencyEstimate:
    subnet = Subnet.of({unit.name: Choice(bits, 32) for unit in SPEC.units})
    asked = Workload(**{"context": 512, "prompt_tokens": 64, **workload})
    return estimate_latency(RUNTIME.pricing(SPEC, asked, device), subnet)


def test_time_per_token_is_the_measured_products_and_the_step() -> None:
    found = estimate(measured_device())
    products = len(layer_products(SHALLOW)) * SPEC.num_layers + 1
    assert found.tpot_ms == pytest.approx(0.5 * products + 2.0)
    assert found.ttft_ms == pytest.approx(found.tpot_ms)
    assert found.basis == "measured"


def test_a_prompt_is_read_in_chunks_each_of_which_pays_for_a_step_and_the_head() -> None:
    """Products of up to 64 rows take the same here, of more in proportion."""
    found = estimate(measured_device(), prompt_tokens=300)
    products = len(layer_products(SHALLOW)) * SPEC.num_layers
    assert found.ttft_ms == pytest.approx(0.5 * products * (2 + 2 + 1) + 3 * 0.5 + 3 * 2.0)


def test_products_of_few_rows_take_what_a_wide_model_showed() -> None:
    plain, wide = estimate(measured_device()), estimate(measured_device(**{costs.PRODUCTS: 1.3}))
    assert wide.tpot_ms - 2.0 == pytest.approx(1.3 * (plain.tpot_ms - 2.0))
    assert wide.ttft_ms == pytest.approx(plain.ttft_ms + 0.3 * 0.5)  # the head alone


def test_the_head_sees_one_row_of_a_prompt() -> None:
    device = measured_device()
    head = next(item for item in estimate(device).prefill if item.unit == "model.embed_tokens")
    table = [e for e in device.kernels.entries if e.out_features != 4096 or e.rows == 1]
    without = replace(device, kernels=KernelTable(tuple(table)))
    assert head == next(item for item in estimate(without).prefill if item.unit == "model.embed_tokens")


def test_a_device_that_was_not_measured_gets_an_estimate_and_says_so() -> None:
    found = estimate(DATASHEET)
    assert found.basis == "estimate"
    assert {item.basis for item in found.decode} == {"estimate"}
    assert estimate(DATASHEET, bits=8).tpot_ms > found.tpot_ms
    assert estimate(DATASHEET, prompt_tokens=500).ttft_ms > found.ttft_ms


def test_a_device_of_no_known_speed_is_refused() -> None:
    unknown = replace(DATASHEET, bandwidth_bytes_per_s=None, bandwidth_basis=None)
    with pytest.raises(ValueError, match="run `bitfleet profile device`"):
        estimate(unknown)


def test_attention_grows_with_what_is_cached() -> None:
    def attention(prompt: int) -> float:
        found = estimate(DATASHEET, context=4096, prompt_tokens=prompt)
        return next(item.ms for item in found.decode if item.name == "attention")

    assert attention(968) == pytest.approx(10 * attention(68))


def test_kernels_are_measured_on_distinct_weights() -> None:
    """Equal weights would be packed once and read from cache: the runtime must be given different ones."""
    entries = list(kernels.measure_product(256, 768, Choice(4, 32), (1, 8), threads=1, cache_bytes=2**20))
    assert [e.rows for e in entries] == [1, 8]
    assert all(0 < e.p10_ms <= e.median_ms <= e.p90_ms for e in entries)
