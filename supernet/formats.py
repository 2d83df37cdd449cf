"""Formats: what a weight on a grid is made of, as facts. Values only; nothing here imports torch.

A grid (`supernet.grids`) makes and reads the tensors that its format names; planning needs the facts alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

CODES = "codes"
WIDTHS = tuple(range(1, 9))


@dataclass(frozen=True)
class Side:
    """Numbers of so many `bits` beside the codes, one for each group, or for each block of the format's where `shared`;
    at these `widths` of the codes alone."""

    bits: int
    shared: bool = False
    widths: tuple[int, ...] = WIDTHS


@dataclass(frozen=True)
class Format:
    """Codes, and the `sides` that they are read with, by the part's name."""

    sides: Mapping[str, Side]
    symmetric: bool
    """Whether code 2^(bits - 1) always is 0: no file needs to say where its zero is."""
    folds: tuple[str, ...]
    """What an adapter may fold into."""
    group_sizes: Mapping[int, int]
    """The usual group size by bits; other widths have that of the next narrower one."""
    block: int = 1
    """Weights of a row that share numbers: rows are multiples of it. Above 1, group sizes are the usual ones."""
    widths: tuple[int, ...] = WIDTHS
    wider: str = ""
    """The grid of choices with more bits than the widest, where this one is asked for."""
    table_bits: tuple[int, ...] = (4, 8)
    """What an embedding or a head may be: below 4 bits a vocabulary falls apart, and runtimes refuse."""
    moving_zeros: tuple[int, ...] = ()
    """Widths at which a group's zero is no code but any number, and is trained as its scale is."""

    def parts(self, bits: int) -> tuple[str, ...]:
        """The names of a stored weight's tensors, by which modules and files know them."""
        return (CODES, *(name for name, side in self.sides.items() if bits in side.widths))

    def side_bits(self, bits: int, group_size: int, weights: int) -> int:
        """Bits that so many weights of a row take beside their codes, as a supernet stores them."""
        found = (side for side in self.sides.values() if bits in side.widths)
        return sum(weights // (self.block if side.shared else group_size) * side.bits for side in found)

    def group_size(self, bits: int) -> int:
        return self.group_sizes[max(width for width in self.group_sizes if width <= bits)]


_WITH_MINIMA = (2, 4, 5)

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "int": Format({"scale": Side(32), "zero": Side(8)}, False, ("scales", "codes", "zeros"), {1: 64}),
        "sym": Format({"scale": Side(16)}, True, ("scales", "codes"), {1: 64, 4: 32}),
        "k": Format(
            {
                "d": Side(16, True), "scales": Side(8),
                "dmin": Side(16, True, _WITH_MINIMA), "minima": Side(8, False, _WITH_MINIMA),
            },
            False, ("scales", "codes"), {2: 16, 4: 32, 6: 16, 7: 32}, block=256, widths=(2, 3, 4, 5, 6), wider="sym",
            table_bits=(4, 6, 8), moving_zeros=_WITH_MINIMA,
        ),
    }
)  # fmt: skip


def grid_at(grid: str, bits: int) -> str:
    """The grid of choices of so many bits where `grid` is asked for."""
    found = FORMATS[grid]
    return found.wider if found.wider and bits > found.widths[-1] else grid
