"""What an adapter is, and the product of activations with frozen codes that all of them share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from supernet.grids import QuantizedWeight

LONG = 2**14  # rows of a matrix that are made at a time: a head is as long as a vocabulary
Deploys = Literal["scales", "codes", "zeros", "side"]


class Adapter(nn.Module, ABC):
    """Trained on top of one linear's frozen codes, at one choice or at several that share it. Starts as the identity.

    `deploys` says how it reaches a runtime: folded into the `scales` or the `codes`, at no cost; folded into the
    `zeros`, which are floats from then on; or kept as a low-rank `side` path.
    """

    deploys: ClassVar[Deploys]
    learning_rate: ClassVar[float]
    shareable: ClassVar[bool] = True  # whether one instance can serve several choices of a linear
    routes: ClassVar[bool] = False  # whether it serves every choice, mixing what it holds for the subnet at hand
    ranked: ClassVar[bool] = False  # whether it takes a `rank`
    straight_through: ClassVar[tuple[str, ...]] = ()  # parameters whose gradient is that of no rounding

    def __init__(self, weight: QuantizedWeight, generator: torch.Generator, full: Tensor | None = None) -> None:
        """A member makes its parameters for `weight` here; anything random comes from `generator`.

        `full` is the matrix that was quantized, for members that need to know where in its cell a weight lies.
        """
        super().__init__()

    @classmethod
    def options(cls, units: int) -> dict[str, Any]:
        """Arguments that follow from the model, which has so many units; a supernet's folder records them."""
        return {}

    @abstractmethod
    def forward(self, x: Tensor, weight: QuantizedWeight) -> Tensor:
        """`(..., in_features)` -> `(..., out_features)` in the dtype of `x`, without the bias."""

    @abstractmethod
    def fold(self, weight: QuantizedWeight) -> QuantizedWeight:
        """The weight that a runtime stores: with the adapter inside where it folds, else unchanged."""

    def effective(self, weight: QuantizedWeight) -> Tensor:
        """The float32 matrix `(out_features, in_features)` that `forward` multiplies by."""
        folded = self.fold(weight).dequantize()
        side = self.low_rank()
        return folded if side is None else folded + (side[0] @ side[1]).detach()

    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """What is left beside the folded weight: `(out_features, rank)` and `(rank, in_features)`, or nothing."""
        return None

    def condition(self, encoding: Tensor) -> None:
        """Told of the whole subnet when it is activated, as `Supernet.encode` describes it, where it `routes`."""


def uniform_parameter(
    shape: tuple[int, ...], fan_in: int, generator: torch.Generator, device: torch.device
) -> nn.Parameter:
    """Uniform as the weights of a linear with `fan_in` inputs start."""
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter((torch.rand(shape, generator=generator) * 2 * bound - bound).to(device))


def shift_of(weight: QuantizedWeight) -> nn.Parameter | None:
    """How far the zero of each group moves, in codes, where its grid's zeros are any numbers."""
    moves = weight.choice.bits in weight.grid.format.moving_zeros
    return nn.Parameter(torch.zeros_like(weight.scale)) if moves else None


def moved(weight: QuantizedWeight, factor: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weight's scales times `factor` and its zeros moved by `shift`, both `(out_features, groups)`, as its grid
    holds them."""
    zero = weight.zero if shift is None else weight.zero + shift
    return weight.grid.held(weight.scale * factor, zero, weight.choice.bits)


def frozen_product(
    x: Tensor, weight: QuantizedWeight, scale: Tensor | None = None, zero: Tensor | None = None
) -> Tensor:
    """`x @ W^T` with W dequantized in the dtype of `x`; differentiable in `x` and, where given, in `scale` and `zero`.

    W is made again for the backward pass, so that a training step holds the packed codes only.
    """
    scale, zero = weight.scale if scale is None else scale, weight.zero if zero is None else zero
    return _FrozenProduct.apply(x, scale, zero, weight)


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, weight: QuantizedWeight) -> Tensor:
        ctx.save_for_backward(x, scale, zero)
        ctx.weight = weight
        ctx.frozen = not any(ctx.needs_input_grad[1:])
        if weight.shape[0] > LONG and ctx.frozen:
            made = (part.dequantize(x.dtype) for part in weight.split(LONG))
            return torch.cat([nn.functional.linear(x, rows) for rows in made], -1)
        return nn.functional.linear(x, weight.grid.dequantize(weight, x.dtype, scale, zero))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero = ctx.saved_tensors
        if ctx.weight.shape[0] > LONG and ctx.frozen:
            parts = zip(grad.split(LONG, -1), ctx.weight.split(LONG), strict=True)
            return sum(g @ w.dequantize(x.dtype) for g, w in parts), None, None, None
        centered = ctx.weight.grid.centered(ctx.weight, x.dtype, zero)
        grad_x = grad_scale = grad_zero = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ (centered * scale.to(x.dtype).unsqueeze(-1)).flatten(1)
        if not ctx.frozen:
            grad_weight = (grad.flatten(0, -2).T @ x.flatten(0, -2)).view_as(centered)
            grad_zero = zero_gradient(grad_weight, scale) if ctx.needs_input_grad[2] else None
            grad_scale = grad_weight.mul_(centered).sum(-1, dtype=scale.dtype)
        return grad_x, grad_scale, grad_zero, None


def zero_gradient(grad_weight: Tensor, scale: Tensor) -> Tensor:
    """Of the zeros `(out_features, groups)`, from that of weights in groups: a zero moves the whole group."""
    return -grad_weight.sum(-1, dtype=scale.dtype) * scale
