"""LoRA over pooled inputs (QA-LoRA, Xu et al., arXiv 2309.14717, Eq. 4): Y = W X + B A pool(X).

The inputs of a group are summed before A, so B A adds one number to all weights of a group and folds into its zero:
z' = z - (B A) / s. The zero is a float from then on and costs 16 bits a group where an integer one costs `bits`; at
group 64 that is 0.25 - bits / 64 bits a weight more, and ONNX Runtime multiplies by float zeros 10 to 100 times slower.

The paper divides the sum by nothing and scales as LoRA does; rank 16 here, alpha = 2 * rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from supernet.adapters.base import Adapter, frozen_product, uniform_parameter
from supernet.grids import QuantizedWeight


class PooledLoRA(Adapter):
    deploys = "zeros"
    learning_rate = 1e-3
    ranked = True

    def __init__(
        self, weight: QuantizedWeight, generator: torch.Generator, full: Tensor | None = None, rank: int = 16
    ) -> None:
        super().__init__(weight, generator, full)
        rows, groups = weight.scale.shape
        self.down = uniform_parameter((rank, groups), weight.in_features, generator, weight.device)
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.scaling = 2.0

    def forward(self, x: Tensor, weight: QuantizedWeight) -> Tensor:
        pooled = x.unflatten(-1, (self.down.shape[1], -1)).sum(-1)
        side = (pooled @ self.down.T.to(x.dtype)) @ self.up.T.to(x.dtype)
        return frozen_product(x, weight) + self.scaling * side

    def fold(self, weight: QuantizedWeight) -> QuantizedWeight:
        shift = self.scaling * (self.up @ self.down).detach()
        return weight.with_parts(zero=weight.zero.float() - shift / weight.scale)
