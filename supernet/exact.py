"""A model that is kept in few bits and computes in more: in float32, one module's weights at a time; and in float64,
where what it says must be the same on every machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from supernet.absent import Absent, wide
from supernet.model import compute_dtype, removed_after
from supernet.rotary import Rotary, looked_up


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Within, passes of `model` are those of its float32 copy, which is never held: what the original says is measured
    exactly, and in bfloat16 its own rounding would be a KL divergence of up to 0.002. For passes without gradients."""
    held: dict[nn.Module, dict[str, Tensor]] = {}

    def widen(module: nn.Module, args: Any) -> None:
        there = [(n, p) for n, p in module.named_parameters(recurse=False) if not isinstance(p, Absent)]
        held[module] = {name: part.data for name, part in there}
        for _, part in there:
            part.data = part.data.float()

    def narrow(module: nn.Module, args: Any, output: Any) -> None:
        for name, data in held.pop(module, {}).items():
            getattr(module, name).data = data

    hooks = []
    for module in model.modules():
        if any(part.dtype != torch.float32 for part in module.parameters(recurse=False)):
            hooks += [module.register_forward_pre_hook(widen), module.register_forward_hook(narrow, always_call=True)]
    with removed_after(hooks), wide(model):
        yield


class _Wider(TorchDispatchMode):
    """Where a model's own code asks for float32 (norms and softmax do), it gets float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


@contextmanager
def in_float64(model: Any, rotaries: Mapping[str, Rotary], tokens: int) -> Iterator[None]:
    """Within, passes of `model` over at most `tokens` positions are in float64, and stay so after; codes stay packed.

    Sums in another order, other vector units and other exponentials change float32 results by 1e-5 and float64 results
    by 1e-13 (docs/log.md): what is rounded to steps of 1e-4 then is the same wherever it is computed. Positions turn by
    the package's own table.
    """
    model.double()
    if rotaries:
        model.base_model.rotary_emb = looked_up(rotaries, tokens)
    with _Wider():
        yield


def kept_dtype(config: Any, device: torch.device) -> torch.dtype:
    """What a full model is held in: bfloat16 where its files hold that and the device computes in it, else float32."""
    own = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    same = own in (torch.bfloat16, "bfloat16") and compute_dtype(device) == torch.bfloat16
    return torch.bfloat16 if same else torch.float32
