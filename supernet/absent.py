"""Weights that stay in their files until something computes with them: a model that does not fit in memory.

An absent weight has its shape, dtype and device, and holds a single NaN: who reads it unasked gets nothing else. A
linear and an embedding read theirs for a pass of their own; `present` reads those of a whole block for as long as
everything that needs the block takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


class Absent(nn.Parameter):
    """A weight of `shape` that `read` gives, of any float dtype; present it has `dtype`, or float32 in `wide`."""

    def __new__(cls, read: Callable[[], Tensor], shape: torch.Size, dtype: torch.dtype) -> Absent:
        nothing = torch.full((), torch.nan, dtype=dtype).expand(shape)
        return torch.Tensor._make_subclass(cls, nothing, False)

    def __init__(self, read: Callable[[], Tensor], shape: torch.Size, dtype: torch.dtype) -> None:
        self.read, self.kept_dtype, self.nothing = read, dtype, self.data
        self.changes: list[Callable[[Tensor], object]] = []
        self.users, self.wide = 0, False

    def enter(self) -> None:
        if not self.users:
            self.data = self._made()
        self.users += 1

    def leave(self) -> None:
        self.users -= 1
        if not self.users:
            self.data = self.nothing

    @torch.no_grad()
    def _made(self) -> Tensor:
        values = self.read().to(self.kept_dtype, copy=True)
        for change in self.changes:
            change(values)
        return values.float() if self.wide else values


def absent_in(*parts: nn.Module | Tensor) -> list[Absent]:
    """The absent weights of modules, and those of `parts` that are one."""
    found = [weight for part in parts for weight in (part.parameters() if isinstance(part, nn.Module) else [part])]
    return [weight for weight in found if isinstance(weight, Absent)]


def streams(model: nn.Module) -> bool:
    """Whether weights of `model` stay in their files."""
    return bool(absent_in(model))


def own_dtype(weight: Tensor) -> torch.dtype:
    """The dtype that a weight is kept in, also where it is read in float32 now."""
    return weight.kept_dtype if isinstance(weight, Absent) else weight.dtype


@contextmanager
def present(*parts: nn.Module | Tensor) -> Iterator[None]:
    """Within, the weights of these modules, and these weights, are there. What is there already is not read again."""
    with ExitStack() as stack:
        for weight in absent_in(*parts):
            weight.enter()
            stack.callback(weight.leave)
        yield


@contextmanager
def wide(model: nn.Module) -> Iterator[None]:
    """Within, weights that are read come in float32."""
    weights = absent_in(model)
    for weight in weights:
        weight.wide = True
    try:
        yield
    finally:
        for weight in weights:
            weight.wide = False


@torch.no_grad()
def change(weight: Tensor, how: Callable[[Tensor], object]) -> None:
    """Do `how`, which works in place, to a weight; to an absent one each time that it is read."""
    if isinstance(weight, Absent):
        weight.changes.append(how)
    else:
        how(weight)


def read_for_passes(module: nn.Module) -> None:
    """Have a module read its absent weights whenever it computes."""
    compute = module.forward

    def forward(*args: object, **kwargs: object) -> object:
        with present(module):
            return compute(*args, **kwargs)

    module.forward = forward
