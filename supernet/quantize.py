"""Codes for every matrix of a full model at every choice, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
    with _side_by_side(windows.device) as pool:
        for hessians in _hessians(model, linears, quantizer, windows, seed, progress):

            def solve(name: str, hessians: Mapping[str, Tensor | None] = hessians) -> dict[Choice, QuantizedWeight]:
                choices = space.whole[units[name].name]
                return _quantized(model, name, quantizer, choices, hessians[name], windows.device)

            largest_first = sorted(hessians, key=lambda name: model.get_submodule(name).weight.shape[1], reverse=True)
            found |= zip(largest_first, pool.map(solve, largest_first), strict=True)
            progress("quantize", len(found), len(units))
    return {name: found[name] for name in units}


@contextmanager
def _side_by_side(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """A thread for each core, or one where another device computes: the columns of a matrix are rounded one after the
    other, which one core does as fast as several, and matrices do not wait for each other."""
    threads = torch.get_num_threads()
    workers = threads if device.type == "cpu" else 1
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool
        finally:
            torch.set_num_threads(threads)  # of the libraries behind torch, some know one number for all threads


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
    weight = model.get_submodule(linear).weight.detach().to(device)
    return {c: found.to(model.device) for c, found in quantizer.quantize(weight, choices, hessian).items()}
