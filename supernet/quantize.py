"""Codes for every matrix of a full model at every choice, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from supernet.blocks import input_sums
from supernet.build import Weights
from supernet.grids import QuantizedWeight
from supernet.hessians import fisher_hessians
from supernet.progress import Progress, silent
from supernet.quantizers import RTN, Quantizer
from supernet.space import Choice, SearchSpace
from supernet.spec import ModelSpec


def quantize(
    model: Any, spec: ModelSpec, space: SearchSpace, quantizer: Quantizer, windows: Tensor, progress: Progress = silent,
    seed: int = 0,
) -> Weights:  # fmt: skip
    """Codes for every matrix at every choice. `windows` `(n, tokens)` calibrates quantizers that need a Hessian, and
    `seed` draws what is random about that.

    Matrices are quantized where the windows are, and their codes wait where the model is. Tables are rounded to
    nearest: their inputs are one-hot, so there is no error to spread.
    """
    units = {linear.name: unit for unit in spec.units for linear in unit.linears}
    linears = [name for name, unit in units.items() if not unit.is_table]
    found = {
        name: _quantized(model, name, RTN(), space.whole[unit.name], None, windows.device)
        for name, unit in units.items()
        if unit.is_table
    }
    for hessians in _hessians(model, linears, quantizer, windows, seed, progress):
        for name, hessian in hessians.items():
            choices = space.whole[units[name].name]
            found[name] = _quantized(model, name, quantizer, choices, hessian, windows.device)
        progress("quantize", len(found), len(units))
    return found


def _hessians(
    model: Any, linears: list[str], quantizer: Quantizer, windows: Tensor, seed: int, progress: Progress
) -> Iterator[Mapping[str, Tensor | None]]:
    """What the quantizer is told of every linear's inputs, block by block: no other block's Hessians are held."""
    if not quantizer.needs_hessian:
        yield dict.fromkeys(linears)
    elif quantizer.fisher:
        yield from fisher_hessians(model, linears, windows, seed, partial(progress, "weigh tokens"))
    else:
        yield from input_sums(model, linears, windows, lambda x: x.T @ x)


@torch.no_grad()
def _quantized(
    model: Any, linear: str, quantizer: Quantizer, choices: Sequence[Choice], hessian: Tensor | None,
    device: torch.device,
) -> dict[Choice, QuantizedWeight]:  # fmt: skip
    weight = model.get_submodule(linear).weight.detach().to(device).float()
    return {c: found.to(model.device) for c, found in quantizer.quantize(weight, choices, hessian).items()}
