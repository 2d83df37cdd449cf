"""What llama.cpp costs beyond its products: numbers a device's profile has measured, and the usual ones.

The usual numbers were measured with the pinned build on two cores of a server processor of 2024 and stand in for a
device that was never measured; every estimate that rests on one says so.
"""

from __future__ import annotations

from typing import Any

from planner.runtimes.base import DECODE, PREFILL, weakest
from planner.runtimes.caches import CacheType
from planner.runtimes.calibrated import Calibrated
from planner.runtimes.llamacpp.serving import CACHES, RUNTIME

BASE = "base_bytes"  # the process, Python and the library, before any weight
LAYER_BYTES = "layer_bytes"  # what the runtime keeps of a layer beside its weights
TOKEN_BYTES = "token_bytes"  # what it keeps of a token of the vocabulary
ACTIVATIONS = "activation_factor"  # bytes of a pass's buffers for a byte of a layer's values
STEP = "step_ms"  # one forward pass, without its layers
LAYER = "layer_ms"  # one layer without its products, for one token
VALUE = "value_ns"  # one value of a layer and token: norms, activations, residuals
SCORE_DECODE = "score_decode_ns"  # one value of one query head against one cached token, one token at a time
SCORE_PREFILL = "score_prefill_ns"  # the same within a prompt
LOGIT = "logit_ns"  # the likeliest token is picked from the logits, one a token of the vocabulary
PRODUCTS = "product_factor"  # what a product takes for one token in a model of wide layers, over what the table says

SCORES = {DECODE: SCORE_DECODE, PREFILL: SCORE_PREFILL}


def factor_of(cache: CacheType, phase: str) -> str:
    """The name of what a score takes from a cache of this type, over what it takes from one of floats."""
    return f"{cache.name}_{phase}_factor"


QUANTIZED = CACHES[1:]
USUAL = {
    BASE: 31.0e6,
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
UNITS = {
    BASE: "bytes", LAYER_BYTES: "bytes", TOKEN_BYTES: "bytes", ACTIVATIONS: "bytes/byte", STEP: "ms", LAYER: "ms",
    VALUE: "ns", SCORE_DECODE: "ns", SCORE_PREFILL: "ns", LOGIT: "ns", PRODUCTS: "ms/ms",
    **{factor_of(cache, phase): "ns/ns" for cache in QUANTIZED for phase in SCORES},
}  # fmt: skip

_KNOWN = Calibrated(RUNTIME, USUAL)
value, spread = _KNOWN.value, _KNOWN.spread


def score_ns(device: Any, phase: str, cache: CacheType) -> tuple[float, str]:
    """What one value of one query head takes against one cached token, and its basis."""
    found, basis = value(device, SCORES[phase])
    if cache not in QUANTIZED:
        return found, basis
    factor, more = value(device, factor_of(cache, phase))
    return found * factor, weakest((basis, more))
