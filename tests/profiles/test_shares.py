"""The estimate for devices that were never measured is arithmetic on frozen numbers, so everything here is exact."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from profiles import catalog
from profiles.device import Calibration
from profiles.shares import (
    BACKENDS,
    FITTED,
    GROUPS,
    RUNTIME,
    Deviation,
    anchored_number,
    backend_of,
    calibration_name,
    decode_estimate,
    group_of,
    layers_estimate,
    published_bandwidth,
    read_estimate,
)
from records.errors import InputError


def test_every_backend_and_kind_of_type_has_numbers() -> None:
    assert set(FITTED.share) == {(backend, group) for backend in BACKENDS for group in GROUPS}
    assert set(FITTED.half) == set(BACKENDS)
    assert all(0.2 < share < 1 for share in FITTED.share.values())
    assert all(math.exp(2 * half) < 2.5 for half in FITTED.half.values())


@pytest.mark.parametrize(
    ("name", "group"),
    [("F16", "float"), ("bf16", "float"), ("Q4_0", "block"), ("Q2_0", "block"), ("Q8_0", "block"), ("Q5_1", "block")]
    + [("Q4_K", "k"), ("Q4_K_M", "k"), ("Q6_K", "k"), ("Q8_K", "k"), ("Q2_K", "low k"), ("Q3_K_S", "low k")],
)
def test_kinds_of_types(name: str, group: str) -> None:
    assert group_of(name) == group


@pytest.mark.parametrize("name", ["IQ4_XS", "TQ2_0", "MXFP4", "Q4", "Q4_K_XL", ""])
def test_a_type_without_figures_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"no speed is known for the type .*Q4_0"):
        group_of(name)


def test_an_estimate_is_bytes_over_a_share_and_a_time_for_each_layer() -> None:
    device = catalog.load("rtx-4090-24gb")
    found = decode_estimate(device, "cuda", {"block": 3e9, "k": 1e9}, layers=32)
    share, layer = FITTED.share, FITTED.layer_ms["cuda"]
    expected = 1e3 * (3e9 / share["cuda", "block"] + 1e9 / share["cuda", "k"]) / 1.008e12 + 32 * layer
    assert found.ms == pytest.approx(expected, rel=1e-12)
    assert not found.anchored
    assert found.high_ms / found.ms == pytest.approx(math.exp(FITTED.half["cuda"]))
    assert found.ms / found.low_ms == pytest.approx(math.exp(FITTED.half["cuda"]))


def test_a_processors_layers_cost_by_cores() -> None:
    device = catalog.load("epyc-9654-384gb")
    few, many = (decode_estimate(device, "cpu", {"k": 1e9}, layers) for layers in (10, 110))
    cores = device.threads or device.cores_physical
    assert cores
    assert many.ms - few.ms == pytest.approx(100 * cores * FITTED.core_layer_ms)


def test_a_measured_bandwidth_counts_as_the_published_one_behind_it() -> None:
    device = catalog.load("rtx-3090-24gb")
    measured = dataclasses.replace(device, bandwidth_bytes_per_s=0.75 * 936e9, bandwidth_basis="measured")
    assert published_bandwidth(measured) == pytest.approx(published_bandwidth(device))


def test_what_an_estimate_refuses() -> None:
    device = catalog.load("raspberry-pi-5-8gb")
    old = dataclasses.replace(device, instruction_sets=("neon",))
    with pytest.raises(InputError, match="has none of avx2, .*dotprod"):
        decode_estimate(old, "cpu", {"k": 1e9}, 32)
    unknown = dataclasses.replace(device, bandwidth_bytes_per_s=None, bandwidth_basis=None)
    with pytest.raises(InputError, match="an estimate needs a bandwidth"):
        decode_estimate(unknown, "cpu", {"k": 1e9}, 32)
    with pytest.raises(InputError, match="backend must be one of cpu, cuda, metal, vulkan"):
        decode_estimate(device, "rocm", {"k": 1e9}, 32)


@pytest.mark.parametrize("name", catalog.names())
def test_every_device_of_the_catalogue_has_an_estimate(name: str) -> None:
    device = catalog.load(name)
    if name == "raspberry-pi-4-8gb":
        with pytest.raises(InputError, match="has none of .*dotprod"):
            decode_estimate(device, backend_of(device), {"k": 4.6e9}, 32)
        return
    found = decode_estimate(device, backend_of(device), {"k": 4.6e9}, 32)
    assert 0 < found.low_ms < found.ms < found.high_ms
    floor_ms = 1e3 * 4.6e9 / published_bandwidth(device)
    assert floor_ms < found.ms < 4 * floor_ms or device.name.startswith(("h100", "h200", "a100", "epyc-9755"))


def test_backends_of_devices() -> None:
    names = {
        "macbook-air-m2-8gb": "metal",
        "rtx-3060-12gb": "cuda",
        "steam-deck-16gb": "cpu",
        "arc-b580-12gb": "vulkan",
    }
    assert {name: backend_of(catalog.load(name)) for name in names} == names


def test_what_anchors_say_is_the_best_linear_guess() -> None:
    spread = Deviation(device=0.2, group=0.1, figure=0.05)
    anchors = [("k", 0.3), ("block", 0.1), ("k", 0.2)]
    groups = [group for group, _ in anchors]
    among = np.array([[0.04 + 0.01 * (a == b) for b in groups] for a in groups]) + 0.0025 * np.eye(3)
    shared = np.array([0.04 + 0.01 * (group == "k") for group in groups])
    weights = np.linalg.solve(among, shared)
    mean, left = spread.given(anchors, "k")
    assert mean == pytest.approx(weights @ [0.3, 0.1, 0.2])
    assert left == pytest.approx(math.sqrt(0.04 + 0.01 + 0.0025 - weights @ shared))
    assert spread.given([], "k") == (0, pytest.approx(spread.total))


def test_anchors_narrow_the_band_most_for_their_own_kind_of_type() -> None:
    anchors = [("k", math.log(1.5)), ("k", math.log(1.5))]
    (own, own_half), (other, other_half) = (anchored_number("cpu", anchors, group) for group in ("k", "block"))
    assert 1 < other < own < 1.5
    assert own_half < other_half < FITTED.half["cpu"]


def test_a_profiles_calibration_scales_its_own_kind_of_type() -> None:
    device = catalog.load("rtx-3060-12gb")
    anchor = Calibration(RUNTIME, calibration_name("cuda", "k"), 1.25, "x estimate", 0.1)
    mended = dataclasses.replace(device, calibrations=(anchor,))
    plain, found = (decode_estimate(d, "cuda", {"k": 2e9}, 28) for d in (device, mended))
    reading, mended_reading = (read_estimate(d, "cuda", "k", 2e9) for d in (device, mended))
    assert found.anchored
    assert found.ms - plain.ms == pytest.approx(0.25 * reading.ms)
    assert mended_reading.ms == pytest.approx(1.25 * reading.ms)
    assert mended_reading.high_ms == pytest.approx(mended_reading.ms * math.exp(0.1))
    layers = plain.ms - read_estimate(device, "cuda", "k", 2e9).ms
    assert layers == pytest.approx(layers_estimate(device, "cuda", 28).ms)
    assert decode_estimate(mended, "cuda", {"block": 2e9}, 28) == decode_estimate(device, "cuda", {"block": 2e9}, 28)
    both = decode_estimate(mended, "vulkan", {"k": 2e9}, 28)
    assert both == decode_estimate(device, "vulkan", {"k": 2e9}, 28)
