"""The symmetric grid: `w = (code - 2^(bits - 1)) * scale` with a signed scale that float16 holds.

Of 2^bits levels, one side of 0 has one more than the other; with a negative scale that is the positive side. At 2 bits
that is half of what is on a side, and each group takes the sign that suits it. Such weights are exact, without a zero,
in llama.cpp's blocks (Q2_0, Q4_0, Q8_0), in ONNX Runtime, compressed-tensors, MLX and OpenVINO.

The scale is rounded to float16 where it is made, and straight through wherever it is trained: no file rounds it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from supernet.formats import FORMATS
from supernet.grids.base import Grid, top_code
from supernet.grids.weight import QuantizedWeight

SMALLEST = 2.0**-24  # the least float16 above 0: a scale is divided by, also that of a group of zeros
LARGEST = torch.finfo(torch.float16).max
# Ranges that are tried: shares of the one whose last level is the largest weight, on the side with more levels; and
# shares of the way from there to where the side with fewer has it.
SHRINKS, STRETCHES = tuple(1 - 0.1 * step for step in range(7)), (0.25, 0.5, 0.75, 1.0)
FEW_SHRINKS, FEW_STRETCHES = (1.0, 0.8), (1.0,)


class SymmetricGrid(Grid):
    """scale: float16. What computes with it sees the same number as float32."""

    format = FORMATS["sym"]

    def parameters(self, weight: Tensor, bits: int | Tensor) -> tuple[Tensor, Tensor]:
        """Of few ranges: one that holds every weight wastes a level."""
        even = torch.ones_like(weight[:1])
        return self._best(weight, top_code(bits, weight), even, FEW_SHRINKS, FEW_STRETCHES)

    def least_error(self, weight: Tensor, top: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
        return self._best(weight, top, importance, SHRINKS, STRETCHES)

    def _best(
        self, weight: Tensor, top: Tensor, importance: Tensor, shrinks: Sequence[float], stretches: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Ranges of several sizes and both signs; of each, the scale that suits the codes best.

        For given codes q (0 in the middle) that is `sum(w q) / sum(q^2)`, which leaves `sum(w q)^2 / sum(q^2)` less
        error than none at all.
        """
        half = (top + 1) / 2
        extreme = weight.gather(-1, weight.abs().argmax(-1, keepdim=True))
        unit = (extreme.abs() / half).clamp_(min=SMALLEST)
        counted = weight * importance
        best_scale, best = -extreme / half, torch.zeros_like(extreme)
        beyond = 1 / (half - 1).clamp(min=1)
        for size in [*(torch.tensor(shrink) for shrink in shrinks), *(1 + stretch * beyond for stretch in stretches)]:
            whole = (weight / (unit * size)).round_()
            for sign, low, high in ((1, -half, half - 1), (-1, 1 - half, half)):
                codes = whole.clamp(low, high)
                along = (codes * counted).sum(-1, keepdim=True)
                long = codes.square_().mul_(importance).sum(-1, keepdim=True)
                scale = along / long  # of codes that are all 0: not a number, and never better
                gained = along * scale
                better = gained > best
                best = torch.where(better, gained, best)
                best_scale = torch.where(better, sign * scale, best_scale)
        return self.held(best_scale), half.expand_as(best_scale).clone()

    def scale(self, weight: QuantizedWeight) -> Tensor:
        scale = weight.parts["scale"]
        return scale.float() if scale.dtype == torch.float16 else scale

    def zero(self, weight: QuantizedWeight) -> Tensor:
        middle = torch.full((1, 1), 2 ** (weight.choice.bits - 1), dtype=torch.uint8, device=weight.device)
        return middle.expand_as(weight.parts["scale"])

    def sides(self, scale: Tensor, zero: Tensor) -> Mapping[str, Tensor]:
        return {"scale": self.held(scale).half()}

    def held(self, scale: Tensor) -> Tensor:
        found: Tensor = _Held.apply(scale)
        return found


class _Held(torch.autograd.Function):
    """The nearest float16 that is neither 0 nor infinite."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor) -> Tensor:
        sized = scale.abs().clamp(SMALLEST, LARGEST).half().to(scale.dtype)
        return torch.where(scale < 0, -sized, sized)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad
