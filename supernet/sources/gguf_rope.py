"""The rotary embedding of a GGUF file as transformers' `rope_parameters`, where the two compute the same.

llama.cpp: `freq_factors` divide each frequency; `rope.scaling.*` as in ggml_rope_ext. Llama 3's scaling is stored as
factors (rope_freqs.weight) alone: its parameters are looked for, and taken where they give the very same factors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from records.errors import InputError
from supernet.sources.gguf_file import GGUF

if TYPE_CHECKING:
    from supernet.sources.gguf_config import Keys

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
BETA_FAST, BETA_SLOW = 32.0, 1.0
LOW, HIGH = 1.0, 4.0  # what every published model with Llama 3's scaling has
USUAL = 8192  # tokens that such a model was trained on first
EQUAL = 1e-5  # factors are stored in float32


def rope_parameters(keys: Keys, gguf: GGUF, base: float, head_dim: int, rotary: int) -> dict[str, Any]:
    """InputError, with the name of the key or tensor, where transformers has nothing that computes the same."""
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if rotary != head_dim:
        found["partial_rotary_factor"] = rotary / head_dim
    kind = keys.take("rope.scaling.type", "linear")  # llama.cpp's default, with a factor of 1
    factor = float(keys.optional("rope.scale_linear") or keys.optional("rope.scaling.factor") or 1)
    original = keys.optional("rope.scaling.original_context_length")
    if LONG in gguf.tensors or SHORT in gguf.tensors:
        return found | _long(keys, gguf, original, rotary)
    if FREQS in gguf.tensors:
        if kind not in ("none", "linear") or factor != 1:
            raise InputError(f"{keys.path} has {FREQS} and rope.scaling of type {kind}; give the Hugging Face folder")
        return found | _llama3(keys, gguf, base, rotary, original)
    if kind == "yarn":
        return found | _yarn(keys, factor, original)
    if kind == "longrope" or kind not in ("none", "linear"):
        raise InputError(
            f"{keys.path} has rope.scaling.type {kind} without the factors for it; give the Hugging Face folder"
        )
    return found if kind == "none" or factor == 1 else found | {"rope_type": "linear", "factor": factor}


def _yarn(keys: Keys, factor: float, original: Any) -> dict[str, Any]:
    if not original or factor <= 1:
        raise InputError(
            f"{keys.path} has rope.scaling of type yarn without its factor and original_context_length; "
            "give the Hugging Face folder"
        )
    attention = keys.optional("rope.scaling.yarn_attn_factor") or keys.optional("rope.scaling.attn_factor") or 1.0
    more = {"attention_factor": attention * (1 + 0.1 * math.log(factor))} if attention != 1 else {}
    return more | {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": int(original),
        "beta_fast": keys.optional("rope.scaling.yarn_beta_fast") or BETA_FAST,
        "beta_slow": keys.optional("rope.scaling.yarn_beta_slow") or BETA_SLOW,
    }


def _long(keys: Keys, gguf: GGUF, original: Any, rotary: int) -> dict[str, Any]:
    if LONG not in gguf.tensors or SHORT not in gguf.tensors or not original:
        raise InputError(
            f"{keys.path} has long or short rope factors alone, or no rope.scaling.original_context_length; "
            "give the Hugging Face folder"
        )
    if keys.architecture != "phi3":
        raise InputError(f"{keys.path} has {LONG}, which is read for phi3 alone; give the Hugging Face folder")
    attention = keys.optional("rope.scaling.attn_factor")
    return {
        "rope_type": "longrope",
        "long_factor": _factors(keys, gguf, LONG, rotary),
        "short_factor": _factors(keys, gguf, SHORT, rotary),
        "original_max_position_embeddings": int(original),
        "attention_factor": float(attention) if attention else 1.0,
    }


def _factors(keys: Keys, gguf: GGUF, name: str, rotary: int) -> list[float]:
    values = gguf.tensors[name].floats().reshape(-1)
    if len(values) != rotary // 2 or not np.isfinite(values).all() or (values <= 0).any():
        raise InputError(f"{keys.path}: {name} must hold {rotary // 2} positive factors; give the Hugging Face folder")
    return [float(value) for value in values]


def _llama3(keys: Keys, gguf: GGUF, base: float, rotary: int, original: Any) -> dict[str, Any]:
    factors = np.array(_factors(keys, gguf, FREQS, rotary))
    factor = float(factors.max())
    if np.allclose(factors, 1, rtol=EQUAL):
        return {}
    if np.allclose(factors, factor, rtol=EQUAL):
        return {"rope_type": "linear", "factor": factor}
    lengths = [original] if original else [USUAL, *(2**power for power in range(5, 21))]
    for length in lengths:
        if np.allclose(llama3_factors(base, rotary, factor, length), factors, rtol=EQUAL):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LOW,
                "high_freq_factor": HIGH,
                "original_max_position_embeddings": int(length),
            }
    raise InputError(f"{keys.path}: {FREQS} has factors that no rope of transformers has; give the Hugging Face folder")


def llama3_factors(base: float, rotary: int, factor: float, original: int) -> np.ndarray[Any, Any]:
    """What Llama 3.1's scaling divides each frequency by, `(rotary / 2,)`."""
    lengths = 2 * math.pi * base ** (np.arange(0, rotary, 2) / rotary)
    smooth = (original / lengths - LOW) / (HIGH - LOW)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(lengths < original / HIGH, 1.0, np.where(lengths > original / LOW, factor, between))
