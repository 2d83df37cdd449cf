"""What ONNX Runtime's cache of int8 makes of keys and values: multiples of a channel's constant scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from planner.runtimes.onnxruntime.scales import MOST, scales_in

if TYPE_CHECKING:
    from torch import Tensor

    from supernet.keys_values import Kept


def kept(rotary_dim: int, model: Any, windows: Sequence[Any]) -> Kept:
    """With scales from `windows`, as an exporter takes them."""
    import torch

    scales = {
        layer: [torch.from_numpy(scale)[None, :, None, :].to(model.device) for scale in both]
        for layer, both in scales_in(model, rotary_dim, windows).items()
    }

    def keep(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        of_keys, of_values = scales[layer]
        return _rounded(keys, of_keys), _rounded(values, of_values)

    return keep


def _rounded(x: Tensor, scale: Tensor) -> Tensor:
    return (x.float() / scale).round().clamp(-MOST - 1, MOST) * scale
