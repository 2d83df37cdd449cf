"""A device's own figures, as `llama-bench -o json` writes them, and what they make of its estimate.

The file says bytes and parameters of a model, not its layers or its embedding: layers are guessed, and the embedding
counts as read. Both are within the error of a figure (7 % between figures of one device and kind of type).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from profiles.device import Calibration, DeviceProfile
from profiles.shares import (
    BACKENDS,
    FITTED,
    PARTS,
    RUNTIME,
    anchored_number,
    calibration_name,
    group_of,
    published_bandwidth,
)
from records.errors import InputError

_TYPE = re.compile(r"\b(IQ\d\w*|TQ\d\w*|MXFP4|BF16|F16|F32|Q\d_\w+)\b")
_GPUS = {"CUDA": "cuda", "METAL": "metal", "MTL": "metal", "VULKAN": "vulkan"}
_OTHERS = ("ROCM", "HIP", "SYCL", "OPENCL", "CANN", "MUSA", "RPC")
MOST_PARAMETERS = 1e14
MOST_OFF = 100.0  # times that a figure may be faster or slower than the estimate: beyond it, a unit is mistaken
DEEPEST_TOKENS = 1024  # of cache that a figure may have been measured with: beyond it, reading the cache counts


@dataclass(frozen=True)
class Figure:
    """One measured decode speed."""

    backend: str
    group: str
    file_bytes: int
    layers: int  # guessed by the parameters
    tokens_per_s: float


def layers_of(parameters: float) -> int:
    """How many layers a language model of so many parameters has: within a fifth from 3 to 70 billion. InputError for
    more than any model has."""
    if parameters > MOST_PARAMETERS:
        raise InputError(f"a model has at most {MOST_PARAMETERS / 1e9:.0f}B parameters, got {parameters / 1e9:.3g}B")
    return round(32 * (parameters / 7e9) ** 0.4)


def figures(rows: Any, where: str) -> list[Figure]:
    """Decode speeds among the rows of `llama-bench -o json`: those that only generate. InputError, naming the row,
    where one is not of a whole model on one backend with known numbers, or where there is none."""
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise InputError(f"{where} must be the array that `llama-bench -o json` writes")
    found = [
        _figure(row, f"row {i} of {where}")
        for i, row in enumerate(rows, 1)
        if _number(row, "n_gen", f"row {i} of {where}") > 0
        and _number(row, "n_prompt", f"row {i} of {where}") == 0
        and _number({"n_depth": 0, **row}, "n_depth", f"row {i} of {where}") <= DEEPEST_TOKENS
    ]
    if not found:
        raise InputError(f"{where} has no row that only generates; run `llama-bench -p 0 -n 128 -o json -m MODEL`")
    return found


def build_of(rows: Any) -> str:
    """The build of llama.cpp that wrote `rows`, as far as they say."""
    named = [rows[0].get("build_number"), rows[0].get("build_commit")] if rows else []
    return " ".join(str(part) for part in named if part)


def _figure(row: Mapping[str, Any], where: str) -> Figure:
    parameters, size = _number(row, "model_n_params", where), _number(row, "model_size", where)
    speed = _number(row, "avg_ts", where)
    if min(parameters, size, speed) <= 0:
        raise InputError(f"model_n_params, model_size and avg_ts in {where} must be above 0")
    layers = layers_of(parameters)
    name = _TYPE.search(str(row.get("model_type", "")))
    if name is None:
        raise InputError(f"model_type in {where} names no type of GGUF, got {row.get('model_type')!r}")
    on_gpu = int(_number(row, "n_gpu_layers", where))
    if 0 < on_gpu < 0.75 * layers:
        raise InputError(
            f"{where} kept layers on the host (n_gpu_layers {on_gpu}); measure the whole model with -ngl 99"
        )
    return Figure(_backend(str(row.get("backends", "")), on_gpu, where), group_of(name[1]), int(size), layers, speed)


def _backend(said: str, on_gpu: int, where: str) -> str:
    parts = [part.strip().rstrip("0123456789").upper() for part in said.split(",")]
    if on_gpu:
        for part in parts:
            if part in _OTHERS:
                raise InputError(f"backends in {where} is {said}; speeds are known for {', '.join(BACKENDS)}")
            if part in _GPUS:
                return _GPUS[part]
    return "cpu"


def _number(row: Mapping[str, Any], name: str, where: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{name} in {where} must be a number, got {value!r}")
    return float(value)


def anchored(device: DeviceProfile, seen: Sequence[Figure], build: str = "") -> DeviceProfile:
    """`device` with its estimate rescaled for every kind of type of the backends that were `seen`, and a narrower band
    (see `profiles.shares`). What was anchored before on those backends is replaced. InputError without a bandwidth, and
    for a figure that no mistake of the estimate explains."""
    bandwidth, cores = published_bandwidth(device), device.threads or device.cores_physical
    logs: dict[str, list[tuple[str, float]]] = {}
    for figure in seen:
        reading = FITTED.read_ms(figure.backend, figure.group, figure.file_bytes, bandwidth)
        estimated = 1e3 / (reading + FITTED.layers_ms(figure.backend, figure.layers, cores))
        ratio = estimated / figure.tokens_per_s
        if not 1 / MOST_OFF <= ratio <= MOST_OFF:
            raise InputError(
                f"a figure is within {MOST_OFF:.0f} times the estimate, which is {estimated:.3g} tokens a second on "
                f"{device.name}, got {figure.tokens_per_s:.3g}; check size and speed"
            )
        logs.setdefault(figure.backend, []).append((figure.group, math.log(ratio)))
    new = [
        Calibration(RUNTIME, calibration_name(backend, part), value, "x estimate", spread)
        for backend, anchors in logs.items()
        for part in PARTS
        for value, spread in [anchored_number(backend, anchors, part)]
    ]
    names = {(c.runtime, c.name) for c in new}
    kept = [c for c in device.calibrations if (c.runtime, c.name) not in names]
    versions = {**device.versions, **({"llama.cpp": build} if build else {})}
    return replace(device, calibrations=(*kept, *new), versions=versions)
