"""What llama.cpp's quantized caches make of keys and values: blocks of 32 values of a head, scales in float16."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from planner.runtimes.caches import CacheType

if TYPE_CHECKING:
    from torch import Tensor

    from supernet.keys_values import Kept

BLOCK = 32


def kept(cache: CacheType) -> Kept:
    rounded = ROUNDED[cache.name]

    def keep(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return _by_block(keys, rounded), _by_block(values, rounded)

    return keep


def _by_block(x: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    return rounded(x.float().unflatten(-1, (-1, BLOCK))).flatten(-2)


def _q8_0(blocks: Tensor) -> Tensor:
    """The largest value of each block is 127 steps."""
    step = blocks.abs().amax(-1, keepdim=True) / 127
    return (blocks / step.clamp(min=1e-30)).round() * step.half().float()


def _q4_0(blocks: Tensor) -> Tensor:
    """The value of largest size is -8 steps, so the side that it is on reaches one step further than the other."""
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    step = largest / -8
    inverse = (1 / step).where(step != 0, 0)
    return ((blocks * inverse + 8.5).trunc().clamp(max=15) - 8) * step.half().float()


ROUNDED: dict[str, Callable[[Tensor], Tensor]] = {"q8_0": _q8_0, "q4_0": _q4_0}
