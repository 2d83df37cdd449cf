"""The grid of llama.cpp's K types (Q2_K to Q6_K): groups of 16 or 32 whose scales are whole numbers times one float16
for every 256 weights of a row; at 2, 4 and 5 bits so are their minima, and at 3 and 6 bits 0 is in the middle.

    w = code * d * scale - dmin * minimum        2 bits, scales and minima of 4 bits; 4 and 5 bits, of 6 bits
    w = (code - 2^(bits - 1)) * d * scale        3 bits, signed scales of 6 bits; 6 bits, of 8 bits

The whole numbers and the two floats are what a supernet stores and what a file holds. Who trains a scale or a zero
passes both of a whole block through `held`, straight through the rounding: a block's largest scale takes about the
largest number, and whatever the block's other scales are is rounded to what that leaves. Who rounds column by column
settles what a block shares when it is reached, and the whole numbers of a group when that is (`again`).

No scale is 0, which a file could hold: a group of one value has all its codes at 0 and a minimum as well, and a weight
stays `(code - zero) * scale` with a scale to divide by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from supernet.formats import FORMATS
from supernet.grids.base import Grid, top_code
from supernet.grids.fitting import EVERY, FEW, Tried, half, nearest, scale_and_minimum, signed_scale, squares
from supernet.grids.weight import QuantizedWeight

REACHES = 4  # numbers that a block's largest scale may take, from the last one on
ALIKE = 1e-12  # of the largest square: errors below are those of float32
NEAR = (-2, -1, 0, 1, 2)


class Numbers(NamedTuple):
    """The whole numbers that a group's scale may be; minima are from 0 to `high`."""

    low: int
    high: int


class Place(NamedTuple):
    """Numbers of groups, each part `(rows, groups, 1)`; a group whose number is not `free` keeps it. There are no
    minima where 0 is in the middle."""

    d: Tensor
    scales: Tensor
    free: Tensor | bool = True
    dmin: Tensor | None = None
    minima: Tensor | None = None
    minimum_free: Tensor | bool = True


NUMBERS = {2: Numbers(1, 15), 3: Numbers(-32, 31), 4: Numbers(1, 63), 5: Numbers(1, 63), 6: Numbers(-128, 127)}


