"""How long one forward pass takes: the quantized products from the kernel table, and what the graph does around them.

Time to first token is a pass over each chunk of the prompt; logits are computed for a chunk's last position only. Time
per token is a pass over one token with the prompt and half of DECODED_TOKENS in the cache, which is what `verify`
measures; attention grows with every token, by the item that says so.
"""

from __future__ import annotations

from collections import Counter

from planner.request import Workload
from planner.runtimes.base import DECODE, ESTIMATE, MODELLED, PREFILL, LatencyItem, weakest
from planner.runtimes.calibrated import PRODUCTS
from planner.runtimes.onnxruntime import costs, storage
from planner.runtimes.onnxruntime.cache import RUNTIME, cache_of
from planner.runtimes.onnxruntime.memory import layer_values
from planner.runtimes.passes import Passes, evenly_compared, in_chunks
from profiles.device import DeviceProfile
from profiles.roofline import roofline
from records.errors import InputError
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec, UnitSpec


def product_ms(device: DeviceProfile, choice: Choice, rows: int, inputs: int, outputs: int) -> tuple[float, float, str]:
    """(ms, spread, basis) of one product: measured here, or else what datasheet bandwidth and compute allow.

    Products are measured with zeros. One without takes as long (docs/log.md), and says that this is a rule.
    """
    ms, spread, basis = _with_zeros_ms(device, choice, rows, inputs, outputs)
    return ms, spread, weakest((basis, MODELLED)) if choice.format.symmetric else basis


def _with_zeros_ms(
    device: DeviceProfile, choice: Choice, rows: int, inputs: int, outputs: int
) -> tuple[float, float, str]:
    table = device.kernels
    found = table.estimate(RUNTIME, choice.bits, choice.group_size, rows, inputs, outputs)
    if found is not None:
        return found.ms, found.spread, found.basis
    sizes = {e.group_size for e in table.entries if (e.runtime, e.bits) == (RUNTIME, choice.bits)}
    if sizes:  # beyond the measured group sizes: the nearest, which differs by the bytes of the scales
        nearest = min(sizes, key=lambda size: abs(size.bit_length() - choice.group_size.bit_length()))
        found = table.estimate(RUNTIME, choice.bits, nearest, rows, inputs, outputs)
        if found is not None:
            return found.ms, max(found.spread, 0.3), ESTIMATE
    moved = storage.matrix_bytes(inputs, outputs, choice) + 4 * rows * (inputs + outputs)
    found = roofline(device, moved, 2 * rows * inputs * outputs)
    if found is None:
        raise InputError(
            f"latency needs a measured or published speed, {device.name} has neither; "
            "run `bitfleet profile device` on it"
        )
    return found.ms, found.spread, ESTIMATE


def chunks(workload: Workload) -> list[tuple[int, int]]:
    """(rows, tokens a sequence has by then) of each pass that reads the prompts; several sequences are not chunked."""
    if workload.batch > 1:
        return [(workload.batch * workload.prompt_tokens, workload.prompt_tokens)]
    return in_chunks(workload.prompt_tokens, costs.CHUNK_TOKENS)


PASSES = Passes(costs.KNOWN, chunks, cache_of, evenly_compared, layer_values, "step and sampling")


def unit_ms(
    spec: ModelSpec, unit: UnitSpec, choice: Choice, workload: Workload, phase: str, device: DeviceProfile
) -> LatencyItem:
    passes = chunks(workload) if phase == PREFILL else [(workload.batch, 0)]
    last = storage.runs_on_last_row(unit)
    times = Counter(workload.batch if last else rows for rows, _ in passes)
    shapes = storage.products(spec, unit, choice.kept)
    parts = [(count, *product_ms(device, choice, rows, k, n)) for rows, count in times.items() for k, n in shapes]
    few = phase == DECODE or last  # rows: reading the weights takes longer than multiplying by them
    factor = costs.value(device, PRODUCTS)[0] if few else 1.0
    more = costs.spread(device, PRODUCTS) if few else 0.0
    return LatencyItem.of_products(unit.name, parts, factor, more)


def items(
    spec: ModelSpec, subnet: Subnet, workload: Workload, device: DeviceProfile, phase: str
) -> tuple[LatencyItem, ...]:
    units = tuple(unit_ms(spec, unit, subnet[unit.name], workload, phase, device) for unit in spec.units)
    return units + PASSES.around(spec, workload, device, phase)
