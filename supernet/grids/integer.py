"""The integer grid: unsigned codes with a float scale and an integer zero per group (asymmetric, as GPTQ stores it)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from supernet.grids.base import PARTS, Grid, QuantizedWeight
from supernet.grids.packing import pack, unpack
from supernet.space import Choice

SMALLEST_SCALE = 1e-8  # an all-zero group still needs a scale to divide by
SHRINKS = tuple(1 - 0.05 * step for step in range(13))  # candidate ranges: 100 % down to 40 %
ROWS_OF = 2**21  # weights that are rounded together
AT_ONCE = 2**17  # weights whose ranges are searched together: what is tried of them stays in a core's cache


class IntegerGrid(Grid):
    def parameters(self, weight: Tensor, bits: int | Tensor) -> tuple[Tensor, Tensor]:
        return self.from_range(*_range(weight), bits)

    def clipped(self, weight: Tensor, bits: int | Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
        """As `parameters`, for the shrunk range that leaves the least squared error, weighed by `importance`.

        `importance` `(..., group_size)` is how much each input counts: the sum of its squares, a Hessian's diagonal.
        At 2 bits the full range of a group wastes most of its four levels on the tails; and what is best for all inputs
        alike is not what is best for the few whose activations are large (docs/log.md).
        """
        levels = _top(bits, weight).expand(len(weight), *(1,) * (weight.dim() - 1))
        rows = max(1, AT_ONCE // weight[0].numel())
        found = [
            _least_error(part.contiguous(), top, importance)
            for part, top in zip(weight.split(rows), levels.split(rows), strict=True)
        ]
        scales, zeros = zip(*found, strict=True)
        return torch.cat(scales), torch.cat(zeros)

    @staticmethod
    def from_range(low: Tensor, high: Tensor, bits: int | Tensor) -> tuple[Tensor, Tensor]:
        return _over_range(low, high, _top(bits, low))

    def encode(self, weight: Tensor, scale: Tensor, zero: Tensor, bits: int | Tensor) -> Tensor:
        return self.encode_below(weight, scale, zero, _top(bits, weight))

    @staticmethod
    def encode_below(weight: Tensor, scale: Tensor, zero: Tensor, top: Tensor) -> Tensor:
        """As `encode`, with the highest codes known: who encodes column by column asks for them once."""
        return torch.minimum((weight / scale).round_().add_(zero).clamp_(min=0), top)

    def nearest(self, weight: Tensor, choice: Choice, importance: Tensor | None = None) -> QuantizedWeight:
        """`weight` `(out_features, in_features)`, of any float dtype, rounded to the nearest codes; ranges are those of
        `clipped` where the `importance` `(in_features,)` of each input is given."""
        packed = [
            self.pack(codes.flatten(1), scale.squeeze(-1), zero.squeeze(-1), choice, weight.shape[1])
            for codes, scale, zero in self._nearest(weight, choice, importance)
        ]
        parts = (torch.cat([getattr(one, part) for one in packed]) for part in PARTS)
        return packed[0].join(*parts)

    def rounded(self, weight: Tensor, choice: Choice) -> Tensor:
        """`weight` rounded to nearest, in its own dtype."""
        found = torch.empty_like(weight)
        start = 0
        for codes, scale, zero in self._nearest(weight, choice, None):
            found[start : start + len(codes)] = codes.sub_(zero).mul_(scale).flatten(1)
            start += len(codes)
        return found

    def _nearest(self, weight: Tensor, choice: Choice, importance: Tensor | None) -> Iterator[tuple[Tensor, ...]]:
        """Codes `(rows, groups, group_size)`, scales and zeros `(rows, groups, 1)`, some rows at a time: a vocabulary
        is long, and what is tried on the way is several times as large."""
        for part in weight.split(max(1, ROWS_OF // weight.shape[1])):
            grouped = part.float().reshape(len(part), -1, choice.group_size)
            if importance is None:
                scale, zero = self.parameters(grouped, choice.bits)
            else:
                scale, zero = self.clipped(grouped, choice.bits, importance.view(-1, choice.group_size))
            yield self.encode(grouped, scale, zero, choice.bits), scale, zero

    def pack(self, codes: Tensor, scale: Tensor, zero: Tensor, choice: Choice, in_features: int) -> QuantizedWeight:
        """Codes `(out_features, in_features)`, scale and zero `(out_features, groups)`, any dtype -> a stored value."""
        return QuantizedWeight(
            pack(codes.to(torch.uint8), choice.bits), scale.float(), zero.to(torch.uint8), choice, in_features
        )

    def codes(self, weight: QuantizedWeight) -> Tensor:
        """Unpacked uint8 codes `(out_features, in_features)`."""
        return unpack(weight.packed(), weight.choice.bits, weight.in_features)

    def centered(self, weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
        rows, groups = weight.scale.shape
        codes = self.codes(weight).view(rows, groups, weight.choice.group_size)
        return codes.to(dtype) - weight.zero.to(dtype).unsqueeze(-1)

    def dequantize(self, weight: QuantizedWeight, dtype: torch.dtype, scale: Tensor | None = None) -> Tensor:
        scale = weight.scale if scale is None else scale
        return (self.centered(weight, dtype) * scale.to(dtype).unsqueeze(-1)).flatten(1)


def _top(bits: int | Tensor, like: Tensor) -> Tensor:
    """The highest code."""
    return torch.as_tensor(2**bits - 1, device=like.device).to(like.dtype)


def _over_range(low: Tensor, high: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    scale = ((high - low) / top).clamp_(min=SMALLEST_SCALE)
    return scale, torch.minimum((-low / scale).round_().clamp_(min=0), top)


def _least_error(weight: Tensor, top: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero of the shrunk range that leaves the least error."""
    low, high = _range(weight)
    best_scale, best_zero = _over_range(low, high, top)
    best = torch.full_like(low, torch.inf)
    for shrink in SHRINKS:
        scale, zero = _over_range(low * shrink, high * shrink, top)
        off = IntegerGrid.encode_below(weight, scale, zero, top).sub_(zero).mul_(scale).sub_(weight)
        error = off.square_().mul_(importance).sum(-1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _range(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest weight of each group, 0 among them."""
    return weight.amin(-1, keepdim=True).clamp(max=0), weight.amax(-1, keepdim=True).clamp(min=0)
