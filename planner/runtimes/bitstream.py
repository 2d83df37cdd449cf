"""Codes as one little-endian stream of bits in 32-bit words: what compressed-tensors (from 0.20 on) and MLX read.

Code i of a row of b-bit codes takes the bits from i * b on, the lowest bit first, so that 32 codes are b whole words
and a code may begin in one word and end in the next. A row whose codes end within a word is filled with zeros.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WORD_BITS = 32
CHUNK_CODES = 2**22  # a bit is a byte on the way: so many codes at once


def words(count: int, bits: int) -> int:
    """Words that a row of `count` codes takes."""
    return -(-count * bits // WORD_BITS)


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """uint8 codes `(rows, count)` below 2**bits -> words `(rows, words(count, bits))`, little-endian."""
    rows, count = codes.shape
    packed = np.empty((rows, words(count, bits)), "<u4")
    step = max(1, CHUNK_CODES // max(1, count))
    for start in range(0, rows, step):
        packed[start : start + step] = _packed(codes[start : start + step], bits)
    return packed


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    rows, count = codes.shape
    missing = words(count, bits) * WORD_BITS - count * bits
    single = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little").reshape(rows, count * bits)
    return np.packbits(np.pad(single, ((0, 0), (0, missing))), axis=-1, bitorder="little").view("<u4")


def unpack(packed: NDArray[np.uint32], bits: int, count: int) -> NDArray[np.uint8]:
    """The inverse of `pack` for rows of `count` codes."""
    octets = np.ascontiguousarray(packed, "<u4").view(np.uint8)
    single = np.unpackbits(octets, axis=-1, count=count * bits, bitorder="little")
    return np.packbits(single.reshape(len(packed), count, bits), axis=-1, bitorder="little")[..., 0]
