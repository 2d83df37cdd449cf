"""The types of llama.cpp that a package may hold, and which of them a choice becomes.

A type stores a row of weights in blocks along in_features, each with a float16 scale `d`:

    Q2_0  w = (c - 1) d       2 bits, blocks of 64
    Q4_0  w = (c - 8) d       4 bits, blocks of 32, as are those below
    Q4_1  w = c d + m         4 bits and a float16 minimum
    Q5_0  w = (c - 16) d      5 bits
    Q5_1  w = c d + m         5 bits and a float16 minimum
    Q8_0  w = c d             8 bits, c from -128 to 127

    Q2_K  w = c d s - dmin m      2 bits, blocks of 256 as those below; 4-bit s and m for every 16 weights
    Q3_K  w = (c - 4) d s         3 bits, signed 6-bit s for every 16
    Q4_K  w = c d s - dmin m      4 bits, 6-bit s and m for every 32
    Q5_K  w = c d s - dmin m      5 bits, likewise
    Q6_K  w = (c - 32) d s        6 bits, signed 8-bit s for every 16

What the grid `k` stores are the numbers of the K types, so its weights go into the file as they are. Of the others,
bitfleet's `w = (code - zero) scale` is moved into the smallest of them that holds every code and zero of the choice:
codes move by whole numbers, so nothing is lost there. Scales of the grid `sym` are float16 numbers already, and such a
matrix is held exactly. Those of the grid `int` are float32 and are rounded, as is the minimum `m = -scale * zero`.
"""

from __future__ import annotations

from dataclasses import dataclass

from records.errors import InputError
from supernet.formats import FORMATS
from supernet.space import Choice

SYMMETRIC, INTEGER, SUPER_BLOCKS = "sym", "int", "k"  # the grids whose weights a type holds


@dataclass(frozen=True)
class TensorType:
    """How llama.cpp stores a row: `block` weights in `block_bytes` bytes. `number` stands for it in a file."""

    name: str
    number: int
    block: int
    block_bytes: int

    def row_bytes(self, in_features: int) -> int:
        """Bytes of a row; ValueError where blocks do not divide it."""
        if in_features % self.block:
            raise ValueError(f"rows of {in_features} do not divide into blocks of {self.block}")
        return in_features // self.block * self.block_bytes

    @property
    def bits_per_weight(self) -> float:
        """With scales and minima counted."""
        return self.block_bytes * 8 / self.block


F32 = TensorType("F32", 0, 1, 4)
Q4_0 = TensorType("Q4_0", 2, 32, 18)
Q4_1 = TensorType("Q4_1", 3, 32, 20)
Q5_0 = TensorType("Q5_0", 6, 32, 22)
Q5_1 = TensorType("Q5_1", 7, 32, 24)
Q8_0 = TensorType("Q8_0", 8, 32, 34)
Q2_0 = TensorType("Q2_0", 42, 64, 18)
Q2_K = TensorType("Q2_K", 10, 256, 84)
Q3_K = TensorType("Q3_K", 11, 256, 110)
Q4_K = TensorType("Q4_K", 12, 256, 144)
Q5_K = TensorType("Q5_K", 13, 256, 176)
Q6_K = TensorType("Q6_K", 14, 256, 210)
K_TYPES = (Q2_K, Q3_K, Q4_K, Q5_K, Q6_K)
TYPES = {kind.name: kind for kind in (F32, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_0, *K_TYPES)}

# By the grid and the bits, the smallest type for groups of 32 and their multiples. A code less any zero of 3 bits is
# from -7 to 7, which Q4_0 holds; of 7 bits from -127 to 127, which Q8_0 holds. 4 and 5 bits need a type with a minimum,
# and 8 bits with a zero of their own have none.
_HELD = {
    SYMMETRIC: {1: Q4_0, 2: Q4_0, 3: Q4_0, 4: Q4_0, 5: Q5_0, 6: Q8_0, 7: Q8_0, 8: Q8_0},
    INTEGER: {1: Q4_0, 2: Q4_0, 3: Q4_0, 4: Q4_1, 5: Q5_1, 6: Q8_0, 7: Q8_0},
    SUPER_BLOCKS: {2: Q2_K, 3: Q3_K, 4: Q4_K, 5: Q5_K, 6: Q6_K},
}
SMALLEST_GROUP = 32
_IN_BLOCKS = ", ".join(f"k{b}g{FORMATS[SUPER_BLOCKS].group_size(b)}" for b in _HELD[SUPER_BLOCKS])
_FIT = {32: "sym3g32, sym4g32, sym5g32, sym8g32", 64: "sym2g64, sym3g64, sym4g32, sym5g32, sym8g32"}


def type_of(choice: Choice) -> TensorType:
    """What the weights of a choice become; InputError says why nothing holds them, and what would be held."""
    if choice.grid not in _HELD:
        raise InputError(
            f"llama.cpp's types hold the grids {', '.join(_HELD)}, got {choice.grid}; train with one of them"
        )
    if choice.grid == SUPER_BLOCKS:
        return _k_type(choice)
    if choice.group_size % SMALLEST_GROUP:
        raise InputError(
            f"llama.cpp's blocks have a scale for every {SMALLEST_GROUP} weights, so groups must be multiples of "
            f"{SMALLEST_GROUP}, got {choice.group_size}; use {_FIT[32]}"
        )
    if choice.grid == SYMMETRIC and choice.bits <= 2 and choice.group_size % Q2_0.block == 0:
        return Q2_0
    found = _HELD[choice.grid].get(choice.bits)
    if found is None:
        raise InputError(
            f"llama.cpp has no type for {choice.bits} bits with a zero in every group, got {choice}; use sym8g32"
        )
    return found


def _k_type(choice: Choice) -> TensorType:
    found = _HELD[SUPER_BLOCKS].get(choice.bits)
    if found is None or choice.group_size != FORMATS[SUPER_BLOCKS].group_size(choice.bits):
        raise InputError(f"llama.cpp has no K type for {choice}; use {_IN_BLOCKS}")
    return found


def refusal(choice: Choice, in_features: int) -> str | None:
    """Why rows of `in_features` weights cannot be stored at `choice`, with the formats that can; None if they can."""
    if in_features % SMALLEST_GROUP:
        return f"llama.cpp stores rows in multiples of {SMALLEST_GROUP} weights, got {in_features}, so no format fits"
    try:
        found = type_of(choice)
    except InputError as error:
        return str(error)
    if choice.grid == SUPER_BLOCKS and in_features % found.block:
        return f"{found.name} has blocks of {found.block} weights, got rows of {in_features}; {_fitting(in_features)}"
    if in_features % choice.group_size:
        sizes = f"{choice.group_size} and {in_features}"
        return f"the group size must divide in_features, got {sizes}; {_fitting(in_features)}"
    assert in_features % found.block == 0  # every group is whole blocks
    return None


def _fitting(in_features: int) -> str:
    return f"use {_FIT[32 if in_features % 64 else 64]}"
