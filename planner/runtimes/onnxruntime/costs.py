"""What ONNX Runtime costs beyond its products: numbers a device's profile has measured, and the usual ones.

The usual numbers were measured on two cores of a server processor of 2024 (AVX512-VNNI, 32 MB of last-level cache) and
stand in for a device that was never measured; every estimate that rests on one says so.
"""

from __future__ import annotations

from planner.runtimes.calibrated import (
    ACTIVATIONS,
    BASE,
    LAYER,
    LAYER_BYTES,
    PRODUCTS,
    SCORE_DECODE,
    SCORE_PREFILL,
    STEP,
    VALUE,
    Calibrated,
    factor_units,
)
from planner.runtimes.calibrated import UNITS as SHARED
from planner.runtimes.onnxruntime.cache import INT8, RUNTIME

CHUNK_TOKENS = 128  # a prompt goes through the model in pieces of so many tokens: as fast as whole, in bounded memory

USUAL = {
    BASE: 68e6,
    LAYER_BYTES: 0.17e6,
    ACTIVATIONS: 1.5,
    STEP: 0.05,
    LAYER: 0.03,
    VALUE: 0.5,
    SCORE_DECODE: 0.2,
    SCORE_PREFILL: 0.1,
    "int8_decode_factor": 0.5,
    "int8_prefill_factor": 2.4,
    PRODUCTS: 1.0,
}
UNITS = {**SHARED, **factor_units((INT8,))}

KNOWN = Calibrated(RUNTIME, USUAL, UNITS)
value, spread = KNOWN.value, KNOWN.spread
