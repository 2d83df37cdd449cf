"""Trained scales (PEQA, Kim et al., arXiv 2305.14152): W = (s0 + ds) * q with q frozen.

Stored here as s = s0 * (1 + delta): one learning rate then suits groups of any magnitude. It folds into the scales and
costs nothing in any runtime.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from supernet.adapters.base import Adapter, frozen_product
from supernet.grids import QuantizedWeight


class TrainedScales(Adapter):
    deploys = "scales"
    learning_rate = 5e-3

    def __init__(self, weight: QuantizedWeight, generator: torch.Generator, full: Tensor | None = None) -> None:
        super().__init__(weight, generator, full)
        self.delta = nn.Parameter(torch.zeros_like(weight.scale))

    def forward(self, x: Tensor, weight: QuantizedWeight) -> Tensor:
        return frozen_product(x, weight, weight.scale * (1 + self.delta))

    def fold(self, weight: QuantizedWeight) -> QuantizedWeight:
        return replace(weight, scale=(weight.scale * (1 + self.delta)).detach())
