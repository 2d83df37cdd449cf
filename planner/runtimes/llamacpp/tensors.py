"""Which tensors a model's file holds, from its shapes alone: their names, where their values come from, their order."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.runtimes.llamacpp.architectures import ARCHITECTURES, HIDDEN
from planner.runtimes.llamacpp.formats import F32, type_of
from planner.runtimes.llamacpp.header import Stored, padded
from supernet.space import Choice, Subnet
from supernet.spec import HEAD, LinearSpec, ModelSpec, UnitSpec

FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
ROPE_TENSORS = {"llama3": (FREQUENCIES,), "longrope": (LONG, SHORT)}
_LINEARS = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "qkv_proj": "attn_qkv", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "gate_up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip
ROUTER = "ffn_gate_inp"
STACKED = "_exps"  # ends the names of matrices that all experts of a layer have, in one tensor


@dataclass(frozen=True)
class Tensor:
    """`source` is the name of its values in transformers, empty for a table of the rotary embedding. `unit` is where it
    is a matrix whose type a choice decides, `linears` whose it is: several where those of all experts are one tensor,
    the first dimension theirs. `offset` is added to the values; `heads` of its rows rotate, 0 for none."""

    name: str
    shape: tuple[int, ...]
    source: str
    unit: UnitSpec | None = None
    linears: tuple[LinearSpec, ...] = ()
    offset: float = 0.0
    heads: int = 0

    def stored(self, subnet: Subnet | None) -> Stored:
        """As the file has it; without a subnet, matrices are taken to be floats: names and shapes are the same."""
        quantized = self.unit is not None and subnet is not None
        kind = type_of(subnet[self.unit.name]) if quantized else F32  # type: ignore[union-attr, index]
        return Stored(self.name, self.shape, kind)


def tensors_of(spec: ModelSpec) -> tuple[Tensor, ...]:
    """Every tensor in the file's order. KeyError for an architecture that is not written."""
    known = ARCHITECTURES[spec.architecture]
    ropes = [name for kind in spec.ropes for name in ROPE_TENSORS.get(kind, ())]
    found = [Tensor(name, (spec.rotary_dim // 2,), "") for name in ropes]
    last = Tensor("output_norm.weight", (spec.hidden_size,), "model.norm.weight", offset=known.norm_offset)
    for layer in (None, *range(spec.num_layers)):
        if layer is not None:
            found += _norms(spec, layer)
        for unit in spec.units:
            if unit.layer == layer and unit.chosen is not None:
                found.append(_stack(unit))
            elif unit.layer == layer and unit.role != HEAD:
                found += [tensor for linear in unit.linears for tensor in _linear(spec, unit, linear)]
    heads = [Tensor("output.weight", _shape(lin), f"{lin.name}.weight", unit, (lin,))
             for unit in spec.units if unit.role == HEAD for lin in unit.linears]  # fmt: skip
    return (*found, last, *heads)


def _norms(spec: ModelSpec, layer: int) -> list[Tensor]:
    known = ARCHITECTURES[spec.architecture]
    sizes = {name: spec.hidden_size if long == HIDDEN else spec.head_dim for name, (_, long) in known.norms.items()}
    norms = [
        Tensor(f"blk.{layer}.{theirs}.weight", (sizes[name],), f"model.layers.{layer}.{name}.weight",
               offset=known.norm_offset)
        for name, (theirs, _) in known.norms.items()
    ]  # fmt: skip
    shape = (spec.experts, spec.hidden_size)
    router = Tensor(f"blk.{layer}.{ROUTER}.weight", shape, f"model.layers.{layer}.mlp.gate.weight")
    return [*norms, router] if known.experts else norms


def _stack(unit: UnitSpec) -> Tensor:
    """A matrix that all experts of a layer have."""
    name = f"blk.{unit.layer}.{_LINEARS[unit.name.rpartition('.')[2]]}{STACKED}.weight"
    shape = (len(unit.linears), *_shape(unit.linears[0]))
    return Tensor(name, shape, f"{unit.name}.weight", unit, unit.linears)


def _linear(spec: ModelSpec, unit: UnitSpec, linear: LinearSpec) -> list[Tensor]:
    if unit.layer is None:
        return [Tensor("token_embd.weight", _shape(linear), f"{linear.name}.weight", unit, (linear,))]
    tail = linear.name.rpartition(".")[2]
    name = f"blk.{unit.layer}.{_LINEARS[tail]}"
    rotating = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads}
    heads = rotating.get(tail, 0) if ARCHITECTURES[spec.architecture].pairs else 0
    found = [Tensor(f"{name}.weight", _shape(linear), f"{linear.name}.weight", unit, (linear,), heads=heads)]
    if linear.bias:
        found.append(Tensor(f"{name}.bias", (linear.out_features,), f"{linear.name}.bias", heads=heads))
    return found


def _shape(linear: LinearSpec) -> tuple[int, int]:
    return linear.out_features, linear.in_features


def refusal(spec: ModelSpec) -> str | None:
    """Why the tensors of a model of a known architecture are not those that are written, or None where they are."""
    tails = {linear.name.rpartition(".")[2] for unit in spec.units if unit.layer is not None for linear in unit.linears}
    if unknown := sorted(tails - _LINEARS.keys()):
        return f"GGUF files of {spec.architecture} have no {unknown[0]}"
    if ARCHITECTURES[spec.architecture].experts and any(not layer for layer in _mixtures(spec)):
        return f"GGUF files of {spec.architecture} have experts in every layer, {spec.name} in some"
    written = sum(math.prod(tensor.shape) for tensor in tensors_of(spec) if tensor.unit is None and tensor.source)
    if written != spec.float_parameters:
        return f"GGUF files of {spec.architecture} have {written} float parameters, {spec.name} {spec.float_parameters}"
    return None


def _mixtures(spec: ModelSpec) -> list[bool]:
    """For each layer, whether it has experts."""
    found = {unit.layer for unit in spec.units if unit.chosen is not None}
    return [layer in found for layer in range(spec.num_layers)]


def unit_bytes(unit: UnitSpec, choice: Choice) -> int:
    """Of the unit's matrices in the file, each filled up to where the next tensor may begin."""
    kind = type_of(choice)
    if unit.chosen is not None:
        return padded(Stored(unit.name, _stack(unit).shape, kind).bytes)
    return sum(padded(Stored(linear.name, _shape(linear), kind).bytes) for linear in unit.linears)


def float_bytes(spec: ModelSpec) -> int:
    """Norms, biases and tables of the rotary embedding, filled up likewise."""
    return sum(padded(tensor.stored(None).bytes) for tensor in tensors_of(spec) if tensor.unit is None)
