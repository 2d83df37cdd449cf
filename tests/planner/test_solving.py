"""The same measurements give the same numbers: what the runtimes share may not change what is planned with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.runtimes.calibrator import Calibrator
from planner.runtimes.child import Measurement
from planner.runtimes.llamacpp.calibrate import LlamaCalibrator
from planner.runtimes.onnxruntime.calibrate import OnnxCalibrator
from planner.runtimes.solving import DEEP, LONG, MIDDLE, SHALLOW, Times
from profiles.device import DeviceProfile
from profiles.kernels import KernelEntry, KernelTable

WIDE_MS = 61.3
TIMES = Times(1.3, 4.1, 5.7, WIDE_MS, WIDE_MS + 2.1, {MIDDLE: 69.7, LONG: 303.3}, {1: 0.17, 128: 1.9, 104: 1.6}, 0.23)
LOADED_AND_PEAK = {
    "shallow": [(61_000_000, 66_200_000), (61_400_000, 66_100_000), (60_900_000, 67_000_000)],
    "deep": [(92_500_000, 103_300_000)],
    "wide": [(310_000_000, 319_900_000)],
}
SHAPES = ((896, 896), (896, 128), (896, 1152), (896, 4864), (4864, 896), (896, 65536), (896, 4096))
ROUNDED = Measurement(0, 0, 303.3 + 31.7, 5.7 + 0.43)  # the deep model with a cache that rounds

SOLVED = {
    LlamaCalibrator: {
        "step_ms": 0.12847466666666668, "layer_ms": 0.05788893384603878, "value_ns": 0.1580219606045505,
        "score_decode_ns": 0.3969766260162603, "score_prefill_ns": 0.020158387745021406,
        "q8_0_decode_factor": 1.25625, "q8_0_prefill_factor": 1.6822231817744868,
        "q4_0_decode_factor": 1.25625, "q4_0_prefill_factor": 1.6822231817744868,
        "base_bytes": 45297171.6045977, "layer_bytes": 1132008.0, "token_bytes": 1770.9434895833333,
        "activation_factor": 0.45660610856681033, "product_factor": 1.065547607630617,
    },
    OnnxCalibrator: {
        "step_ms": 0.1366666666666667, "layer_ms": 0.059142747190581366, "value_ns": 0.1484513273956672,
        "score_decode_ns": 0.29773246951219534, "score_prefill_ns": 0.01967313395414083,
        "int8_decode_factor": 1.25625, "int8_prefill_factor": 1.6990507693847972,
        "base_bytes": 26133600.735632192, "layer_bytes": 292050.6666666667,
        "activation_factor": 13.978526849856319, "product_factor": 1.1893973193172027,
    },
}  # fmt: skip
SPREADS = {
    LlamaCalibrator: {"base_bytes": 0.009934395108111444, "product_factor": 0.03277380381530848},
    OnnxCalibrator: {"base_bytes": 0.017219211564154714, "product_factor": 0.09469865965860135},
}


def device(runtime: str) -> DeviceProfile:
    """Its products read so many million weights a millisecond, by their bits."""
    names = {4: "Q4_0", 8: "Q8_0"} if runtime == "llamacpp" else {4: "", 8: ""}
    entries = tuple(
        KernelEntry(runtime, bits, 32, 1, k, n, 1, ms, 0.9 * ms, 1.1 * ms, 9, names[bits])
        for bits, speed in ((4, 3.0), (8, 2.0)) for k, n in SHAPES for ms in (k * n / (speed * 1e6),)
    )  # fmt: skip
    return DeviceProfile(
        name="test", kind="cpu", vendor="test", model="test", memory_bytes=2**34, measured=True, source="test",
        date="2026-01-01", architecture="x86_64", threads=1, bandwidth_bytes_per_s=2e10, bandwidth_basis="datasheet",
        int8_ops_per_s=1e12, kernels=KernelTable(entries),
    )  # fmt: skip


@pytest.mark.parametrize("member", SOLVED)
def test_numbers_stay_what_they_were(member: type[Calibrator]) -> None:
    calibrator = member()
    known = calibrator.solver.passes.known
    solved = calibrator.solver.times(TIMES, calibrator.wide, threads=1)
    times = tuple(known.calibration(name, value) for name, value in solved.items())
    for cache in calibrator.caches[1:]:
        solved |= calibrator.solver.cache(cache, ROUNDED, TIMES, solved["score_prefill_ns"], threads=1)
    shapes = {"shallow": SHALLOW, "deep": DEEP, "wide": calibrator.wide}
    processes = {
        shapes[name]: [Measurement(loaded, peak, 1.0, 1.0) for loaded, peak in some]
        for name, some in LOADED_AND_PEAK.items()
    }
    on = device(known.runtime)
    found = [known.calibration(name, value) for name, value in solved.items()]
    found += calibrator.solve_memory(processes, on)
    found += calibrator.product_factor(replace(on, calibrations=times), WIDE_MS)
    assert {one.name: one.value for one in found} == pytest.approx(SOLVED[member], rel=1e-12)
    assert {one.name: one.spread for one in found if one.spread is not None} == pytest.approx(SPREADS[member])
    assert {one.name for one in found} == known.units.keys() - {"logit_ns"}  # which is measured by itself
    assert all(one.unit == known.units[one.name] for one in found)
