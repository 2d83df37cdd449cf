"""Routed LoRA (Mixture-of-Supernets, Jawahar et al., arXiv 2306.04845, section 3): a few expert LoRAs for each linear,
mixed for the subnet at hand by a small network, so that subnets share what they have in common and no more.

    Y = W_i X + sum_m alpha_m(subnet) B_m A_m X,    alpha = softmax(MLP(encoding of the subnet))

One instance serves every choice of its linear. The paper routes whole weights and leaves the router's size open; here
experts are LoRAs of rank 8, the router has one hidden layer of 16, and the encoding is every unit's bits from -1 to 1.
A subnet's mixture is evaluated when it is activated, and deploys as one LoRA of rank experts * rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from supernet.adapters.base import Adapter, frozen_product, uniform_parameter
from supernet.grids import QuantizedWeight


class RoutedLoRA(Adapter):
    deploys = "side"
    learning_rate = 1e-3
    ranked = True
    routes = True

    def __init__(
        self, weight: QuantizedWeight, generator: torch.Generator, full: Tensor | None = None,
        units: int = 1, experts: int = 4, rank: int = 8, hidden: int = 16,
    ) -> None:  # fmt: skip
        """`units` is the length of a subnet's encoding."""
        super().__init__(weight, generator, full)
        out_features, in_features = weight.shape
        device = weight.device

        self.down = uniform_parameter((experts, rank, in_features), in_features, generator, device)
        self.up = nn.Parameter(torch.zeros(experts, out_features, rank, device=device))
        self.router_in = uniform_parameter((hidden, units), units, generator, device)
        self.router_out = uniform_parameter((experts, hidden), hidden, generator, device)
        self.scaling = 2.0
        self.register_buffer("encoding", torch.zeros(units, device=device), persistent=False)

    @classmethod
    def options(cls, units: int) -> dict[str, Any]:
        return {"units": units}

    def condition(self, encoding: Tensor) -> None:
        self.encoding = encoding.to(self.down.device)

    def mixture(self) -> Tensor:
        """The experts' shares, `(experts,)`, for the subnet that is active."""
        return (self.router_out @ torch.relu(self.router_in @ self.encoding)).softmax(0)

    def forward(self, x: Tensor, weight: QuantizedWeight) -> Tensor:
        up, down = self.low_rank()
        return frozen_product(x, weight) + (x @ down.T.to(x.dtype)) @ up.T.to(x.dtype)

    def fold(self, weight: QuantizedWeight) -> QuantizedWeight:
        return weight

    def low_rank(self) -> tuple[Tensor, Tensor]:
        up = self.up * (self.scaling * self.mixture())[:, None, None]
        return up.movedim(0, 1).flatten(1), self.down.flatten(0, 1)
