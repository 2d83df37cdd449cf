"""What a quantizer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from records.errors import InputError
from supernet.grids import GRIDS, Grid, QuantizedWeight
from supernet.space import Choice


class Quantizer(ABC):
    """Finds codes, scales and zeros for a matrix at every choice."""

    needs_hessian: bool
    needs_outputs: bool = False
    """Whether it asks for a Hessian of what the matrix makes, too."""
    fisher: bool = True
    """Whether the Hessian counts each token by what an error there costs (`supernet.hessians`), or all alike."""

    @abstractmethod
    def quantize(
        self, weight: Tensor, choices: Sequence[Choice], hessian: Tensor | None = None, outputs: Tensor | None = None
    ) -> dict[Choice, QuantizedWeight]:
        """`weight` `(out_features, in_features)` of any float dtype, one value for each choice.

        `hessian` is a sum of `x x^T` over the matrix's calibration inputs, float32 `(in_features, in_features)`; None
        where `needs_hessian` is False. `outputs` is one of what the matrix makes, a sum of `g g^T` over gradients of
        log p(y), float32 `(out_features, out_features)`; None where there is none, as for tables. A group size that
        does not divide in_features raises ValueError.
        """

    def calibrated(self, hessian: Tensor | None) -> Tensor:
        """The Hessian, for members that need one."""
        if hessian is None:
            name = type(self).__name__
            raise ValueError(f"{name} needs the Hessian of the matrix's inputs, got none; calibrate first")
        return hessian


def check_groups(weight: Tensor, choices: Sequence[Choice]) -> None:
    in_features = weight.shape[1]
    for choice in choices:
        if in_features % choice.group_size:
            near = [size for size in (16, 32, 64, 128, 256) if in_features % size == 0]
            hint = f"use {' or '.join(map(str, near))}" if near else f"use a divisor of {in_features}"
            raise InputError(f"group_size must divide in_features, got {choice.group_size} and {in_features}; {hint}")


def by_grid(choices: Sequence[Choice]) -> Iterator[tuple[Grid, int, list[Choice]]]:
    """Choices that can be solved together, with their grid and group size."""
    for name, size in dict.fromkeys((choice.grid, choice.group_size) for choice in choices):
        yield GRIDS[name], size, [choice for choice in choices if (choice.grid, choice.group_size) == (name, size)]


def sides(grid: Grid, groups: Tensor, bits: Tensor, importance: Tensor, clip: bool) -> tuple[Tensor, Tensor]:
    """Scales and zeros `(rows, groups)` for `groups` `(rows, groups, group_size)` that are not rounded yet."""
    if clip:
        scale, zero = grid.clipped(groups, bits.view(-1, 1, 1), importance)
    else:
        scale, zero = grid.parameters(groups, bits.view(-1, 1, 1))
    return scale.squeeze(-1), zero.squeeze(-1)


@contextmanager
def one_thread() -> Iterator[None]:
    """A column is too little work to share: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
