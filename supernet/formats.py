"""Formats: what a weight on a grid is made of, as facts. Values only; nothing here imports torch.

A grid (`supernet.grids`) makes and reads the tensors that its format names; planning needs the facts alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

CODES = "codes"


@dataclass(frozen=True)
class Format:
    """Codes, and for each group of inputs the `sides` that they are read with: bits a group, by the part's name."""

    sides: Mapping[str, int]
    symmetric: bool
    """Whether code 2^(bits - 1) always is 0: no file needs to say where its zero is."""
    folds: tuple[str, ...]
    """What an adapter may fold into."""
    group_sizes: Mapping[int, int]
    """The usual group size by bits; other widths have that of the next narrower one."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of a stored weight's tensors, by which modules and files know them."""
        return (CODES, *self.sides)

    @property
    def side_bits(self) -> int:
        """Bits that a group takes beside its codes, as a supernet stores it."""
        return sum(self.sides.values())

    def group_size(self, bits: int) -> int:
        return self.group_sizes[max(width for width in self.group_sizes if width <= bits)]


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "int": Format({"scale": 32, "zero": 8}, False, ("scales", "codes", "zeros"), {1: 64}),
        "sym": Format({"scale": 16}, True, ("scales", "codes"), {1: 64, 4: 32}),
    }
)
