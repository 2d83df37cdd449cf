"""Training inside the rounding: codes = round(position + offset), scales trained along (LLM-QFA's open ground; the
straight-through estimator of Bengio et al., arXiv 1308.3432).

    W = s0 (1 + delta) (clamp(round(p + offset)) - z),    offset = B A, or one number for each weight

p is where in its cell the full weight lies, in units of one code. The gradient passes the rounding as if it were not
there, and stops where the clamp holds. It folds into codes and scales at no cost in any runtime.

p is kept as a byte, the code range in 256 steps: it takes the place of a float copy of the weights. Where the stored
code is not the nearest (GPTQ moves codes to make up for the errors of others), p is the point of the code's own cell
nearest to the weight, `margin` codes from the centre at most, so that training starts from the stored codes.

With `rank` None the offset is full: too large to train a whole model, right for one block at a time
(`supernet.refiners.learned`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from supernet.adapters.base import Adapter, moved, shift_of, zero_gradient
from supernet.grids import QuantizedWeight
from supernet.grids.base import less_zero

POSITIONS = 256  # in the code range, so that a position is a byte


class Rounding(Adapter):
    deploys = "codes"
    learning_rate = 1e-3
    ranked = True
    shareable = False  # positions are those of one choice
    straight_through = ("up", "down", "offset")

    position: Tensor

    def __init__(
        self, weight: QuantizedWeight, generator: torch.Generator, full: Tensor | None = None,
        rank: int | None = 16, margin: float = 0.25,
    ) -> None:  # fmt: skip
        super().__init__(weight, generator, full)
        self.delta = nn.Parameter(torch.zeros_like(weight.scale))
        self.shift = shift_of(weight)
        self.group_size, self.top = weight.choice.group_size, 2**weight.choice.bits - 1
        self.fine = POSITIONS // (self.top + 1)  # positions in a cell
        self.register_buffer("position", self._positions(weight, full, margin), persistent=False)
        out_features, in_features = weight.shape
        device = weight.device
        self.full_rank = rank is None
        if rank is None:
            self.offset = nn.Parameter(torch.zeros(out_features, in_features, device=device))
            return
        start = (torch.rand(rank, in_features, generator=generator) * 2 - 1) * math.sqrt(3 / rank)
        self.down = nn.Parameter(start.to(device))
        self.up = nn.Parameter(torch.zeros(out_features, rank, device=device))

    def _positions(self, weight: QuantizedWeight, full: Tensor | None, margin: float) -> Tensor:
        codes = weight.grid.codes(weight).float()
        place = codes
        if full is not None:
            scale, zero = (part.float().repeat_interleave(self.group_size, 1) for part in (weight.scale, weight.zero))
            place = torch.clamp(full.to(scale) / scale + zero, codes - margin, codes + margin)
        return ((place + 0.5) * self.fine - 0.5).round().clamp(0, POSITIONS - 1).to(torch.uint8)

    def rounded(self) -> Tensor:
        """The codes that the weights' places round to: `(out_features, in_features)`, not clamped yet.

        In float32 whatever is computed in: bfloat16 is off by up to half a position, and codes that training sees
        would not be those that are folded.
        """
        place = torch.add(self.position, 0.5)  # the middle of a position
        if self.full_rank:
            place.add_(self.offset.detach(), alpha=self.fine)
        else:
            place.addmm_(self.up.detach(), self.down.detach(), alpha=self.fine)
        return place.mul_(1 / self.fine).floor_()

    def forward(self, x: Tensor, weight: QuantizedWeight) -> Tensor:
        trained = (self.offset,) if self.full_rank else (self.up, self.down)
        return _RoundedProduct.apply(x, *self._sides(weight), self, *trained)

    def fold(self, weight: QuantizedWeight) -> QuantizedWeight:
        codes = self.rounded().clamp_(0, self.top)
        scale, zero = (side.detach() for side in self._sides(weight))
        return weight.grid.pack(codes, scale, zero, weight.choice, weight.in_features)

    def _sides(self, weight: QuantizedWeight) -> tuple[Tensor, Tensor]:
        return moved(weight, 1 + self.delta, self.shift)


class _RoundedProduct(torch.autograd.Function):
    """`x @ W^T`; like `frozen_product`, it makes W again for the backward pass, except where one block is trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, adapter: Rounding, *trained: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, zero, *trained)
        ctx.adapter = adapter
        made = _made(adapter, x.dtype, scale, zero)
        ctx.made = made if adapter.full_rank else None
        return nn.functional.linear(x, made[2].flatten(1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero, *trained = ctx.saved_tensors
        inside, centered, weight = ctx.made or _made(ctx.adapter, x.dtype, scale, zero)
        grad_weight = (grad.flatten(0, -2).T @ x.flatten(0, -2)).view_as(centered)
        grad_scale = (grad_weight * centered).sum(-1, dtype=scale.dtype)
        grad_zero = zero_gradient(grad_weight, scale) if ctx.needs_input_grad[2] else None
        grad_offset = grad_weight.mul_(scale.to(x.dtype).unsqueeze(-1)).flatten(1).mul_(inside)
        grad_x = grad @ weight.flatten(1) if ctx.needs_input_grad[0] else None
        if len(trained) == 1:
            return grad_x, grad_scale, grad_zero, None, grad_offset.to(trained[0].dtype)
        up, down = trained
        grad_up = (grad_offset @ down.T.to(x.dtype)).to(up.dtype)
        grad_down = (up.T.to(x.dtype) @ grad_offset).to(down.dtype)
        return grad_x, grad_scale, grad_zero, None, grad_up, grad_down


def _made(adapter: Rounding, dtype: torch.dtype, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the clamp is open, `(out_features, in_features)`; `code - zero` and the weight, in groups."""
    rounded = adapter.rounded()
    codes = rounded.clamp(0, adapter.top)
    inside = codes == rounded
    centered = less_zero(codes.unflatten(1, (-1, adapter.group_size)), zero, dtype)
    return inside, centered, centered * scale.to(dtype).unsqueeze(-1)
