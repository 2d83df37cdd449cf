"""A model that is kept in few bits and computes in float32: one module's weights at a time become float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from supernet.model import compute_dtype, removed_after


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Within, passes of `model` are those of its float32 copy, which is never held: what the original says is measured
    exactly, and in bfloat16 its own rounding would be a KL divergence of up to 0.002. For passes without gradients."""
    held: dict[nn.Module, dict[str, Tensor]] = {}

    def widen(module: nn.Module, args: Any) -> None:
        held[module] = {name: part.data for name, part in module.named_parameters(recurse=False)}
        for part in module.parameters(recurse=False):
            part.data = part.data.float()

    def narrow(module: nn.Module, args: Any, output: Any) -> None:
        kept = held.pop(module, {})
        for name, part in module.named_parameters(recurse=False):
            part.data = kept[name]

    hooks = []
    for module in model.modules():
        if any(part.dtype != torch.float32 for part in module.parameters(recurse=False)):
            hooks += [module.register_forward_pre_hook(widen), module.register_forward_hook(narrow, always_call=True)]
    with removed_after(hooks):
        yield


def kept_dtype(config: Any, device: torch.device) -> torch.dtype:
    """What a full model is held in: bfloat16 where its files hold that and the device computes in it, else float32."""
    own = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    same = own in (torch.bfloat16, "bfloat16") and compute_dtype(device) == torch.bfloat16
    return torch.bfloat16 if same else torch.float32
