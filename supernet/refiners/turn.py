"""A decoder block's turn in learned rounding: what it reads, what it is to make, and what an error there costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from supernet.blocks import output_of
from supernet.grids import QuantizedWeight
from supernet.linear import Quantized
from supernet.space import Choice

AT_ONCE = 16  # windows that go through a block side by side


@torch.no_grad()
def outputs_of(layer: nn.Module, inputs: Tensor, arguments: dict[str, Any]) -> Tensor:
    """What a block makes of every window's `inputs` `(n, tokens, hidden_size)`, some windows at a time."""
    return torch.cat([output_of(layer, part, arguments) for part in inputs.split(AT_ONCE)])


@dataclass(frozen=True)
class Block:
    """One decoder block of the full model and of the supernet, what else it is called with, what its errors cost."""

    layer: nn.Module
    ours: nn.Module
    arguments: dict[str, Any]
    tokens: Tensor
    channels: Tensor

    def through(self, layer: nn.Module, inputs: Tensor) -> Tensor:
        return outputs_of(layer, inputs, self.arguments)

    def error(self, ours: Tensor, target: Tensor, rows: Any) -> Tensor:
        squares = (ours.float() - target.float()).square()
        return ((squares * self.channels).mean(-1) * self.tokens[rows]).mean()


@dataclass(frozen=True)
class Part:
    """One linear of a block at one bit-width."""

    matrix: Quantized
    choice: Choice
    nearest: QuantizedWeight
    module: nn.Module  # the full model's, as it computes
    weight: Tensor  # and its weight in float32


@dataclass(frozen=True)
class Turn:
    """A block's turn at one bit-width: what it reads behind quantized blocks, and what the full model's makes."""

    block: Block
    parts: list[Part]
    inputs: Tensor
    target: Tensor
    change: float  # what the block does to its input, as an error counts it
    held_out: slice  # windows that are not learned from

    def backward(self, rows: Tensor) -> None:
        """Of the error in these windows, as a share of what the block does."""
        output = output_of(self.block.ours, self.inputs[rows], self.block.arguments)
        (self.block.error(output, self.target[rows], rows) / self.change).backward()

    @torch.no_grad()
    def held_out_error(self) -> float:
        """The same share in the windows that are not learned from, with the matrices as they are."""
        rows = self.held_out
        output = self.block.through(self.block.ours, self.inputs[rows])
        return self.block.error(output, self.target[rows], rows).item() / self.change
