"""What MLX's quantized caches make of keys and values: affine groups of 64 values of a head, as `mx.quantize` makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.runtimes.caches import CacheType

if TYPE_CHECKING:
    from torch import Tensor

    from supernet.keys_values import Kept

BITS = {"q8": 8, "q4": 4}


def kept(cache: CacheType) -> Kept:
    bits = BITS[cache.name]

    def keep(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return rounded(keys, bits, cache.values), rounded(values, bits, cache.values)

    return keep


def rounded(x: Tensor, bits: int, group: int) -> Tensor:
    """Each group from the end that is further from 0 on, in steps of which a whole number reaches 0."""
    groups, most = x.float().unflatten(-1, (-1, group)), 2**bits - 1
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) / most).clamp(min=1e-7)
    step = step.where(low.abs() > high.abs(), -step)
    edge = low.where(low.abs() > high.abs(), high)
    whole = (edge / step).round()
    step = (edge / whole).where(whole != 0, step)
    start = edge.where(whole != 0, 0)
    codes = ((groups - start) / step).round().clamp(0, most)
    return (codes * step.half().float() + start.half().float()).flatten(-2)
