"""What ONNX Runtime costs beyond its products: numbers a device's profile has measured, and the usual ones.

The usual numbers were measured on two cores of a server processor of 2024 (AVX512-VNNI, 32 MB of last-level cache) and
stand in for a device that was never measured; every estimate that rests on one says so.
"""

from __future__ import annotations

from typing import Any

from planner.runtimes.base import ESTIMATE, MEASURED

RUNTIME = "onnxruntime"
CHUNK_TOKENS = 128  # a prompt goes through the model in pieces of so many tokens: as fast as whole, in bounded memory

BASE = "base_bytes"  # the process before any weight
ACTIVATIONS = "activation_factor"  # bytes of arena for a byte of a layer's values
STEP = "step_ms"  # one forward pass, without its layers
LAYER = "layer_ms"  # one layer without its products, for one token
VALUE = "value_ns"  # one value of a layer and token: norms, activations, residuals
SCORE_DECODE = "score_decode_ns"  # one value of one query head against one cached token, one token at a time
SCORE_PREFILL = "score_prefill_ns"  # the same within a prompt

USUAL = {
    BASE: 68e6,
    ACTIVATIONS: 1.65,
    STEP: 0.05,
    LAYER: 0.03,
    VALUE: 0.5,
    SCORE_DECODE: 0.2,
    SCORE_PREFILL: 0.05,
}
UNITS = {
    BASE: "bytes", ACTIVATIONS: "bytes/byte", STEP: "ms", LAYER: "ms", VALUE: "ns", SCORE_DECODE: "ns",
    SCORE_PREFILL: "ns",
}  # fmt: skip


def value(device: Any, name: str) -> tuple[float, str]:
    """The calibrated number and "measured", or the usual one and "estimate"."""
    found = device.calibration(RUNTIME, name)
    return (USUAL[name], ESTIMATE) if found is None else (found.value, MEASURED)
