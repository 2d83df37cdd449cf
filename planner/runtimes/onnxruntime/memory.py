"""Peak resident memory of a process that loads a package with onnxruntime-genai and serves one workload.

What happens, as seen in /proc while models of several sizes load and run (ONNX Runtime 1.31, x86-64):

- Each product's codes are packed into memory of its own, with a copy of the scales and one float sum a block; the
  mapped codes are then released, the mapped scales and zeros stay.
- A tied table's codes are copied once more, because the look-up wants them in another shape. While it loads, the
  mapped codes are there as well: a third time, but only until the generator starts.
- The KV cache is allocated and cleared for the whole context when the generator starts.
- Activations grow with the prompt, by a factor of what is alive in one layer. Attention keeps no matrix of scores.
- The rest is the process: Python, the runtime's code, its arena.
"""

from __future__ import annotations

from typing import Any

from planner.runtimes.base import EXACT, MODELLED, MemoryItem, weakest
from planner.runtimes.onnxruntime import costs, storage
from supernet.space import Choice, Subnet
from supernet.spec import EMBEDDING, ModelSpec, UnitSpec

KV_BYTES = 4  # float32
PACKED_ROWS = 16  # packed rows are a multiple of this
# Bytes that packing keeps beside the codes for each block: a copy of the scale, the block's sum; at 2 bits, twice.
PACKED_BYTES_PER_BLOCK = {2: 16, 4: 8, 8: 8}


def packed_bytes(inputs: int, outputs: int, choice: Choice) -> int:
    rows = -(-outputs // PACKED_ROWS) * PACKED_ROWS
    blocks = rows * (inputs // choice.group_size)
    return storage.code_bytes(inputs, outputs, choice) + blocks * PACKED_BYTES_PER_BLOCK[choice.bits]


def mapped_bytes(inputs: int, outputs: int, choice: Choice) -> int:
    """Scales and zeros, which stay mapped from the weight file."""
    return storage.scale_bytes(inputs, outputs, choice) + storage.zero_bytes(inputs, outputs, choice)


def unit_bytes(spec: ModelSpec, unit: UnitSpec, choice: Choice) -> int:
    """What the unit keeps in memory once the model is loaded."""
    total = sum(mapped_bytes(k, n, choice) for k, n in storage.matrices(unit, choice.kept))
    total += sum(packed_bytes(k, n, choice) for k, n in storage.products(spec, unit, choice.kept))
    if unit.role == EMBEDDING:  # the look-up's copy, or the mapped file of a table that is only looked up
        total += sum(storage.code_bytes(k, n, choice) for k, n in storage.matrices(unit))
    return total


def kv_bytes(spec: ModelSpec, workload: Any) -> int:
    return spec.kv_bytes_per_token(KV_BYTES) * workload.context * workload.batch


def layer_values(spec: ModelSpec) -> int:
    """Values a token that one layer computes: residuals and feed-forward three times each, and the projections.

    Of a layer that keeps all its channels, as one of them may: what pruning saves here is left out.
    """
    first = [unit for unit in spec.units if unit.layer == 0]
    wide = max(n for unit in first for _, n in storage.matrices(unit) if unit.role not in ("qkv", "qkv_proj"))
    attention = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    return 3 * wide + 3 * spec.hidden_size + attention


def activation_bytes(spec: ModelSpec, workload: Any, factor: float) -> int:
    tokens = workload.prompt_tokens * workload.batch
    return round(4 * tokens * layer_values(spec) * factor) + 2 * 4 * workload.batch * spec.vocab_size


def overlap_bytes(spec: ModelSpec, choice: Choice, workload: Any, factor: float) -> int:
    """How much more loading takes than serving: a tied table's mapped codes against cache and activations."""
    if not spec.tied:
        return 0
    table = next(unit for unit in spec.units if unit.role == EMBEDDING)
    codes = sum(storage.code_bytes(k, n, choice) for k, n in storage.matrices(table))
    return max(0, codes - kv_bytes(spec, workload) - activation_bytes(spec, workload, factor))


def items(spec: ModelSpec, subnet: Subnet, workload: Any, device: Any) -> tuple[MemoryItem, ...]:
    factor, factor_basis = costs.value(device, costs.ACTIVATIONS)
    base, base_basis = costs.value(device, costs.BASE)
    units = tuple(
        MemoryItem(unit.name, unit_bytes(spec, unit, subnet[unit.name]), MODELLED, unit.name) for unit in spec.units
    )
    rest = [
        MemoryItem("norms, biases and rotary tables", storage.float_bytes(spec, workload.context), EXACT),
        MemoryItem("KV cache", kv_bytes(spec, workload), EXACT),
        MemoryItem("activations", activation_bytes(spec, workload, factor), factor_basis),
        MemoryItem("runtime", round(base), base_basis),
    ]
    for unit in spec.units:
        if unit.role == EMBEDDING:
            extra = overlap_bytes(spec, subnet[unit.name], workload, factor)
            rest.append(MemoryItem("loading the embedding", extra, weakest((factor_basis, MODELLED)), unit.name))
    return (*units, *rest)
