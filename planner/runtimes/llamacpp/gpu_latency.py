"""How long one forward pass takes where a GPU has some layers and its host the others: an estimate in every part.

One token is what each side reads over its own bandwidth and a time for each of its layers, as figures that others
published say of whole models (`profiles.shares`), and the way of one residual from the host to the GPU. The host's part
is what was measured there, where it was. Of a prompt, the GPU computes the host's layers too from COPIED_ROWS tokens at
once on, from weights that are copied to it for each chunk; attention stays where the keys and values are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from planner.request import Workload
from planner.runtimes.base import DECODE, ESTIMATE, PREFILL, LatencyItem
from planner.runtimes.llamacpp import amounts, costs, latency, memory
from planner.runtimes.llamacpp.formats import type_of
from planner.runtimes.llamacpp.placement import COPIED_ROWS, GPU_CHUNK_TOKENS, Placed
from planner.runtimes.llamacpp.serving import cache_of
from planner.runtimes.passes import in_chunks
from profiles.device import DeviceProfile
from profiles.roofline import SPREAD, roofline
from profiles.shares import backend_of, layers_estimate, published_bandwidth
from records.errors import InputError
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec, UnitSpec

LINK_BYTES_PER_S = 12e9  # what copies from a host to a card reach where the slot has 8 lanes of PCIe 4.0 or 16 of 3.0
HANDOVER_MS = 0.05  # a pass changes from the host to the GPU: a copy is started and waited for


def items(
    spec: ModelSpec, subnet: Subnet, workload: Workload, device: DeviceProfile, phase: str
) -> tuple[LatencyItem, ...]:
    """ValueError for another phase than PREFILL and DECODE."""
    if phase not in (PREFILL, DECODE):
        raise ValueError(f"phase must be {PREFILL} or {DECODE}, got {phase!r}")
    placed = Placed.of(spec, workload, device)
    found = _decode(placed, subnet, workload, device) if phase == DECODE else _prefill(placed, subnet, workload, device)
    return tuple(found)


def _decode(placed: Placed, subnet: Subnet, workload: Workload, device: DeviceProfile) -> Iterator[LatencyItem]:
    def made(unit: UnitSpec) -> LatencyItem:
        on = device if placed.on_gpu(unit) else device.host
        return latency.unit_ms(placed.spec, unit, subnet[unit.name], workload, DECODE, on or device)

    yield from _of_units(placed, subnet, made)
    if placed.gpu_part is not None:
        yield from latency.around_unmeasured(placed.gpu_part, workload, device)
    if placed.host_part is not None and device.host is not None:
        around = latency.around(placed.host_part, workload, device.host, DECODE)
        yield from (replace(item, name=f"{item.name}, on the host") for item in around)
        yield _handover(placed.spec, workload.batch)


def _of_units(placed: Placed, subnet: Subnet, made: Callable[[UnitSpec], LatencyItem]) -> Iterator[LatencyItem]:
    """Of each unit that has products, what is `made` for it: once for those of the same shapes on the same side whose
    experts are chosen alike, for a model has few of these and every number of layers is priced."""
    known: dict[tuple[Any, ...], LatencyItem] = {}
    for unit in placed.spec.units:
        choice = subnet[unit.name]
        shapes = amounts.products(placed.spec, unit, choice.kept)
        alike = (shapes, choice, placed.on_gpu(unit), unit.is_table, unit.chosen_by)
        if shapes:
            known[alike] = known.get(alike) or made(unit)
            yield replace(known[alike], name=unit.name, unit=unit.name)


def _handover(spec: ModelSpec, rows: int, times: int = 1) -> LatencyItem:
    moved = amounts.FLOAT_BYTES * rows * spec.hidden_size
    ms = times * HANDOVER_MS + 1e3 * moved / LINK_BYTES_PER_S
    return LatencyItem("from the host to the GPU", ms, ESTIMATE, None, SPREAD)


def _prefill(placed: Placed, subnet: Subnet, workload: Workload, device: DeviceProfile) -> Iterator[LatencyItem]:
    spec, chunks = placed.spec, in_chunks(workload.prompt_tokens, GPU_CHUNK_TOKENS) * workload.batch
    rows = [count for count, _ in chunks]

    def made(unit: UnitSpec) -> LatencyItem:
        choice = subnet[unit.name]
        if amounts.runs_on_last_row(unit):
            return latency.unit_ms(spec, unit, choice, workload, PREFILL, device)
        if placed.on_gpu(unit):
            return _of_rows(device, spec, unit, choice, rows, copied=False)
        return _on_host(placed, unit, choice, rows, device)

    yield from _of_units(placed, subnet, made)
    scores = sum(count * there for count, there in chunks) * spec.num_heads * spec.head_dim
    if placed.layers:
        kept = memory.kv_bytes(spec, workload.context, workload.batch, cache_of(workload)) / spec.num_layers
        ms = _roof(device, placed.layers * kept, 4 * placed.layers * scores, "bf16")
        layers = layers_estimate(device, backend_of(device), placed.layers)
        yield LatencyItem("attention", ms, ESTIMATE, None, SPREAD)
        yield LatencyItem("graph, for each layer", len(chunks) * layers.ms, ESTIMATE, None, SPREAD)
    if placed.host_part is not None and device.host is not None:
        each, _ = costs.KNOWN.score_ns(device.host, PREFILL, cache_of(workload))
        ms = each * placed.host_part.num_layers * scores / 1e6
        yield LatencyItem("attention, on the host", ms, ESTIMATE, None, SPREAD)
        yield _handover(spec, sum(rows), len(rows))


def _on_host(placed: Placed, unit: UnitSpec, choice: Choice, rows: list[int], device: DeviceProfile) -> LatencyItem:
    """A unit of the host's: computed there for few tokens, else on the GPU."""
    assert device.host is not None
    few, many = [n for n in rows if n < COPIED_ROWS], [n for n in rows if n >= COPIED_ROWS]
    ms = _of_rows(device, placed.spec, unit, choice, many, copied=True).ms
    for count, each, inputs, outputs in _passed(placed.spec, unit, choice, few):
        ms += count * latency.product_ms(device.host, type_of(choice), each, inputs, outputs)[0]
    return LatencyItem(unit.name, ms, ESTIMATE, unit.name, SPREAD)


def _of_rows(
    device: DeviceProfile, spec: ModelSpec, unit: UnitSpec, choice: Choice, rows: list[int], copied: bool
) -> LatencyItem:
    """On the GPU, once for each chunk of so many rows; with the weights `copied` to it before."""
    ms = 0.0
    for count, each, inputs, outputs in _passed(spec, unit, choice, rows):
        size = outputs * type_of(choice).row_bytes(inputs)
        ms += count * _roof(device, size, 2 * each * inputs * outputs, "int8")
        ms += 1e3 * count * size / LINK_BYTES_PER_S if copied else 0.0
    return LatencyItem(unit.name, ms, ESTIMATE, unit.name, SPREAD)


def _passed(spec: ModelSpec, unit: UnitSpec, choice: Choice, rows: list[int]) -> Iterator[amounts.Product]:
    """The products of passes of so many rows each."""
    for each, times in Counter(rows).items():
        for count, some, inputs, outputs in amounts.passed(spec, unit, each, choice.kept):
            yield times * count, some, inputs, outputs


def _roof(device: DeviceProfile, moved: float, ops: float, precision: str) -> float:
    found = roofline(device, moved, ops, precision)
    if found is not None:
        return found.ms
    published_bandwidth(device)  # refuses a device without one
    raise InputError(f"an estimate of a prompt needs int8_ops_per_s, {device.name} has none; give its profile one")
