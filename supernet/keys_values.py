"""What it costs that a runtime keeps keys and values in fewer bits than it computes with.

A runtime says how they come back from its cache; here the model reads them so. Every token of a window reads what was
kept of all before it, as when a package serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from supernet.activations import said_by
from supernet.build import Supernet
from supernet.evaluate import Quality, Reference, evaluate
from supernet.model import removed_after
from supernet.progress import Progress, silent
from supernet.space import Subnet

Kept = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""A layer's number, its keys and values `(windows, heads, tokens, values of a head)` -> the same as they are read back.
Keys are as they are cached, turned by their positions."""

TOKENS = 512  # of a text, in whole windows: both sides are of the same subnet, so few tell them apart


@contextmanager
def kept_keys_values(model: Any, kept: Kept) -> Iterator[None]:
    """Within, `model` attends to keys and values as they come back from a cache."""
    from transformers import DynamicCache

    class Rounding(DynamicCache):
        def update(
            self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            rounded = kept(layer_idx, key_states, value_states)
            keys, values = (one.to(key_states.dtype) for one in rounded)
            return super().update(keys, values, layer_idx, *args, **kwargs)

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "past_key_values": Rounding(), "use_cache": True}

    with removed_after([model.base_model.register_forward_pre_hook(hook, with_kwargs=True)]):
        yield


@torch.no_grad()
def with_floats(supernet: Supernet, subnet: Subnet, reference: Reference) -> Reference:
    """What `subnet` says of the reference's first windows, `TOKENS` together or one, with keys and values as floats, in
    float32: bfloat16 rounds as much as 8 bits do."""
    count = max(1, TOKENS // reference.windows.shape[1])
    return said_by(supernet, subnet, reference.part(slice(count)))


@torch.no_grad()
def cache_loss(
    supernet: Supernet, subnet: Subnet, floats: Reference, kept: Kept, progress: Progress = silent
) -> Quality:
    """From what `subnet` says `with_floats` to what it says with keys and values as they are `kept`."""
    supernet.set_dtype(torch.float32)
    with kept_keys_values(supernet.model, kept):
        (found,) = evaluate(supernet, [subnet], floats, progress)
    return found
