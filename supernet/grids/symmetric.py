"""The symmetric grid: `w = (code - 2^(bits - 1)) * scale` with a signed scale that float16 holds.

Of 2^bits levels, one side of 0 has one more than the other; with a negative scale that is the positive side. At 2 bits
that is half of what is on a side, and each group takes the sign that suits it. Such weights are exact, without a zero,
in llama.cpp's blocks (Q2_0, Q4_0, Q8_0), in ONNX Runtime, compressed-tensors, MLX and OpenVINO.

The scale is rounded to float16 where it is made, and straight through wherever it is trained: no file rounds it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from supernet.formats import FORMATS
from supernet.grids.base import Grid, top_code
from supernet.grids.fitting import EVERY, FEW, Tried, half, signed_scale
from supernet.grids.weight import QuantizedWeight


class SymmetricGrid(Grid):
    """scale: float16. What computes with it sees the same number as float32."""

    format = FORMATS["sym"]

    def parameters(self, weight: Tensor, bits: int | Tensor) -> tuple[Tensor, Tensor]:
        """Of few ranges: one that holds every weight wastes a level."""
        even = torch.ones_like(weight[:1])
        return self._best(weight, top_code(bits, weight), even, FEW)

    def least_error(self, weight: Tensor, top: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
        return self._best(weight, top, importance, EVERY)

    def _best(self, weight: Tensor, top: Tensor, importance: Tensor, tried: Tried) -> tuple[Tensor, Tensor]:
        scale = half(signed_scale(weight, top, importance, tried))
        return scale, ((top + 1) / 2).expand_as(scale).clone()

    def scale(self, weight: QuantizedWeight) -> Tensor:
        scale = weight.parts["scale"]
        return scale.float() if scale.dtype == torch.float16 else scale

    def zero(self, weight: QuantizedWeight) -> Tensor:
        middle = torch.full((1, 1), 2 ** (weight.choice.bits - 1), dtype=torch.uint8, device=weight.device)
        return middle.expand_as(weight.parts["scale"])

    def sides(self, scale: Tensor, zero: Tensor, bits: int) -> Mapping[str, Tensor]:
        return {"scale": half(scale).half()}

    def held(self, scale: Tensor, zero: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        return _Held.apply(scale), zero


class _Held(torch.autograd.Function):
    """The nearest float16 that is neither 0 nor infinite."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor) -> Tensor:
        return half(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad
