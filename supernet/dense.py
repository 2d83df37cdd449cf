"""A subnet that computes with matrices dequantized once, as far as they fit into what is free.

What reads one token at a time would unpack every matrix for every token otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from supernet.experts import linear_of
from supernet.grids import QuantizedWeight
from supernet.linear import SuperLinear, TiedHead

MOST_BYTES = 2**30
SHARE = 4  # of the memory that is free, one part in so many
FLOAT_BYTES = 4


@contextmanager
def dense(model: Any, most_bytes: int | None = None) -> Iterator[int]:
    """Within it linears of `model` are plain ones in float32, up to `most_bytes` of them, the head first; how many are.

    Those that are pruned or have an adapter stay. The model is as it was afterwards.
    """
    left, replaced = _free() if most_bytes is None else most_bytes, dict[str, nn.Module]()
    try:
        for name, module, weight, bias in _candidates(model):
            size = weight.shape[0] * weight.shape[1] * FLOAT_BYTES
            if size <= left:
                left -= size
                replaced[name] = module
                floats = None if bias is None else bias.float()
                model.set_submodule(name, linear_of(weight.dequantize(torch.float32), floats))
        yield len(replaced)
    finally:
        for name, module in replaced.items():
            model.set_submodule(name, module)


def _free() -> int:
    import psutil

    return int(min(MOST_BYTES, psutil.virtual_memory().available // SHARE))


def _candidates(model: Any) -> list[tuple[str, nn.Module, QuantizedWeight, Tensor | None]]:
    """The largest first: a head is read in stretches, each of which is made again for every token."""
    found: list[tuple[str, nn.Module, QuantizedWeight, Tensor | None]] = []
    for name, module in model.named_modules():
        if isinstance(module, TiedHead):
            found.append((name, module, module.embedding.stored(module.embedding.choice), None))
        elif isinstance(module, SuperLinear) and module.choice.kept is None and module.adapter(module.choice) is None:
            found.append((name, module, module.stored(module.choice), module.bias))
    return sorted(found, key=lambda one: one[2].shape[0], reverse=True)
