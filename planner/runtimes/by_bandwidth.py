"""What a runtime costs on a device where nothing of it was measured: bytes over bandwidth, operations over peak.

Every number is an estimate and says so. One token of one sequence rests on decode speeds that others published
(`profiles.folder_shares`), with their band; a prompt, and several sequences at once, are good to a factor of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.request import Workload
from planner.runtimes.base import DECODE, ESTIMATE, PREFILL, LatencyItem, MemoryItem
from planner.runtimes.caches import CacheType
from planner.runtimes.passes import DECODED_TOKENS
from profiles.device import DeviceProfile
from profiles.folder_shares import FIGURES, FLOAT, Reading, layers_estimate, read_estimate
from profiles.roofline import BANDWIDTH_EFFICIENCY, COMPUTE_EFFICIENCY, SPREAD, peak_ops_per_s
from records.errors import InputError
from supernet.spec import EMBEDDING, HEAD, ModelSpec, UnitSpec

VALUE_BYTES = 2  # of an activation: float16


@dataclass(frozen=True)
class Usual:
    """What a runtime usually takes beside weights and cache. `process_bytes` before any weight; `step_ms` of a forward
    pass and `layer_ms` of each of its layers for what is no product; `chunk_tokens` of a prompt go through at once;
    `ops_per_byte` stands in for compute that no datasheet gives, as a multiple of the bandwidth."""

    process_bytes: int
    step_ms: float
    layer_ms: float
    chunk_tokens: int
    ops_per_byte: float | None = None


def kv_bytes(spec: ModelSpec, tokens: int, cache: CacheType) -> int:
    return 2 * spec.num_layers * spec.num_kv_heads * cache.bytes_of(spec.head_dim) * tokens


def activation_bytes(spec: ModelSpec, workload: Workload, usual: Usual) -> int:
    """The widest layer of a chunk twice over, and the logits of each sequence in float32."""
    tokens = min(usual.chunk_tokens, workload.context * workload.batch)
    return 2 * VALUE_BYTES * tokens * (spec.widest + 2 * spec.hidden_size) + 8 * workload.batch * spec.vocab_size


def memory_items(
    spec: ModelSpec, workload: Workload, cache: CacheType, sizes: Mapping[str, int], usual: Usual
) -> tuple[MemoryItem, ...]:
    """`sizes` are the bytes of each unit's weights, by its name."""
    units = (MemoryItem(unit.name, sizes[unit.name], ESTIMATE, unit.name) for unit in spec.units)
    return (
        *units,
        MemoryItem("norms and biases", VALUE_BYTES * spec.float_parameters, ESTIMATE),
        MemoryItem("KV cache", kv_bytes(spec, workload.context * workload.batch, cache), ESTIMATE),
        MemoryItem("activations", activation_bytes(spec, workload, usual), ESTIMATE),
        MemoryItem("runtime", usual.process_bytes, ESTIMATE),
    )


def latency_items(
    spec: ModelSpec,
    workload: Workload,
    device: DeviceProfile,
    phase: str,
    cache: CacheType,
    readings: Mapping[str, Reading],
    runtime: str,
    usual: Usual,
) -> tuple[LatencyItem, ...]:
    """`readings` are what a token reads of each unit, by its name. Of a runtime without published figures one token is
    good to a factor of two, too."""
    if phase not in (PREFILL, DECODE):
        raise ValueError(f"phase must be {PREFILL} or {DECODE}, got {phase!r}")
    if phase == DECODE and runtime in FIGURES:
        return _decode(spec, workload, device, cache, readings, runtime, usual)
    rows, passes = _rows(workload, phase), -(-_rows(workload, phase) // usual.chunk_tokens)
    items = []
    for unit in spec.units:
        size, ops = _work(spec, unit, readings[unit.name].size, rows, workload.batch)
        items.append(LatencyItem(unit.name, _ms(device, passes * size, ops, usual), ESTIMATE, unit.name, SPREAD))
    moved, scores = _attention(spec, workload, phase, cache)
    beside = passes * (usual.step_ms + usual.layer_ms * spec.num_layers)
    return (
        *items,
        LatencyItem("attention", _ms(device, moved, scores, usual), ESTIMATE, None, SPREAD),
        LatencyItem("norms, activations and sampling", beside, ESTIMATE, None, SPREAD),
    )


def _decode(
    spec: ModelSpec, workload: Workload, device: DeviceProfile, cache: CacheType, readings: Mapping[str, Reading],
    runtime: str, usual: Usual,
) -> tuple[LatencyItem, ...]:  # fmt: skip
    """Reading takes as long as published figures say, computing at least as long as the peak allows."""
    rows, (kept, scores) = _rows(workload, DECODE), _attention(spec, workload, DECODE, cache)
    parts: list[tuple[str, str | None, Reading, int]] = []
    for unit in spec.units:
        whole = readings[unit.name]
        size, ops = _work(spec, unit, whole.size, rows, workload.batch)
        parts.append((unit.name, unit.name, replace(whole, size=size), ops))
    parts.append(("attention", None, Reading(kept, FLOAT), scores))
    items = []
    for name, unit_name, reading, ops in parts:
        read = read_estimate(device, runtime, reading)
        spread = read.spread if workload.batch == 1 else SPREAD  # figures are of one sequence
        items.append(LatencyItem(name, max(read.ms, _ms(device, 0, ops, usual)), ESTIMATE, unit_name, spread))
    layers = layers_estimate(runtime, spec.num_layers)
    return (*items, LatencyItem("kernels of each layer", layers.ms, ESTIMATE, None, layers.spread))


def _rows(workload: Workload, phase: str) -> int:
    return workload.batch * (workload.prompt_tokens if phase == PREFILL else 1)


def _attention(spec: ModelSpec, workload: Workload, phase: str, cache: CacheType) -> tuple[int, int]:
    """Bytes of the cache that are read, and operations of the scores and sums."""
    cached = min(workload.context, workload.prompt_tokens + (DECODED_TOKENS // 2 if phase == DECODE else 0))
    scores = 4 * _rows(workload, phase) * cached * spec.num_heads * spec.head_dim * spec.num_layers
    return kv_bytes(spec, cached * workload.batch, cache), scores


def _work(spec: ModelSpec, unit: UnitSpec, size: float, rows: int, batch: int) -> tuple[float, int]:
    """Bytes read by a pass and operations of all rows. A table that is looked up alone costs its rows; logits are
    computed for the last token of each sequence. Of experts, those that the rows are expected to choose are read."""
    if unit.role == EMBEDDING and not spec.tied:
        return size * rows // unit.linears[0].out_features, 0
    ops = 2 * unit.weights * (batch if unit.role in (EMBEDDING, HEAD) else rows)
    return size * unit.share_read(rows), round(ops * unit.share_computed)


def _ms(device: DeviceProfile, moved: float, ops: float, usual: Usual) -> float:
    bandwidth = device.bandwidth_bytes_per_s
    if bandwidth is None:
        raise InputError(f"an estimate of latency needs a bandwidth, {device.name} has none; give its profile one")
    rate = peak_ops_per_s(device, "bf16")
    if rate is None and usual.ops_per_byte is not None:
        rate = usual.ops_per_byte * bandwidth
    if rate is None:
        raise InputError(f"an estimate of latency needs bf16_ops_per_s, {device.name} has none; give its profile one")
    share = 1.0 if device.bandwidth_basis == "measured" else BANDWIDTH_EFFICIENCY
    return 1e3 * max(moved / (bandwidth * share), ops / (rate * COMPUTE_EFFICIENCY))
