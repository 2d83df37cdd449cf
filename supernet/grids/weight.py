"""The value that holds one matrix on a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from supernet.formats import CODES
from supernet.grids.packing import first
from supernet.space import Choice
from supernet.spec import Channels

if TYPE_CHECKING:
    from supernet.grids.base import Grid

Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class QuantizedWeight:
    """One matrix on a `grid`: the tensors that the grid's format names, each `(out_features, ...)`.

    `codes` are uint8 `(out_features, bytes)`, packed by `supernet.grids.packing`; what else there is stands for groups
    of inputs, in order. What it all amounts to, the grid says: `w = (code - zero) * scale`.

    Where several processes share a weight out (`supernet.shard`), `codes` is this one's part, and `gather` makes them
    whole for as long as somebody needs them: what computes with the codes asks for `packed()`.
    """

    grid: Grid
    parts: Parts
    choice: Choice
    in_features: int
    gather: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        expected = self.grid.format.parts(self.choice.bits)
        if tuple(self.parts) != expected:
            raise ValueError(f"the parts of {self.choice} must be {expected}, got {tuple(self.parts)}")
        self.grid.check(self)

    @property
    def codes(self) -> Tensor:
        return self.parts[CODES]

    @property
    def scale(self) -> Tensor:
        """Of each group, a float `(out_features, groups)`."""
        return self.grid.scale(self)

    @property
    def zero(self) -> Tensor:
        """The code that stands for 0 in each group, `(out_features, groups)`."""
        return self.grid.zero(self)

    @property
    def shape(self) -> tuple[int, int]:
        return self._side.shape[0], self.in_features

    @property
    def device(self) -> torch.device:
        return self._side.device

    @property
    def _side(self) -> Tensor:
        """A part that is whole in every process."""
        return next(part for name, part in self.parts.items() if name != CODES)

    def packed(self) -> Tensor:
        """The codes of the whole matrix."""
        return self.codes if self.gather is None else self.gather(self.codes)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights `(out_features, in_features)`."""
        return self.grid.dequantize(self, dtype)

    def with_parts(self, **parts: Tensor) -> QuantizedWeight:
        """The same with these parts in place of its own."""
        return replace(self, parts={**self.parts, **parts})

    def with_sides(self, scale: Tensor, zero: Tensor) -> QuantizedWeight:
        """The same codes with other scales and zeros, as the grid holds them."""
        return self.with_parts(**self.grid.sides(scale, zero, self.choice.bits))

    def keep(self, kept: int, channels: Channels) -> QuantizedWeight:
        """The first `kept` channels alone."""
        choice = replace(self.choice, kept=kept)
        if channels.parts:
            parts = {name: _rows(part, kept, channels) for name, part in self._whole().items()}
            return QuantizedWeight(self.grid, parts, choice, self.in_features)
        parts = {name: part[:, : part.shape[1] * kept // self.in_features] for name, part in self.parts.items()}
        parts[CODES] = first(self.packed(), self.choice.bits, self.in_features, kept)
        return QuantizedWeight(self.grid, parts, choice, kept)

    def rows(self, which: Any) -> QuantizedWeight:
        """The rows that a slice or a tensor of numbers picks."""
        return self.join({name: part[which] for name, part in self._whole().items()})

    def split(self, rows: int) -> Iterator[QuantizedWeight]:
        """The same in stretches of so many rows."""
        for parts in zip(*(part.split(rows) for part in self._whole().values()), strict=True):
            yield self.join(dict(zip(self.parts, parts, strict=True)))

    @property
    def join(self) -> Callable[[Parts], QuantizedWeight]:
        """Makes such a weight of its parts, whole: for who holds them by themselves."""
        return partial(_joined, self.grid, self.choice, self.in_features)

    def to(self, device: torch.device) -> QuantizedWeight:
        """The same on `device`; nothing is copied where it is there already."""
        return replace(self, parts={name: part.to(device) for name, part in self.parts.items()})

    def _whole(self) -> dict[str, Tensor]:
        return {**self.parts, CODES: self.packed()}


class Stored(Protocol):
    """A weight as it is held, whole or in part: its tensors, and what joins them into the whole."""

    @property
    def parts(self) -> Parts: ...
    @property
    def in_features(self) -> int: ...
    @property
    def join(self) -> Callable[[Parts], QuantizedWeight]: ...


def _joined(grid: Grid, choice: Choice, in_features: int, parts: Parts) -> QuantizedWeight:
    return QuantizedWeight(grid, parts, choice, in_features)


def _rows(tensor: Tensor, kept: int, channels: Channels) -> Tensor:
    spans = [tensor[start:stop] for start, stop in channels.spans(kept)]
    return spans[0] if len(spans) == 1 else torch.cat(spans)
