"""The integer grid: unsigned codes with a float scale and an integer zero per group (asymmetric, as GPTQ stores it)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from supernet.formats import FORMATS
from supernet.grids.base import Grid, top_code
from supernet.grids.weight import QuantizedWeight

SMALLEST_SCALE = 1e-8  # an all-zero group still needs a scale to divide by
SHRINKS = tuple(1 - 0.05 * step for step in range(13))  # candidate ranges: 100 % down to 40 %


class IntegerGrid(Grid):
    """scale: float32, zero: uint8 and on the same grid as the codes."""

    format = FORMATS["int"]

    def parameters(self, weight: Tensor, bits: int | Tensor) -> tuple[Tensor, Tensor]:
        """The full range of each group."""
        return _over_range(*_range(weight), top_code(bits, weight))

    def least_error(self, weight: Tensor, top: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
        """The range is tried at several sizes."""
        low, high = _range(weight)
        best_scale, best_zero = _over_range(low, high, top)
        best = torch.full_like(low, torch.inf)
        for shrink in SHRINKS:
            scale, zero = _over_range(low * shrink, high * shrink, top)
            off = self.encode_below(weight, scale, zero, top).sub_(zero).mul_(scale).sub_(weight)
            error = off.square_().mul_(importance).sum(-1, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            best_scale = torch.where(better, scale, best_scale)
            best_zero = torch.where(better, zero, best_zero)
        return best_scale, best_zero

    def scale(self, weight: QuantizedWeight) -> Tensor:
        return weight.parts["scale"]

    def zero(self, weight: QuantizedWeight) -> Tensor:
        return weight.parts["zero"]

    def sides(self, scale: Tensor, zero: Tensor, bits: int) -> Mapping[str, Tensor]:
        return {"scale": scale.float(), "zero": zero.to(torch.uint8)}


def _over_range(low: Tensor, high: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    scale = ((high - low) / top).clamp_(min=SMALLEST_SCALE)
    return scale, torch.minimum((-low / scale).round_().clamp_(min=0), top)


def _range(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest weight of each group, 0 among them."""
    return weight.amin(-1, keepdim=True).clamp(max=0), weight.amax(-1, keepdim=True).clamp(min=0)
