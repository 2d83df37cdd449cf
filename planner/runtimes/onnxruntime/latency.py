"""How long one forward pass takes: the quantized products from the kernel table, and what the graph does around them.

Time to first token is a pass over each chunk of the prompt; logits are computed for a chunk's last position only. Time
per token is a pass over one token with the prompt and half of DECODED_TOKENS in the cache, which is what `verify`
measures; attention grows with every token, by the item that says so.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from planner.runtimes.base import DECODE, ESTIMATE, MODELLED, PREFILL, LatencyItem, weakest
from planner.runtimes.onnxruntime import costs, storage
from planner.runtimes.onnxruntime.cache import cache_of
from planner.runtimes.onnxruntime.memory import layer_values
from profiles.roofline import SPREAD, roofline
from records.errors import InputError
from supernet.space import Choice, Subnet
from supernet.spec import ModelSpec, UnitSpec

DECODED_TOKENS = 64


def product_ms(device: Any, choice: Choice, rows: int, inputs: int, outputs: int) -> tuple[float, float, str]:
    """(ms, spread, basis) of one product: measured here, or else what datasheet bandwidth and compute allow.

    Products are measured with zeros. One without takes as long (docs/log.md), and says that this is a rule.
    """
    ms, spread, basis = _with_zeros_ms(device, choice, rows, inputs, outputs)
    return ms, spread, weakest((basis, MODELLED)) if choice.format.symmetric else basis


def _with_zeros_ms(device: Any, choice: Choice, rows: int, inputs: int, outputs: int) -> tuple[float, float, str]:
    table = device.kernels
    found = table.estimate(costs.RUNTIME, choice.bits, choice.group_size, rows, inputs, outputs)
    if found is not None:
        return found.ms, found.spread, found.basis
    sizes = {e.group_size for e in table.entries if (e.runtime, e.bits) == (costs.RUNTIME, choice.bits)}
    if sizes:  # beyond the measured group sizes: the nearest, which differs by the bytes of the scales
        nearest = min(sizes, key=lambda size: abs(size.bit_length() - choice.group_size.bit_length()))
        found = table.estimate(costs.RUNTIME, choice.bits, nearest, rows, inputs, outputs)
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


def chunks(workload: Any) -> list[tuple[int, int]]:
    """(rows, tokens a sequence has by then) of each pass that reads the prompts; several sequences are not chunked."""
    prompt = workload.prompt_tokens
    if workload.batch > 1:
        return [(workload.batch * prompt, prompt)]
    size = costs.CHUNK_TOKENS
    return [(min(size, prompt - start), min(start + size, prompt)) for start in range(0, prompt, size)]


def unit_ms(spec: ModelSpec, unit: UnitSpec, choice: Choice, workload: Any, phase: str, device: Any) -> LatencyItem:
    passes = chunks(workload) if phase == PREFILL else [(workload.batch, 0)]
    last = storage.runs_on_last_row(unit)
    times = Counter(workload.batch if last else rows for rows, _ in passes)
    shapes = storage.products(spec, unit, choice.kept)
    parts = [(count, *product_ms(device, choice, rows, k, n)) for rows, count in times.items() for k, n in shapes]
    few = phase == DECODE or last  # rows: reading the weights takes longer than multiplying by them
    factor = costs.value(device, costs.PRODUCTS)[0] if few else 1.0
    more = costs.spread(device, costs.PRODUCTS) if few else 0.0
    return LatencyItem.of_products(unit.name, parts, factor, more)


def items(spec: ModelSpec, subnet: Subnet, workload: Any, device: Any, phase: str) -> tuple[LatencyItem, ...]:
    units = tuple(unit_ms(spec, unit, subnet[unit.name], workload, phase, device) for unit in spec.units)
    return units + around(spec, workload, device, phase)


def around(spec: ModelSpec, workload: Any, device: Any, phase: str) -> tuple[LatencyItem, ...]:
    """Everything but the products."""
    if phase not in (PREFILL, DECODE):
        raise ValueError(f"phase must be {PREFILL} or {DECODE}, got {phase!r}")
    width = spec.num_heads * spec.head_dim * spec.num_layers
    if phase == PREFILL:
        passes, tokens = len(chunks(workload)), workload.batch * workload.prompt_tokens
        scores = sum(rows * known for rows, known in chunks(workload)) * width
    else:
        cached = min(workload.context, workload.prompt_tokens + DECODED_TOKENS // 2)
        passes, tokens, scores = 1, workload.batch, workload.batch * cached * width
    score, score_basis = costs.score_ns(device, phase, cache_of(workload))
    amounts = (
        ("norms, activations and residuals", costs.VALUE, tokens * layer_values(spec) * spec.num_layers / 1e6),
        ("graph, for each layer", costs.LAYER, float(passes * spec.num_layers)),
        ("step and sampling", costs.STEP, float(passes)),
    )
    found = [(label, *costs.value(device, key), amount) for label, key, amount in amounts]
    found.insert(0, ("attention", score, score_basis, scores / 1e6))
    return tuple(
        LatencyItem(label, cost * amount, basis, None, SPREAD if basis == ESTIMATE else 0.0)
        for label, cost, basis, amount in found
    )
