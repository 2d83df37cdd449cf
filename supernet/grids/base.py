"""What a grid is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from supernet.formats import CODES, Format
from supernet.grids.packing import pack, unpack
from supernet.grids.weight import QuantizedWeight, Stored
from supernet.space import Choice

__all__ = ["Grid", "QuantizedWeight", "Stored", "top_code"]

ROWS_OF = 2**21  # weights that are rounded together
AT_ONCE = 2**17  # weights whose scales are searched together: what is tried of them stays in a core's cache
OF_GPU = 2**24  # weights of either there, which has no such cache and is slow to begin


class Grid(ABC):
    """Codes <-> weights: `w = (code - zero) * scale` with a scale and a zero for each group of inputs.

    A member says which tensors those are kept as, which scales and zeros they can hold, and which suit a group. Who
    trains a scale or a zero passes both through `held`, and so trains what is stored. Groups of one block of the
    format's may share numbers, so scales and zeros are found and held for whole blocks.
    """

    format: ClassVar[Format]

    @abstractmethod
    def parameters(self, weight: Tensor, bits: int | Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero that suit `weight`, `(rows, groups, group_size)`; both `(rows, groups, 1)` and in the dtype of
        `weight`."""

    @abstractmethod
    def least_error(self, weight: Tensor, top: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero of all that the grid tries that leave `weight` `(rows, groups, group_size)` the least squared
        error, weighed by `importance`; `top`, the highest code, broadcasts over rows."""

    @abstractmethod
    def scale(self, weight: QuantizedWeight) -> Tensor:
        """Of each group, `(out_features, groups)`, float32 unless the parts are float64."""

    @abstractmethod
    def zero(self, weight: QuantizedWeight) -> Tensor:
        """Of each group, `(out_features, groups)`: uint8, or a float where something was folded into it."""

    @abstractmethod
    def sides(self, scale: Tensor, zero: Tensor, bits: int) -> Mapping[str, Tensor]:
        """What is stored beside codes of so many bits for scales and zeros `(out_features, groups)` that the grid
        holds."""

    def again(
        self, weight: Tensor, bits: Tensor, importance: Tensor, scale: Tensor, zero: Tensor, number: int
    ) -> tuple[Tensor, Tensor]:
        """Scale and zero `(rows,)` of one group of a block whose `scale` and `zero` `(rows, groups)` were found before
        its weights, now `(rows, 1, group_size)`, had changed: what the block's shared numbers leave, weighed as by
        `clipped`. The other groups' still hold."""
        return scale[:, number], zero[:, number]

    def check(self, weight: QuantizedWeight) -> None:
        """ValueError where a part beside the codes is not one number for each group."""
        groups = (weight.shape[0], weight.in_features // weight.choice.group_size)
        for name, part in weight.parts.items():
            if name != CODES and tuple(part.shape) != groups:
                raise ValueError(f"{name} of {weight.choice} must be {groups}, got {tuple(part.shape)}")

    def held(self, scale: Tensor, zero: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """The nearest scales and zeros `(out_features, groups)` that the grid stores with codes of so many bits, in
        their dtypes; gradients pass straight through."""
        return scale, zero

    def clipped(self, weight: Tensor, bits: int | Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
        """As `parameters`, for what leaves the least squared error, weighed by `importance`.

        `importance` `(..., group_size)` is how much each input counts: the sum of its squares, a Hessian's diagonal.
        At 2 bits the full range of a group wastes most of its four levels on the tails; and what is best for all inputs
        alike is not what is best for the few whose activations are large (docs/log.md).
        """
        levels = top_code(bits, weight).expand(len(weight), *(1,) * (weight.dim() - 1))
        at_once = AT_ONCE if weight.device.type == "cpu" else OF_GPU
        rows = max(1, at_once // weight[0].numel())
        found = [
            self.least_error(part.contiguous(), top, importance)
            for part, top in zip(weight.split(rows), levels.split(rows), strict=True)
        ]
        scales, zeros = zip(*found, strict=True)
        return torch.cat(scales), torch.cat(zeros)

    def encode(self, weight: Tensor, scale: Tensor, zero: Tensor, bits: int | Tensor) -> Tensor:
        """The nearest codes, in the dtype of `weight`. `bits` may be a tensor that broadcasts over rows."""
        return self.encode_below(weight, scale, zero, top_code(bits, weight))

    def encode_below(self, weight: Tensor, scale: Tensor, zero: Tensor, top: Tensor) -> Tensor:
        """As `encode`, with the highest codes known: who encodes column by column asks for them once."""
        return torch.minimum((weight / scale).round_().add_(zero).clamp_(min=0), top)

    def nearest(self, weight: Tensor, choice: Choice, importance: Tensor | None = None) -> QuantizedWeight:
        """`weight` `(out_features, in_features)`, of any float dtype, rounded to the nearest codes; scales are those of
        `clipped` where the `importance` `(in_features,)` of each input is given."""
        packed = [
            self.pack(codes.flatten(1), scale.squeeze(-1), zero.squeeze(-1), choice, weight.shape[1])
            for codes, scale, zero in self._nearest(weight, choice, importance)
        ]
        return packed[0].join({name: torch.cat([one.parts[name] for one in packed]) for name in packed[0].parts})

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
        at_once = ROWS_OF if weight.device.type == "cpu" else OF_GPU
        for part in weight.split(max(1, at_once // weight.shape[1])):
            grouped = part.float().reshape(len(part), -1, choice.group_size)
            if importance is None:
                scale, zero = self.parameters(grouped, choice.bits)
            else:
                scale, zero = self.clipped(grouped, choice.bits, importance.view(-1, choice.group_size))
            yield self.encode(grouped, scale, zero, choice.bits), scale, zero

    def pack(self, codes: Tensor, scale: Tensor, zero: Tensor, choice: Choice, in_features: int) -> QuantizedWeight:
        """Codes `(out_features, in_features)`, scale and zero `(out_features, groups)`, any dtype -> a stored value."""
        parts = {CODES: pack(codes.to(torch.uint8), choice.bits), **self.sides(scale, zero, choice.bits)}
        return self.of(parts, choice, in_features)

    def of(self, parts: Mapping[str, Tensor], choice: Choice, in_features: int) -> QuantizedWeight:
        """The weight that these stored tensors are."""
        return QuantizedWeight(self, parts, choice, in_features)

    def codes(self, weight: QuantizedWeight) -> Tensor:
        """Unpacked uint8 codes `(out_features, in_features)`."""
        return unpack(weight.packed(), weight.choice.bits, weight.in_features)

    def centered(self, weight: QuantizedWeight, dtype: torch.dtype, zero: Tensor | None = None) -> Tensor:
        """`code - zero`, shape `(out_features, groups, group_size)`: the weight before its scale. `zero` replaces the
        stored one."""
        zero = self.zero(weight) if zero is None else zero
        return less_zero(self.codes(weight).view(*zero.shape, weight.choice.group_size), zero, dtype)

    def dequantize(
        self, weight: QuantizedWeight, dtype: torch.dtype, scale: Tensor | None = None, zero: Tensor | None = None
    ) -> Tensor:
        """The weights `(out_features, in_features)`; `scale` and `zero` replace the stored ones."""
        scale = self.scale(weight) if scale is None else scale
        return self.centered(weight, dtype, zero).mul_(scale.to(dtype).unsqueeze(-1)).flatten(1)


def less_zero(codes: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    """`code - zero` of codes `(out_features, groups, group_size)`. Zeros that are no codes are rounded to `dtype` with
    the difference, which is smaller than they are."""
    if zero.is_floating_point():
        return (codes.to(zero.dtype) - zero.unsqueeze(-1)).to(dtype)
    return codes.to(dtype).sub_(zero.to(dtype).unsqueeze(-1))


def top_code(bits: int | Tensor, like: Tensor) -> Tensor:
    """The highest code."""
    return torch.as_tensor(2**bits - 1, device=like.device).to(like.dtype)
