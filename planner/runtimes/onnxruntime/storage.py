"""Which tensors a choice becomes in `model.onnx.data`, and exactly how many bytes they take.

The file holds, product by product, the codes, the scales and, unless the format is symmetric, the zeros, each starting
on a multiple of ALIGNMENT; then every float tensor without gaps. Nothing else is in it, so a sum over the units is the
size on disk. ONNX Runtime maps each tensor from wherever it starts; 64 bytes, a cache line, keeps its vector loads on
the rows they are meant for.
"""

from __future__ import annotations

import math

from supernet.space import Choice
from supernet.spec import EMBEDDING, HEAD, ModelSpec, UnitSpec
from supernet.ties import Groups, siblings

ALIGNMENT = 64
FLOAT_BYTES = 4


def padded(size: int) -> int:
    return math.ceil(size / ALIGNMENT) * ALIGNMENT


def ties(spec: ModelSpec) -> Groups:
    """The graph has one product for query, key and value; gate and up are two, alike wherever they were measured."""
    return siblings(spec)


def matrices(unit: UnitSpec, kept: int | None = None) -> tuple[tuple[int, int], ...]:
    """(in_features, out_features) of each matrix that the graph stores for the unit with `kept` channels, None for all.

    The graph joins query, key and value into one product and keeps gate and up apart, also where the model (Phi-3)
    stores them as one. Of a block without channels nothing is stored.
    """
    if unit.role == "qkv":
        return ((unit.linears[0].in_features, sum(linear.out_features for linear in unit.linears)),)
    found = tuple((linear.in_features, linear.out_features) for linear in unit.linears)
    if unit.role == "gate_up_proj":
        found = tuple((inputs, outputs // 2) for inputs, outputs in found * 2)
    if kept is None or unit.channels is None:
        return found
    makes = unit.channels.parts > 0
    return tuple((k, kept) if makes else (kept, n) for k, n in found) if kept else ()


def products(spec: ModelSpec, unit: UnitSpec, kept: int | None = None) -> tuple[tuple[int, int], ...]:
    """The matrices that are multiplied with: an embedding is only looked up, unless it is also the head."""
    return () if unit.role == EMBEDDING and not spec.tied else matrices(unit, kept)


def runs_on_last_row(unit: UnitSpec) -> bool:
    """The graph computes logits for the last position only, so the head sees one row a sequence."""
    return unit.role in (EMBEDDING, HEAD)


def code_bytes(inputs: int, outputs: int, choice: Choice) -> int:
    return outputs * inputs * choice.bits // 8


def scale_bytes(inputs: int, outputs: int, choice: Choice) -> int:
    return outputs * (inputs // choice.group_size) * FLOAT_BYTES


def zero_bytes(inputs: int, outputs: int, choice: Choice) -> int:
    """One zero a group in the choice's bits, each row starting on a whole byte. Without any, ONNX Runtime takes
    2^(bits - 1), which is that of symmetric formats."""
    if choice.format.symmetric:
        return 0
    return outputs * math.ceil((inputs // choice.group_size) * choice.bits / 8)


def parts(choice: Choice) -> tuple[str, ...]:
    """What a matrix is stored in, in the order in which operators read it: each is named after the matrix."""
    return ("codes", "scales") if choice.format.symmetric else ("codes", "scales", "zeros")


def matrix_bytes(inputs: int, outputs: int, choice: Choice) -> int:
    kinds = (code_bytes, scale_bytes, zero_bytes)
    return sum(padded(size(inputs, outputs, choice)) for size in kinds)


def bias_bytes(unit: UnitSpec, kept: int | None = None) -> int:
    """The biases of feed-forward channels: of a unit that makes them, and that loses them as it is pruned."""
    if unit.channels is None or not unit.channels.parts:
        return 0
    biases = sum(unit.channels.parts for linear in unit.linears if linear.bias)
    return biases * (unit.channels.count if kept is None else kept) * FLOAT_BYTES


def unit_bytes(unit: UnitSpec, choice: Choice) -> int:
    weights = sum(matrix_bytes(inputs, outputs, choice) for inputs, outputs in matrices(unit, choice.kept))
    return weights + bias_bytes(unit, choice.kept)


def rotary_bytes(spec: ModelSpec, context: int) -> int:
    """A cosine and a sine table for each rotary embedding, one row a position up to the context, half a value per
    rotating value."""
    return len(spec.ropes or ("default",)) * 2 * context * (spec.rotary_dim // 2) * FLOAT_BYTES


def float_bytes(spec: ModelSpec, context: int) -> int:
    """Norms, rotary tables and the biases that no choice changes, as float32."""
    moving = sum(bias_bytes(unit) for unit in spec.units)
    return spec.float_parameters * FLOAT_BYTES - moving + rotary_bytes(spec, context)
