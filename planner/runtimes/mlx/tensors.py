"""Which tensors a choice becomes in `model.safetensors`."""

from __future__ import annotations

from planner.runtimes.bitstream import words
from planner.runtimes.tensor_file import Tensor
from supernet.space import Choice
from supernet.spec import LinearSpec, UnitSpec

PARTS = 3  # tensors of a matrix: codes, scales, biases


def tensors(unit: UnitSpec, choice: Choice) -> tuple[Tensor, ...]:
    return tuple(tensor for linear in unit.linears for tensor in packed(linear, choice))


def packed(linear: LinearSpec, choice: Choice) -> tuple[Tensor, ...]:
    """MLX stores an offset for each group whatever the grid is: `biases`, what code 0 stands for."""
    groups = (linear.out_features, linear.in_features // choice.group_size)
    return (
        Tensor(f"{linear.name}.weight", "U32", (linear.out_features, words(linear.in_features, choice.bits))),
        Tensor(f"{linear.name}.scales", "F16", groups),
        Tensor(f"{linear.name}.biases", "F16", groups),
    )
