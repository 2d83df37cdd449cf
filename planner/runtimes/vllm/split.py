"""How vLLM divides a model over GPUs (`--tensor-parallel-size`): each has a part of every matrix and of the cache.

Read from vLLM 0.32, `model_executor/layers/linear.py` and `vocab_parallel_embedding.py`: what reads a layer's input is
divided by rows, heads whole, and a KV head is copied where there are more GPUs than KV heads; what makes its output is
divided by columns, groups whole; tables by rows of a vocabulary that is filled up to a multiple of 64. Norms are
everywhere. After each output, and after the embedding, all GPUs add up what they have.
"""

from __future__ import annotations

from dataclasses import replace

from planner.runtimes.vllm.blocks import heads_kept
from profiles.device import DeviceProfile
from supernet.space import Choice
from supernet.spec import READERS, LinearSpec, ModelSpec, UnitSpec

VOCABULARY_STEP = 64  # DEFAULT_VOCAB_PADDING_SIZE
WORD_BITS = 32
OUTPUTS = ("o", *READERS)
"""Roles of what makes a layer's output, divided by columns."""
SUMS_OF_LAYER = 2
SUM_MS = 0.02  # of few bytes: started, waited for
LINK_BYTES_PER_S, LINK_BYTES_PER_S_NVLINK = 20e9, 300e9
"""What moves between GPUs each way: over a slot of 16 lanes of PCIe 4.0, over NVLink 3.0 and later in a server."""
NVLINK = ("sxm", "b200", "h20-")
VALUE_BYTES = 2


def model_refusal(spec: ModelSpec, gpus: int) -> str | None:
    """Why a model cannot be divided over so many GPUs."""
    if spec.experts and gpus > 1:
        return "its experts are planned for on one GPU alone"
    if spec.num_heads % gpus:
        return f"its {spec.num_heads} heads are no multiple of {gpus}"
    more, fewer = max(gpus, spec.num_kv_heads), min(gpus, spec.num_kv_heads)
    if more % fewer:
        return f"its {spec.num_kv_heads} KV heads and {gpus} GPUs are no multiple of each other"
    if _filled(spec.vocab_size) % gpus:
        return f"its vocabulary of {_filled(spec.vocab_size)} rows, filled up, is no multiple of {gpus}"
    return None


def _filled(rows: int) -> int:
    return -(-rows // VOCABULARY_STEP) * VOCABULARY_STEP


def choice_refusal(spec: ModelSpec, unit: UnitSpec, choice: Choice, gpus: int) -> str | None:
    """Why a unit at `choice` cannot be, of a model that can."""
    if gpus == 1 or unit.is_table:
        return None
    for linear in unit.linears:
        if unit.role in OUTPUTS:
            if linear.in_features % (gpus * choice.group_size):
                size = f"{linear.in_features} inputs of {linear.name}"
                return f"{gpus} GPUs cannot each have whole groups of {choice.group_size} of the {size}"
        elif linear.out_features % gpus:
            return f"the {linear.out_features} rows of {linear.name} are no multiple of {gpus} GPUs"
        elif not choice.format.symmetric and _rows(spec, linear, gpus) * choice.bits % WORD_BITS:
            rows = _rows(spec, linear, gpus)
            return f"zeros of {choice.bits} bits are packed over {WORD_BITS // choice.bits} rows, a GPU has {rows}"
    return None


def divided(spec: ModelSpec, gpus: int) -> ModelSpec:
    """What each GPU has of a model: parts of units, and of heads. Norms and biases count in full."""
    if gpus == 1:
        return spec
    units = tuple(_part_of(spec, unit, gpus) for unit in spec.units)
    return replace(spec, units=units, num_heads=spec.num_heads // gpus, num_kv_heads=heads_kept(spec, gpus))


def _part_of(spec: ModelSpec, unit: UnitSpec, gpus: int) -> UnitSpec:
    return replace(unit, linears=tuple(_part(spec, unit, linear, gpus) for linear in unit.linears))


def _part(spec: ModelSpec, unit: UnitSpec, linear: LinearSpec, gpus: int) -> LinearSpec:
    if unit.role in OUTPUTS:
        return replace(linear, in_features=linear.in_features // gpus)
    if unit.is_table:
        return replace(linear, out_features=_filled(linear.out_features) // gpus)
    return replace(linear, out_features=_rows(spec, linear, gpus))


def _rows(spec: ModelSpec, linear: LinearSpec, gpus: int) -> int:
    """Rows of a matrix that reads a layer's input; keys and values go by heads."""
    tail, kept = linear.name.rpartition(".")[2], heads_kept(spec, gpus) * spec.head_dim
    if tail in ("k_proj", "v_proj"):
        return kept
    if tail == "qkv_proj":
        return spec.num_heads // gpus * spec.head_dim + 2 * kept
    return linear.out_features // gpus


def sums_ms(spec: ModelSpec, device: DeviceProfile, rows: int, passes: int, gpus: int) -> float:
    """Of all sums over GPUs in `passes` over `rows` tokens: nothing of it was measured."""
    link = LINK_BYTES_PER_S_NVLINK if any(part in device.name for part in NVLINK) else LINK_BYTES_PER_S
    moved = 2 * (gpus - 1) / gpus * VALUE_BYTES * rows * spec.hidden_size
    return (SUMS_OF_LAYER * spec.num_layers + 1) * (passes * SUM_MS + 1e3 * moved / link)
