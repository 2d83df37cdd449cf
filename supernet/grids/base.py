"""What a grid is, and the value that holds one matrix on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from supernet.grids.packing import first
from supernet.space import Choice
from supernet.spec import Channels

PARTS = ("codes", "scale", "zero")  # of a stored weight, by which modules and files name its tensors


@dataclass(frozen=True)
class QuantizedWeight:
    """One matrix on the integer grid: `w = (code - zero) * scale`, a scale and a zero for each group of inputs.

    codes: uint8 `(out_features, bytes)`, packed by `supernet.grids.packing`; scale: float32 `(out_features, groups)`;
    zero: uint8 `(out_features, groups)`, an integer on the same grid as the codes.

    Where several processes share a weight out (`supernet.shard`), `codes` is this one's part, and `gather` makes them
    whole for as long as somebody needs them: what computes with the codes asks for `packed()`.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    choice: Choice
    in_features: int
    gather: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        groups = (self.scale.shape[0], self.in_features // self.choice.group_size)
        if tuple(self.scale.shape) != groups or tuple(self.zero.shape) != groups:
            raise ValueError(f"scale and zero must be {groups}, got {self.scale.shape} and {self.zero.shape}")

    def keep(self, kept: int, channels: Channels) -> QuantizedWeight:
        """The first `kept` channels alone."""
        choice = replace(self.choice, kept=kept)
        if channels.parts:
            codes, scale, zero = (_rows(part, kept, channels) for part in (self.packed(), self.scale, self.zero))
            return QuantizedWeight(codes, scale, zero, choice, self.in_features)
        groups = kept // self.choice.group_size
        codes = first(self.packed(), self.choice.bits, self.in_features, kept)
        return QuantizedWeight(codes, self.scale[:, :groups], self.zero[:, :groups], choice, kept)

    def split(self, rows: int) -> Iterator[QuantizedWeight]:
        """The same in stretches of so many rows."""
        parts = (part.split(rows) for part in (self.packed(), self.scale, self.zero))
        for codes, scale, zero in zip(*parts, strict=True):
            yield QuantizedWeight(codes, scale, zero, self.choice, self.in_features)

    @property
    def join(self) -> Callable[[Tensor, Tensor, Tensor], QuantizedWeight]:
        """Makes such a weight of codes, scale and zero: for who holds the three by themselves."""
        return partial(QuantizedWeight, choice=self.choice, in_features=self.in_features)

    @property
    def shape(self) -> tuple[int, int]:
        return self.scale.shape[0], self.in_features

    def packed(self) -> Tensor:
        """The codes of the whole matrix."""
        return self.codes if self.gather is None else self.gather(self.codes)

    def to(self, device: torch.device) -> QuantizedWeight:
        """The same on `device`; nothing is copied where it is there already."""
        codes, scale, zero = (part.to(device) for part in (self.codes, self.scale, self.zero))
        return replace(self, codes=codes, scale=scale, zero=zero)


class Stored(Protocol):
    """A weight as it is held, whole or in part: three tensors, and what joins them into the whole."""

    @property
    def codes(self) -> Tensor: ...
    @property
    def scale(self) -> Tensor: ...
    @property
    def zero(self) -> Tensor: ...
    @property
    def in_features(self) -> int: ...
    @property
    def join(self) -> Callable[[Tensor, Tensor, Tensor], QuantizedWeight]: ...


def _rows(tensor: Tensor, kept: int, channels: Channels) -> Tensor:
    spans = [tensor[start:stop] for start, stop in channels.spans(kept)]
    return spans[0] if len(spans) == 1 else torch.cat(spans)


class Grid(ABC):
    """Codes <-> weights, differentiable in the grid's float parameters."""

    @abstractmethod
    def parameters(self, weight: Tensor, bits: int | Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero that cover `weight`, `(..., group_size)`; both `(..., 1)` and in the dtype of `weight`."""

    @abstractmethod
    def encode(self, weight: Tensor, scale: Tensor, zero: Tensor, bits: int | Tensor) -> Tensor:
        """The nearest codes, in the dtype of `weight`. `bits` may be a tensor that broadcasts over rows."""

    @abstractmethod
    def centered(self, weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
        """`code - zero`, shape `(out_features, groups, group_size)`: the weight before its scale."""

    @abstractmethod
    def dequantize(self, weight: QuantizedWeight, dtype: torch.dtype, scale: Tensor | None = None) -> Tensor:
        """The weights `(out_features, in_features)`; `scale` replaces the stored one."""