class KGrid(Grid):
    """d, dmin: float16 for each block; scales: uint8, signed int8 at 3 and 6 bits, and minima: uint8 for each group."""

    format = FORMATS["k"]

    def parameters(self, weight: Tensor, bits: int | Tensor) -> tuple[Tensor, Tensor]:
        even = torch.ones_like(weight[:1])
        top = top_code(bits, weight).expand(len(weight), *(1,) * (weight.dim() - 1))
        return self._best(weight, top, even, FEW)

    def least_error(self, weight: Tensor, top: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
        return self._best(weight, top, importance, EVERY)

    def _best(self, weight: Tensor, top: Tensor, importance: Tensor, tried: Tried) -> tuple[Tensor, Tensor]:
        """`weight` is `(rows, groups, group_size)`, whole blocks of groups in order."""
        scale = weight.new_empty(*weight.shape[:-1], 1)
        zero = torch.empty_like(scale)
        for bits, rows in _by_width(top):
            scale[rows], zero[rows] = self._of_width(weight[rows], bits, importance, tried)
        return scale, zero

    def _of_width(self, weight: Tensor, bits: int, importance: Tensor, tried: Tried) -> tuple[Tensor, Tensor]:
        scale, minimum = self._fitted(weight, bits, importance, tried)
        numbers, per = NUMBERS[bits], self.groups(bits)
        d, scales = _divided(_blocks(scale.squeeze(-1), per), numbers)
        place = Place(_spread(d, scale), _spread(scales, scale))
        if bits in self.format.moving_zeros:
            minimum = _refitted(weight, place.d * place.scales, minimum, top_code(bits, weight), importance)
            dmin, minima = _divided(_blocks(minimum.squeeze(-1), per), Numbers(0, numbers.high))
            place = place._replace(dmin=_spread(dmin, scale), minima=_spread(minima, scale))
        scale, minimum = _nearby(weight, bits, importance, place)
        scale, minimum = (part.squeeze(-1) for part in (scale, minimum))
        scale, minimum = _read(self._numbers(scale, minimum, bits), bits)
        return scale.unsqueeze(-1), (minimum / scale).unsqueeze(-1)

    def _fitted(self, weight: Tensor, bits: int, importance: Tensor, tried: Tried) -> tuple[Tensor, Tensor]:
        """Scale and minimum of each group by itself, not rounded yet."""
        top = top_code(bits, weight)
        if bits in self.format.moving_zeros:
            return scale_and_minimum(weight, top, importance, tried)
        scale = signed_scale(weight, top, importance, tried)
        return scale, scale * (top + 1) / 2

    def again(
        self, weight: Tensor, bits: Tensor, importance: Tensor, scale: Tensor, zero: Tensor, number: int
    ) -> tuple[Tensor, Tensor]:
        found, moved = scale[:, number].clone(), zero[:, number].clone()
        for width, rows in _by_width(2**bits - 1):
            parts = self._numbers(scale[rows], scale[rows] * zero[rows], width)
            new = self._on_shared(weight[rows], width, importance, parts, number)
            found[rows], moved[rows] = (part.flatten() for part in new)
        return found, moved

    def _on_shared(
        self, weight: Tensor, bits: int, importance: Tensor, parts: Mapping[str, Tensor], number: int
    ) -> tuple[Tensor, Tensor]:
        """Scale and zero of one group where what its block shares stands: so do the block's largest numbers, by which
        it is found again."""
        numbers = NUMBERS[bits]
        scale, minimum = self._fitted(weight, bits, importance, EVERY)
        d, old, free = _one(parts["d"], parts["scales"], number)
        place = Place(d, torch.where(free, _valid((scale / d).round_(), numbers), old), free)
        if "minima" in parts:
            top = top_code(bits, weight)
            minimum = _refitted(weight, d * place.scales, minimum, top, importance)
            dmin, old, free = _one(parts["dmin"], parts["minima"], number)
            minima = torch.where(free, (minimum / dmin).round_().clamp_(0, numbers.high), old)
            place = place._replace(dmin=dmin, minima=minima, minimum_free=free)
        scale, minimum = _nearby(weight, bits, importance, place)
        return scale, minimum / scale

    def encode_below(self, weight: Tensor, scale: Tensor, zero: Tensor, top: Tensor) -> Tensor:
        return torch.minimum((weight / scale).add_(zero).round_().clamp_(min=0), top)

    def groups(self, bits: int) -> int:
        """Of a block."""
        return self.format.block // self.format.group_size(bits)

    def check(self, weight: QuantizedWeight) -> None:
        choice, block = weight.choice, self.format.block
        usual = choice.bits in self.format.widths and choice.group_size == self.format.group_size(choice.bits)
        if not usual or weight.in_features % block:
            raise ValueError(
                f"{choice} has rows of a multiple of {block} and the type's groups, got {weight.in_features}"
            )
        for name, side in self.format.sides.items():
            shape = (weight.shape[0], weight.in_features // (block if side.shared else choice.group_size))
            if choice.bits in side.widths and tuple(weight.parts[name].shape) != shape:
                raise ValueError(f"{name} of {choice} must be {shape}, got {tuple(weight.parts[name].shape)}")

    def scale(self, weight: QuantizedWeight) -> Tensor:
        return _read(weight.parts, weight.choice.bits)[0]

    def zero(self, weight: QuantizedWeight) -> Tensor:
        bits = weight.choice.bits
        if bits not in self.format.moving_zeros:
            middle = torch.full((1, 1), 2 ** (bits - 1), dtype=torch.uint8, device=weight.device)
            return middle.expand_as(weight.parts["scales"])
        scale, minimum = _read(weight.parts, bits)
        return minimum / scale

    def sides(self, scale: Tensor, zero: Tensor, bits: int) -> Mapping[str, Tensor]:
        scale, zero = self.held(scale.float(), zero.float(), bits)
        found = self._numbers(scale, scale * zero, bits)
        signed = torch.int8 if NUMBERS[bits].low < 0 else torch.uint8
        kinds = {"d": torch.float16, "dmin": torch.float16, "scales": signed, "minima": torch.uint8}
        return {name: found[name].to(kinds[name]) for name in self.format.parts(bits)[1:]}

    def held(self, scale: Tensor, zero: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = _Held.apply(scale, zero, self, bits)
        return found

    def _numbers(self, scale: Tensor, minimum: Tensor, bits: int) -> dict[str, Tensor]:
        """What is stored for scales and minima `(..., groups)`, as floats."""
        per, numbers = self.groups(bits), NUMBERS[bits]
        d, scales = _divided(_blocks(scale, per), numbers)
        found = {"d": d.squeeze(-1), "scales": scales.flatten(-2)}
        if bits in self.format.moving_zeros:
            dmin, minima = _divided(_blocks(minimum, per), Numbers(0, numbers.high))
            found |= {"dmin": dmin.squeeze(-1), "minima": minima.flatten(-2)}
        return found


class _Held(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: Tensor, zero: Tensor, grid: KGrid, bits: int) -> tuple[Tensor, Tensor]:
        found = grid._numbers(scale, scale * zero, bits)
        held, minimum = _read(found, bits)
        if "minima" in found:
            return held.to(scale.dtype), (minimum / held).to(zero.dtype)
        middle = zero.clone()
        ctx.mark_non_differentiable(middle)
        return held.to(scale.dtype), middle

    @staticmethod
    def backward(ctx: Any, scale: Tensor, zero: Tensor) -> tuple[Tensor | None, ...]:
        return scale, zero if ctx.needs_input_grad[1] else None, None, None


def _read(parts: Mapping[str, Tensor], bits: int) -> tuple[Tensor, Tensor]:
    """Scales and minima of the groups, float32 `(..., groups)`: products of so few bits are exact."""
    scale = _product(parts["d"], parts["scales"])
    if "minima" in parts:
        return scale, _product(parts["dmin"], parts["minima"])
    return scale, scale * 2 ** (bits - 1)


def _product(shared: Tensor, numbers: Tensor) -> Tensor:
    groups = numbers.shape[-1] // shared.shape[-1]
    return (_blocks(numbers, groups).float() * shared.float().unsqueeze(-1)).flatten(-2)


def _divided(values: Tensor, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """The float16 `(..., 1)` of each block of `values` `(..., groups)`, and the whole numbers that it is multiplied by.

    The largest value takes one of the REACHES last numbers, the one that leaves the least error: values that are such
    products already come back as they are.
    """
    extreme = values.gather(-1, values.abs().argmax(-1, keepdim=True))
    last = numbers.low if numbers.low < 0 else numbers.high
    floor = extreme.square() * ALIKE
    best = torch.full_like(extreme, torch.inf)
    shared, whole = extreme, values
    for reach in range(last, last - REACHES, -1) if last > 0 else range(last, last + REACHES):
        d = half(extreme / reach)
        n = _valid((values / d).round_(), numbers)
        error = torch.maximum((n * d).sub_(values).square_().sum(-1, keepdim=True), floor)
        better = error < best
        best = torch.where(better, error, best)
        shared, whole = torch.where(better, d, shared), torch.where(better, n, whole)
    return shared, whole


def _valid(whole: Tensor, numbers: Numbers) -> Tensor:
    """The nearest numbers that there are; 0 is none where there are some on both sides."""
    whole = whole.clamp(numbers.low, numbers.high)
    return torch.where(whole == 0, torch.ones_like(whole).copysign(whole), whole) if numbers.low < 0 else whole


def _nearby(weight: Tensor, bits: int, importance: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    """Scales and minima of the numbers at this place and of their neighbours, those that leave the least error."""
    numbers, top = NUMBERS[bits], top_code(bits, weight)
    d, dmin, minima = place.d, place.dmin, place.minima
    best = torch.full_like(d, torch.inf)
    best_scale, best_minimum = d * place.scales, torch.zeros_like(d)
    for step in NEAR:
        scale = d * _valid(place.scales + step * place.free, numbers)
        for move in (0,) if minima is None else NEAR:
            if minima is None or dmin is None:
                minimum = scale * (top + 1) / 2
            else:
                minimum = dmin * (minima + move * place.minimum_free).clamp_(0, numbers.high)
            error = squares(weight, scale, minimum, top, importance)
            better = error < best
            best = torch.where(better, error, best)
            best_scale, best_minimum = (
                torch.where(better, scale, best_scale),
                torch.where(better, minimum, best_minimum),
            )
    return best_scale, best_minimum


def _one(shared: Tensor, numbers: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of a block's: what it shares, the number of one group, and whether that is below its largest; `(rows, 1, 1)`."""
    sizes = numbers.abs()
    free = sizes[:, group] < sizes.amax(-1)
    return shared.unsqueeze(-1), numbers[:, group].view(-1, 1, 1), free.view(-1, 1, 1)


def _refitted(weight: Tensor, scale: Tensor, minimum: Tensor, top: Tensor, importance: Tensor) -> Tensor:
    """The minimum that suits codes of these scales best."""
    codes = nearest(weight, scale, minimum, top)
    total = importance.sum(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    return (((codes * scale - weight) * importance).sum(-1, keepdim=True) / total).clamp_(min=0)


def _blocks(values: Tensor, groups: int) -> Tensor:
    return values.unflatten(-1, (-1, groups))


def _spread(part: Tensor, like: Tensor) -> Tensor:
    """A block's numbers `(rows, blocks, 1 or groups)` for each of its groups, `(rows, groups, 1)`."""
    groups = like.shape[-2] // part.shape[-2]
    return part.expand(*part.shape[:-1], groups).flatten(-2).unsqueeze(-1)


def _by_width(top: Tensor) -> Iterator[tuple[int, Tensor | slice]]:
    """The bits of rows with these highest codes, and which rows those are."""
    tops = top.flatten()
    kinds = tops.unique().tolist()
    for kind in kinds:
        yield int(kind + 1).bit_length() - 1, slice(None) if len(kinds) == 1 else tops == kind
