"""How fast llama.cpp decodes on a device that was never measured: bytes read over a share of the published bandwidth,
and a time for each layer that no bandwidth buys.

    ms = sum over types of bytes / (share x bandwidth) + layers x layer_ms

The shares differ by backend and by kind of type. The time of a layer (kernels started, threads that wait for each
other) is why a bigger chip reaches less of its bandwidth, and any chip less with a smaller model; on a processor it
grows with the cores. Published figures of one card and file differ by half and more between builds and hosts, so an
estimate is a band, stated to hold 8 of 10 figures. All numbers here were fitted by `benchmarks/published.py` to
`benchmarks/published.csv`, which also says how far they were off on devices that they were not fitted on.

A person's own figures mend an estimate (`profiles.anchor`): what is off on a device is off for most of its models,
and more alike for types of one kind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from profiles.device import GPU_KINDS, DeviceProfile
from profiles.roofline import BANDWIDTH_EFFICIENCY
from records.errors import InputError

RUNTIME = "llamacpp"
BACKENDS = ("cpu", "cuda", "metal", "vulkan")
GROUPS = ("float", "block", "k", "low k")
LAYERS = "layers"
PARTS = (*GROUPS, LAYERS)

DOT_PRODUCTS = ("avx2", "avx_vnni", "avx512_vnni", "dotprod", "i8mm")  # without one, a processor computes, not reads

_FLOAT = re.compile(r"^(F16|BF16|F32)$")
_BLOCK = re.compile(r"^Q\d_[01]$")
_LOW_K = re.compile(r"^Q[23]_K(_[SML])?$")
_K = re.compile(r"^Q[4568]_K(_[SML])?$")


def group_of(type_name: str) -> str:
    """The kind of a tensor or file type of GGUF, such as Q4_K or Q4_K_M; InputError for one that no figure was of."""
    for pattern, group in ((_FLOAT, "float"), (_BLOCK, "block"), (_LOW_K, "low k"), (_K, "k")):
        if pattern.match(type_name.upper()):
            return group
    raise InputError(
        f"no speed is known for the type {type_name}; known are F16, BF16, Q4_0 and its like, Q2_K to Q6_K"
    )


@dataclass(frozen=True)
class Shares:
    """What was fitted: `share` of bandwidth by (backend, group); `layer_ms` by GPU backend, `core_layer_ms` for each
    core of a processor; `half` the band by backend, as a logarithm: the middle times and over exp(half)."""

    share: Mapping[tuple[str, str], float]
    layer_ms: Mapping[str, float]
    core_layer_ms: float
    half: Mapping[str, float]

    def read_ms(self, backend: str, group: str, size: float, bandwidth: float) -> float:
        """Milliseconds to read `size` bytes of types of `group`; `bandwidth` in bytes a second, as published."""
        return 1e3 * size / (self.share[backend, group] * bandwidth)

    def layers_ms(self, backend: str, layers: int, cores: int | None) -> float:
        """Milliseconds a token that its layers take beside reading."""
        return layers * (self.core_layer_ms * (cores or 1) if backend == "cpu" else self.layer_ms[backend])


@dataclass(frozen=True)
class DecodeEstimate:
    """Milliseconds a token, and the band stated to hold 8 of 10 figures; `anchored` by figures of this device."""

    ms: float
    low_ms: float
    high_ms: float
    anchored: bool = False

    @property
    def spread(self) -> float:
        """Half the band as a fraction of its middle."""
        return (self.high_ms - self.low_ms) / (2 * self.ms)


@dataclass(frozen=True)
class Deviation:
    """How logarithms of measured over estimated time vary: by device and backend, by kind of type there, by figure."""

    device: float
    group: float
    figure: float

    @property
    def total(self) -> float:
        return math.hypot(self.device, self.group, self.figure)

    def given(self, anchors: Sequence[tuple[str, float]], group: str) -> tuple[float, float]:
        """(expected logarithm, its deviation with a figure's own) of a type of `group`, where `anchors` are the
        logarithms seen of types of some groups: the best linear guess."""
        shared = [self.device**2 + self.group**2 * (other == group) for other, _ in anchors]
        among = [
            [self.device**2 + self.group**2 * (a == b) + self.figure**2 * (i == j) for j, (b, _) in enumerate(anchors)]
            for i, (a, _) in enumerate(anchors)
        ]
        weights = _solve(among, shared)
        mean = sum(w * log for w, (_, log) in zip(weights, anchors, strict=True))
        left = self.total**2 - sum(w * s for w, s in zip(weights, shared, strict=True))
        return mean, math.sqrt(left)


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gauss without pivots: the matrix is a covariance, so every pivot is positive."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i, row in enumerate(rows):
        for other in rows[i + 1 :]:
            factor = other[i] / row[i]
            for column in range(i, len(row)):
                other[column] -= factor * row[column]
    found: list[float] = []
    for i in reversed(range(len(rows))):
        known = sum(rows[i][i + 1 + j] * value for j, value in enumerate(found))
        found.insert(0, (rows[i][-1] - known) / rows[i][i])
    return found


def backend_of(device: DeviceProfile) -> str:
    """What llama.cpp uses on a device where nothing else is said."""
    if device.kind in GPU_KINDS:
        return device.kind
    return "metal" if device.vendor == "Apple" else "cpu"


def published_bandwidth(device: DeviceProfile) -> float:
    """Bytes a second as a datasheet has them, from a measured bandwidth too; InputError where none is known."""
    if device.bandwidth_bytes_per_s is None:
        raise InputError(f"an estimate needs a bandwidth, {device.name} has none; run `bitfleet profile device` on it")
    if device.bandwidth_basis == "measured":
        return device.bandwidth_bytes_per_s / BANDWIDTH_EFFICIENCY
    return device.bandwidth_bytes_per_s


def calibration_name(backend: str, part: str) -> str:
    """Of the number in a profile by which a part of a device's estimate is multiplied, a kind of type or LAYERS; its
    spread is half the band as a logarithm."""
    return f"decode {backend}, {part}"


def read_estimate(device: DeviceProfile, backend: str, group: str, size: float) -> DecodeEstimate:
    """Milliseconds a token to read `size` bytes of types of `group` (`group_of`): of a matrix, or of a whole file
    without an embedding that is no head. InputError for a backend or a device without numbers."""
    _check(device, backend)
    return _scaled(device, backend, group, FITTED.read_ms(backend, group, size, published_bandwidth(device)))


def layers_estimate(device: DeviceProfile, backend: str, layers: int) -> DecodeEstimate:
    """Milliseconds a token that so many layers take beside reading. InputError as for `read_estimate`."""
    _check(device, backend)
    ms = FITTED.layers_ms(backend, layers, device.threads or device.cores_physical)
    return _scaled(device, backend, LAYERS, ms)


def decode_estimate(
    device: DeviceProfile, backend: str, read_bytes: Mapping[str, float], layers: int
) -> DecodeEstimate:
    """Milliseconds a token with an empty cache: `read_estimate` of the bytes of each group, and `layers_estimate`. What
    is off is off in all parts together, so their bands add."""
    parts = [read_estimate(device, backend, group, size) for group, size in read_bytes.items() if size]
    parts.append(layers_estimate(device, backend, layers))
    return DecodeEstimate(
        sum(part.ms for part in parts),
        sum(part.low_ms for part in parts),
        sum(part.high_ms for part in parts),
        any(part.anchored for part in parts),
    )


def _check(device: DeviceProfile, backend: str) -> None:
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "cpu" and device.instruction_sets and not set(DOT_PRODUCTS) & set(device.instruction_sets):
        raise InputError(
            f"{device.name} has none of {', '.join(DOT_PRODUCTS)}, so its speed is not its bandwidth's; "
            "run `bitfleet profile device` on it"
        )


def _scaled(device: DeviceProfile, backend: str, part: str, ms: float) -> DecodeEstimate:
    found = device.calibration(RUNTIME, calibration_name(backend, part))
    factor, half = (1.0, FITTED.half[backend]) if found is None else (found.value, found.spread or 0.0)
    middle = ms * factor
    return DecodeEstimate(middle, middle / math.exp(half), middle * math.exp(half), found is not None)


def anchored_number(backend: str, anchors: Sequence[tuple[str, float]], part: str) -> tuple[float, float]:
    """(factor of the estimate, half width of its band as a logarithm) of a part after `anchors`, each a kind of type
    and the logarithm of measured over estimated time."""
    mean, deviation = DEVIATION.given(anchors, part)
    return math.exp(mean), FITTED.half[backend] * deviation / DEVIATION.total


# Printed by `python benchmarks/published.py --fit` (2026-11-29, 188 figures). Low K types on processors and by Vulkan,
# and float and block types by Vulkan, have few figures or none: theirs follow the other backends'.
FITTED = Shares(
    share=MappingProxyType(
        {
            ("cpu", "float"): 0.654,
            ("cpu", "block"): 0.662,
            ("cpu", "k"): 0.578,
            ("cpu", "low k"): 0.413,
            ("cuda", "float"): 0.899,
            ("cuda", "block"): 0.894,
            ("cuda", "k"): 0.842,
            ("cuda", "low k"): 0.56,
            ("metal", "float"): 0.87,
            ("metal", "block"): 0.85,
            ("metal", "k"): 0.776,
            ("metal", "low k"): 0.522,
            ("vulkan", "float"): 0.861,
            ("vulkan", "block"): 0.856,
            ("vulkan", "k"): 0.782,
            ("vulkan", "low k"): 0.543,
        }
    ),
    layer_ms=MappingProxyType({"cuda": 0.0415, "metal": 0.1416, "vulkan": 0.0281}),
    core_layer_ms=0.00506,
    half=MappingProxyType({"cpu": 0.329, "cuda": 0.197, "metal": 0.214, "vulkan": 0.17}),
)
DEVIATION = Deviation(device=0.181, group=0.085, figure=0.055)
