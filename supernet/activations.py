"""What it costs that a runtime multiplies activations as int8, each group of channels with one scale.

Trained models have a few channels a thousand times larger than the rest (Sun et al., "Massive Activations in Large
Language Models", arXiv 2402.17762), and beside one of them the other channels of its group are rounded to nothing. No
number of bits for the weights mends that, so it is measured once, on the largest uniform subnet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from supernet.build import Supernet
from supernet.evaluate import Reference, evaluate
from supernet.linear import SuperLinear, TiedHead
from supernet.model import hidden_states, removed_after
from supernet.progress import Progress, silent
from supernet.space import Subnet

INT8 = "int8"
LEVELS = 127


def rounded(x: Tensor, group_size: int) -> Tensor:
    """`x` `(..., channels)`, each group of channels on a symmetric grid of int8 that its largest value ends."""
    groups = x.unflatten(-1, (-1, group_size))
    scale = (groups.abs().amax(-1, keepdim=True) / LEVELS).clamp(min=1e-30)
    return ((groups / scale).round() * scale).flatten(-2)


@contextmanager
def rounded_activations(supernet: Supernet) -> Iterator[None]:
    """Within, every product of the model reads int8."""

    def hook(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        quantized = module.embedding if isinstance(module, TiedHead) else module
        choice = quantized.choice
        return rounded(args[0], max(choice.group_size, choice.format.block)), *args[1:]

    products = (module for module in supernet.model.modules() if isinstance(module, (SuperLinear, TiedHead)))
    with removed_after([module.register_forward_pre_hook(hook) for module in products]):
        yield


@torch.no_grad()
def activation_losses(
    supernet: Supernet, subnet: Subnet, reference: Reference, progress: Progress = silent
) -> dict[str, float]:
    """By how activations are rounded: KL per token from `subnet` to what it says then, on the reference's windows."""
    exact = said_by(supernet, subnet, reference)
    with rounded_activations(supernet):
        (found,) = evaluate(supernet, [subnet], exact, progress)
    return {INT8: found.kl}


@torch.no_grad()
def said_by(supernet: Supernet, subnet: Subnet, reference: Reference) -> Reference:
    """What `subnet`, computed in float32, says of the reference's windows: what roundings beside the weights' own are
    held to."""
    supernet.set_dtype(torch.float32)
    supernet.activate(subnet)
    windows = reference.windows.to(supernet.model.device)
    hidden = torch.cat([hidden_states(supernet.model, window) for window in windows.split(1)])
    head = supernet.model.get_output_embeddings()
    weight = head.embedding.table() if isinstance(head, TiedHead) else head.effective(head.choice)
    return replace(reference, windows=windows, hidden=hidden, head=weight)
