"""Scales that suit groups of weights: of several ranges the best, each with the numbers that fit its codes best.

`weight` is `(rows, ..., group_size)`; `top`, the highest code, broadcasts over rows; `importance` is how much each
input counts and broadcasts over `weight`. What is found is `(rows, ..., 1)`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST = 2.0**-24  # the least float16 above 0: a scale is divided by, also that of a group of zeros
LARGEST = torch.finfo(torch.float16).max


class Tried(NamedTuple):
    """Ranges that are tried of a group. Where 0 is in the middle, `shrinks` are shares of the range whose last level is
    the largest weight, on the side with more levels, and `stretches` shares of the way from there to where the side
    with fewer has it. Where a minimum moves, `around` are shares of the group's range about its middle."""

    shrinks: tuple[float, ...]
    stretches: tuple[float, ...]
    around: tuple[float, ...]


EVERY = Tried(
    tuple(1 - 0.1 * step for step in range(7)), (0.25, 0.5, 0.75, 1.0), tuple(1.1 - 0.06 * step for step in range(11))
)
FEW = Tried((1.0, 0.8), (1.0,), (1.0, 0.8))


def half(scale: Tensor) -> Tensor:
    """The nearest float16 that is neither 0 nor infinite, in the dtype of `scale`."""
    sized = scale.abs().clamp(SMALLEST, LARGEST).half().to(scale.dtype)
    return torch.where(scale < 0, -sized, sized)


def signed_scale(weight: Tensor, top: Tensor, importance: Tensor, tried: Tried) -> Tensor:
    """The scale of either sign for codes with 0 at (top + 1) / 2.

    Of several ranges and both signs, each with the scale that suits its codes best: for given codes q (0 in the middle)
    that is `sum(w q) / sum(q^2)`, which leaves `sum(w q)^2 / sum(q^2)` less error than none at all.
    """
    middle = (top + 1) / 2
    extreme = weight.gather(-1, weight.abs().argmax(-1, keepdim=True))
    unit = (extreme.abs() / middle).clamp_(min=SMALLEST)
    counted = weight * importance
    best_scale, best = -extreme / middle, torch.zeros_like(extreme)
    beyond = 1 / (middle - 1).clamp(min=1)
    sizes = [*(torch.tensor(shrink) for shrink in tried.shrinks), *(1 + part * beyond for part in tried.stretches)]
    for size in sizes:
        whole = (weight / (unit * size)).round_()
        for sign, low, high in ((1, -middle, middle - 1), (-1, 1 - middle, middle)):
            codes = whole.clamp(low, high)
            along = (codes * counted).sum(-1, keepdim=True)
            long = codes.square_().mul_(importance).sum(-1, keepdim=True)
            scale = along / long  # of codes that are all 0: not a number, and never better
            gained = along * scale
            better = gained > best
            best = torch.where(better, gained, best)
            best_scale = torch.where(better, sign * scale, best_scale)
    return best_scale


def scale_and_minimum(weight: Tensor, top: Tensor, importance: Tensor, tried: Tried) -> tuple[Tensor, Tensor]:
    """Scale above 0 and minimum not below it, for `w = code * scale - minimum`.

    Of ranges around the middle of a group's, shares of it, each with the line through its codes that leaves the least
    squared error; where that has a minimum below 0, the line through 0.
    """
    low, high = weight.amin(-1, keepdim=True).clamp(max=0), weight.amax(-1, keepdim=True)
    centre, reach = (low + high) / 2, (high - low) / 2
    total = importance.sum(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    counted = weight * importance
    mean = counted.sum(-1, keepdim=True)
    best_scale, best_minimum = (2 * reach / top).clamp_(min=SMALLEST), -low
    best = torch.full_like(low, torch.inf)
    for shrink in tried.around:
        unit = (2 * reach * shrink / top).clamp_(min=SMALLEST)
        codes = nearest(weight, unit, reach * shrink - centre, top)
        scale, minimum = _line(codes, importance, total, mean, (codes * counted).sum(-1, keepdim=True))
        error = squares(weight, scale, minimum, top, importance)
        better = (error < best) & (scale > 0)
        best = torch.where(better, error, best)
        best_scale = torch.where(better, scale, best_scale)
        best_minimum = torch.where(better, minimum, best_minimum)
    return best_scale.clamp_(min=SMALLEST), best_minimum.clamp_(min=0)


def _line(codes: Tensor, importance: Tensor, total: Tensor, mean: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum that leave the least error for these codes."""
    weighed = codes * importance
    first, second = weighed.sum(-1, keepdim=True), (weighed * codes).sum(-1, keepdim=True)
    spread = total * second - first * first
    scale, minimum = (total * product - first * mean) / spread, (first * product - second * mean) / spread
    through = product / second
    below = ~(minimum > 0)  # also where all codes are one, and there is no line
    return torch.where(below, through, scale), torch.where(below, torch.zeros_like(minimum), minimum)


def nearest(weight: Tensor, scale: Tensor, minimum: Tensor, top: Tensor) -> Tensor:
    return torch.minimum(((weight + minimum) / scale).round_().clamp_(min=0), top)


def squares(weight: Tensor, scale: Tensor, minimum: Tensor, top: Tensor, importance: Tensor) -> Tensor:
    """The squared error of the nearest codes, weighed."""
    off = nearest(weight, scale, minimum, top).mul_(scale).sub_(minimum).sub_(weight)
    return off.square_().mul_(importance).sum(-1, keepdim=True)
