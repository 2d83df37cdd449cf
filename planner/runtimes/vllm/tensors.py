"""Which tensors a choice becomes in `model.safetensors`."""

from __future__ import annotations

from planner.runtimes.bitstream import words
from planner.runtimes.tensor_file import Tensor
from supernet.space import Choice
from supernet.spec import EMBEDDING, LinearSpec, UnitSpec

PARTS = 4  # tensors of a matrix: codes, scales, zeros, shape


def tensors(unit: UnitSpec, choice: Choice) -> tuple[Tensor, ...]:
    """The tensors of a unit. An embedding is float16: vLLM looks it up without a name to find its format by (Llama),
    and a tied head would multiply by it."""
    if unit.role == EMBEDDING:
        return tuple(Tensor(f"{lin.name}.weight", "F16", (lin.out_features, lin.in_features)) for lin in unit.linears)
    return tuple(tensor for linear in unit.linears for tensor in packed(linear, choice))


def packed(linear: LinearSpec, choice: Choice) -> tuple[Tensor, ...]:
    """Codes, scales and shape; zeros where they are not the middle."""
    rows, groups = linear.out_features, linear.in_features // choice.group_size
    found = (
        Tensor(f"{linear.name}.weight_packed", "I32", (rows, words(linear.in_features, choice.bits))),
        Tensor(f"{linear.name}.weight_scale", "F16", (rows, groups)),
        Tensor(f"{linear.name}.weight_shape", "I64", (2,)),
    )
    if choice.format.symmetric:
        return found
    return (*found, Tensor(f"{linear.name}.weight_zero_point", "I32", (words(rows, choice.bits), groups)))
