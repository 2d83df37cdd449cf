"""Peak resident memory of a process that loads a package with onnxruntime-genai and serves one workload.

What happens, as seen in /proc while models of several sizes load and run (ONNX Runtime 1.31, x86-64):

- Each product's codes are packed into memory of its own, with a copy of the scales and one float sum a block; the
  mapped codes are then released, the mapped scales and zeros stay.
- Products are packed in the order of the graph's nodes, and the head comes first: its mapped codes and their packed
  copy are there together while nothing else is.
- Tokens are looked up in the mapped file, page by page; a long text comes to touch every page.
- The KV cache is allocated and cleared for the whole context when the generator starts.
- A prompt goes through in chunks, so activations grow with it no further than CHUNK_TOKENS, by a factor of what is
  alive in one layer. Attention keeps no matrix of scores. Several sequences at a time are not chunked.
- The rest is the process: Python, the runtime's code, its arena, and what it keeps of each layer.
"""

from __future__ import annotations

from planner.request import Workload
from planner.runtimes import passes
from planner.runtimes.base import EXACT, MODELLED, MemoryItem, weakest
from planner.runtimes.calibrated import ACTIVATIONS, BASE, LAYER_BYTES
from planner.runtimes.onnxruntime import costs, storage
from planner.runtimes.onnxruntime.cache import cache_of
from profiles.device import DeviceProfile
from supernet.space import Choice, Subnet
from supernet.spec import EMBEDDING, ModelSpec, UnitSpec

FLOAT_BYTES = 4
LOGIT_COPIES = 4  # the graph's, and those that the next token is picked from
SUM_ROWS = 16  # the sums of blocks are kept for a multiple of this many rows
TWO_BIT_BLOCKS = 4  # a row of 2-bit codes is packed in a multiple of this many blocks
RESIDUAL_BYTES = 2_500_000  # of a sequence: the most that these rules left out of any shape (docs/log.md)


def packed_bytes(inputs: int, outputs: int, choice: Choice) -> int:
    """Codes in the kernel's order, and for each block a copy of its scale and a sum, both float32."""
    blocks = inputs // choice.group_size
    if choice.bits == 2:
        blocks = -(-blocks // TWO_BIT_BLOCKS) * TWO_BIT_BLOCKS
    codes = storage.code_bytes(blocks * choice.group_size, outputs, choice)
    return codes + 4 * blocks * outputs + sum_bytes(blocks, outputs)


def sum_bytes(blocks: int, outputs: int) -> int:
    return 4 * blocks * -(-outputs // SUM_ROWS) * SUM_ROWS


def mapped_bytes(inputs: int, outputs: int, choice: Choice) -> int:
    """Scales and zeros, which stay mapped from the weight file."""
    return storage.scale_bytes(inputs, outputs, choice) + storage.zero_bytes(inputs, outputs, choice)


def unit_bytes(spec: ModelSpec, unit: UnitSpec, choice: Choice) -> int:
    """What the unit keeps in memory once the model is loaded, and every token has been looked up."""
    total = sum(mapped_bytes(k, n, choice) for k, n in storage.matrices(unit, choice.kept))
    total += storage.bias_bytes(unit, choice.kept)
    total += sum(packed_bytes(k, n, choice) for k, n in storage.products(spec, unit, choice.kept))
    if unit.role == EMBEDDING:  # looked up in the mapped file, also where a packed copy serves as the head
        total += sum(storage.code_bytes(k, n, choice) for k, n in storage.matrices(unit))
    return total


def kv_bytes(spec: ModelSpec, workload: Workload) -> int:
    return spec.kv_bytes_per_token(cache_of(workload).block_bytes) * workload.context * workload.batch


def layer_values(spec: ModelSpec) -> int:
    """As `passes.layer_values`."""
    first = [unit for unit in spec.units if unit.layer == 0 and unit.role not in ("qkv", "qkv_proj")]
    return passes.layer_values(spec, max(n for unit in first for _, n in storage.matrices(unit)))


def activation_bytes(spec: ModelSpec, workload: Workload, factor: float) -> int:
    """Of the longest prompt that fits the context."""
    tokens = min(costs.CHUNK_TOKENS, workload.context) if workload.batch == 1 else workload.context * workload.batch
    logits = LOGIT_COPIES * FLOAT_BYTES * workload.batch * spec.vocab_size
    return round(FLOAT_BYTES * tokens * layer_values(spec) * factor) + logits


def loading_bytes(head: UnitSpec, choice: Choice) -> int:
    """What the head takes while it is packed beyond what it keeps: sums in the making, and the mapped codes, unless
    tokens are looked up in the same."""
    ((inputs, outputs),) = storage.matrices(head)
    mapped = 0 if head.role == EMBEDDING else storage.code_bytes(inputs, outputs, choice)
    return mapped + sum_bytes(inputs // choice.group_size, outputs)


def items(spec: ModelSpec, subnet: Subnet, workload: Workload, device: DeviceProfile) -> tuple[MemoryItem, ...]:
    factor, factor_basis = costs.value(device, ACTIVATIONS)
    base, base_basis = costs.value(device, BASE)
    layer, layer_basis = costs.value(device, LAYER_BYTES)
    units = [
        MemoryItem(unit.name, unit_bytes(spec, unit, subnet[unit.name]), MODELLED, unit.name) for unit in spec.units
    ]
    served = [
        MemoryItem("norms, biases and rotary tables", storage.float_bytes(spec, workload.context), EXACT),
        MemoryItem("KV cache", kv_bytes(spec, workload), EXACT),
        MemoryItem("activations", activation_bytes(spec, workload, factor), factor_basis),
    ]
    process = round(base + layer * spec.num_layers)
    reserve = round(base * costs.spread(device, BASE)) + RESIDUAL_BYTES * workload.batch
    head = spec.head
    later = sum(item.bytes for item in (*units, *served) if item.unit != head.name)
    return (
        *units,
        *served,
        MemoryItem("runtime", process, weakest((base_basis, layer_basis))),
        MemoryItem("loading the head", max(0, loading_bytes(head, subnet[head.name]) - later), MODELLED),
        MemoryItem("reserve", reserve, MODELLED),
    )
