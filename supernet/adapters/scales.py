"""Trained scales (PEQA, Kim et al., arXiv 2305.14152): W = (s0 + ds) * q with q frozen.

Stored here as s = s0 * (1 + delta / edge), with edge = (2^bits - 1) / 2, half of the code range: delta is how far the
outermost codes move, in codes. One learning rate then suits groups of any magnitude and any bit-width: a relative rate
that 2 bits learn fast with throws 3 bits off (docs/log.md). It folds into the scales and costs nothing in any runtime.

Where a grid's zeros are any numbers (llama.cpp's minima), they are trained along: `shift` is how far a group's zero
moves, in codes too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from supernet.adapters.base import Adapter, frozen_product, moved, shift_of
from supernet.grids import QuantizedWeight


class TrainedScales(Adapter):
    deploys = "scales"
    learning_rate = 0.015

    def __init__(self, weight: QuantizedWeight, generator: torch.Generator, full: Tensor | None = None) -> None:
        super().__init__(weight, generator, full)
        self.delta = nn.Parameter(torch.zeros_like(weight.scale))
        self.shift = shift_of(weight)

    def forward(self, x: Tensor, weight: QuantizedWeight) -> Tensor:
        return frozen_product(x, weight, *self._sides(weight))

    def fold(self, weight: QuantizedWeight) -> QuantizedWeight:
        return weight.with_sides(*(side.detach() for side in self._sides(weight)))

    def _sides(self, weight: QuantizedWeight) -> tuple[Tensor, Tensor]:
        return moved(weight, 1 + self.delta * (2 / (2**weight.choice.bits - 1)), self.shift)
