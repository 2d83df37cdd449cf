"""Decoupled LoRA, one for each (linear, bits): Y = W_i X + B_i A_i X (LLM-QFA, arXiv 2405.20202, Eq. 3).

The papers' sizes match rank 64 for 7B models; rank 16 is the default here, alpha = 2 * rank. A starts uniform as a
linear's weight would (Hu et al.), B at zero. It keeps a low-rank side path in a runtime.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from supernet.adapters.base import Adapter, frozen_product, uniform_parameter
from supernet.grids import QuantizedWeight


class LoRA(Adapter):
    deploys = "side"
    learning_rate = 1e-3
    ranked = True

    def __init__(
        self, weight: QuantizedWeight, generator: torch.Generator, full: Tensor | None = None, rank: int = 16
    ) -> None:
        super().__init__(weight, generator, full)
        out_features, in_features = weight.shape
        self.down = uniform_parameter((rank, in_features), in_features, generator, weight.device)
        self.up = nn.Parameter(torch.zeros(out_features, rank, device=weight.device))
        self.scaling = 2.0

    def forward(self, x: Tensor, weight: QuantizedWeight) -> Tensor:
        side = (x @ self.down.T.to(x.dtype)) @ self.up.T.to(x.dtype)
        return frozen_product(x, weight) + self.scaling * side

    def fold(self, weight: QuantizedWeight) -> QuantizedWeight:
        return weight

    def low_rank(self) -> tuple[Tensor, Tensor]:
        return self.scaling * self.up, self.down
