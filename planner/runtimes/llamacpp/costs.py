"""What llama.cpp costs beyond its products: numbers a device's profile has measured, and the usual ones.

The usual numbers were measured with the pinned build on two cores of a server processor of 2024 and stand in for a
device that was never measured; every estimate that rests on one says so.
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
from planner.runtimes.llamacpp.serving import CACHES, RUNTIME

TOKEN_BYTES = "token_bytes"  # what it keeps of a token of the vocabulary
LOGIT = "logit_ns"  # the likeliest token is picked from the logits, one a token of the vocabulary

USUAL = {
    BASE: 31.0e6,  # Python is part of the process
    LAYER_BYTES: 0.025e6,
    TOKEN_BYTES: 424.0,
    ACTIVATIONS: 0.64,
    STEP: 0.01,
    LAYER: 0.01,
    VALUE: 0.2,
    SCORE_DECODE: 0.8,
    SCORE_PREFILL: 0.1,
    LOGIT: 2.0,
    PRODUCTS: 1.0,
    "q8_0_decode_factor": 1.0,
    "q8_0_prefill_factor": 8.0,  # floats have a kernel for many rows at once, quantized blocks have none
    "q4_0_decode_factor": 1.7,
    "q4_0_prefill_factor": 13.0,
}
UNITS = {**SHARED, TOKEN_BYTES: "bytes", LOGIT: "ns", **factor_units(CACHES[1:])}

KNOWN = Calibrated(RUNTIME, USUAL, UNITS)
value, spread = KNOWN.value, KNOWN.spread
