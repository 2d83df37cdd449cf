"""What ONNX Runtime costs beyond its products: numbers a device's profile has measured, and the usual ones.

The usual numbers were measured on two cores of a server processor of 2024 (AVX512-VNNI, 32 MB of last-level cache) and
stand in for a device that was never measured; every estimate that rests on one says so.
"""

from __future__ import annotations

from typing import Any

from planner.runtimes.base import DECODE, PREFILL, weakest
from planner.runtimes.caches import CacheType
from planner.runtimes.calibrated import Calibrated

RUNTIME = "onnxruntime"
CHUNK_TOKENS = 128  # a prompt goes through the model in pieces of so many tokens: as fast as whole, in bounded memory

BASE = "base_bytes"  # the process before any weight
LAYER_BYTES = "layer_bytes"  # what the runtime keeps of a layer beside its weights
ACTIVATIONS = "activation_factor"  # bytes of arena for a byte of a layer's values
STEP = "step_ms"  # one forward pass, without its layers
LAYER = "layer_ms"  # one layer without its products, for one token
VALUE = "value_ns"  # one value of a layer and token: norms, activations, residuals
SCORE_DECODE = "score_decode_ns"  # one value of one query head against one cached token, one token at a time
SCORE_PREFILL = "score_prefill_ns"  # the same within a prompt
INT8_DECODE = "int8_decode_factor"  # what a score takes from a cache of int8, over what it takes from one of floats
INT8_PREFILL = "int8_prefill_factor"  # the same within a prompt
PRODUCTS = "product_factor"  # what a product takes for one token in a model of wide layers, over what the table says

USUAL = {
    BASE: 68e6,
    LAYER_BYTES: 0.17e6,
    ACTIVATIONS: 1.5,
    STEP: 0.05,
    LAYER: 0.03,
    VALUE: 0.5,
    SCORE_DECODE: 0.2,
    SCORE_PREFILL: 0.1,
    INT8_DECODE: 0.5,
    INT8_PREFILL: 2.4,
    PRODUCTS: 1.0,
}
UNITS = {
    BASE: "bytes", LAYER_BYTES: "bytes", ACTIVATIONS: "bytes/byte", STEP: "ms", LAYER: "ms", VALUE: "ns",
    SCORE_DECODE: "ns", SCORE_PREFILL: "ns", PRODUCTS: "ms/ms", INT8_DECODE: "ns/ns", INT8_PREFILL: "ns/ns",
}  # fmt: skip

_KNOWN = Calibrated(RUNTIME, USUAL)
value, spread = _KNOWN.value, _KNOWN.spread
SCORES = {DECODE: (SCORE_DECODE, INT8_DECODE), PREFILL: (SCORE_PREFILL, INT8_PREFILL)}


def score_ns(device: Any, phase: str, cache: CacheType) -> tuple[float, str]:
    """What one value of one query head takes against one cached token, and its basis."""
    plain, factor = SCORES[phase]
    found, basis = value(device, plain)
    if not cache.rounds:
        return found, basis
    times, more = value(device, factor)
    return found * times, weakest((basis, more))
