"""How fast MLX and vLLM decode one sequence on a device that was never measured.

The model is that of `profiles.shares`: bytes read over a share of the published bandwidth, and a time for each layer.
It was fitted by `benchmarks/published_folders.py` to `benchmarks/published_folders.csv`, which has few devices (six for
each), so the bands are wider than llama.cpp's. Nobody published a decode speed of the weights that vLLM's other kernels
hold (2, 3, 5, 6 and 7 bits, 8 bits with zeros), and one of MLX below 4 bits: there the band says so by its width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType

from profiles.device import DeviceProfile
from profiles.shares import DecodeEstimate, Shares, published_bandwidth

MLX, VLLM = "mlx", "vllm"
RUNTIMES = (MLX, VLLM)
FLOAT, PACKED = "float", "packed"
KINDS = (FLOAT, PACKED)
UNKNOWN = math.log(2)  # half the band, as a logarithm, of what no figure is of


@dataclass(frozen=True)
class Reading:
    """What a token reads: `size` bytes of weights of a kind, which takes `times` as long as they would. `known`:
    whether figures are of such weights."""

    size: float
    kind: str
    known: bool = True
    times: float = 1.0


def read_estimate(device: DeviceProfile, runtime: str, reading: Reading) -> DecodeEstimate:
    """Milliseconds a token for what it reads. InputError for a device without a bandwidth."""
    ms = reading.times * FITTED.read_ms(runtime, reading.kind, reading.size, published_bandwidth(device))
    return _banded(ms, FITTED.half[runtime] if reading.known else max(UNKNOWN, FITTED.half[runtime]))


def layers_estimate(runtime: str, layers: int) -> DecodeEstimate:
    """Milliseconds a token that so many layers take beside reading."""
    return _banded(FITTED.layers_ms(runtime, layers, None), FITTED.half[runtime])


def _banded(ms: float, half: float) -> DecodeEstimate:
    return DecodeEstimate(ms, ms / math.exp(half), ms * math.exp(half))


# Printed by `python benchmarks/published_folders.py --fit` (2026-11-29).
FITTED = Shares(
    share=MappingProxyType({(MLX, FLOAT): 0.843, (MLX, PACKED): 0.847, (VLLM, FLOAT): 0.944, (VLLM, PACKED): 0.962}),
    layer_ms=MappingProxyType({MLX: 0.0606, VLLM: 0.1021}),
    core_layer_ms=0.0,
    half=MappingProxyType({MLX: 0.146, VLLM: 0.198}),
)
FIGURES = MappingProxyType({MLX: 37, VLLM: 38})
"""How many decode speeds each was fitted to."""
