"""What vLLM's float8 cache makes of keys and values: e4m3 without a scale, what is beyond it cut off."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from supernet.keys_values import Kept


def kept() -> Kept:
    import torch

    kind = torch.float8_e4m3fn
    largest = torch.finfo(kind).max

    def keep(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        rounded = (x.float().clamp(-largest, largest).to(kind).float() for x in (keys, values))
        return next(rounded), next(rounded)

    return keep
