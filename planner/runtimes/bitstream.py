"""Codes as one little-endian stream of bits in 32-bit words: what compressed-tensors (from 0.20 on) and MLX read.

Code i of a row of b-bit codes takes the bits from i * b on, the lowest bit first, so that 32 codes are b whole words
and a code may begin in one word and end in the next. A row whose codes end within a word is filled with zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


WORD_BYTES = 4
LANE = 8  # codes, which are as many whole bytes as a code has bits


def words(count: int, bits: int) -> int:
    """Words that a row of `count` codes takes."""
    return -(-count * bits // (8 * WORD_BYTES))


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """uint8 codes `(rows, count)` below 2**bits -> words `(rows, words(count, bits))`, little-endian."""
    import numpy as np

    rows, count = codes.shape
    lanes = np.pad(codes, ((0, 0), (0, -count % LANE))).reshape(rows, -1, LANE)
    joined = np.zeros(lanes.shape[:2], "<u8")
    for i in range(LANE):
        joined |= lanes[..., i].astype("<u8") << np.uint64(i * bits)
    octets = joined[..., None].view(np.uint8)[..., :bits].reshape(rows, -1)
    packed = np.zeros((rows, words(count, bits) * WORD_BYTES), np.uint8)
    kept = min(octets.shape[1], packed.shape[1])  # a lane that is filled up may be bytes longer than the codes
    packed[:, :kept] = octets[:, :kept]
    return packed.view("<u4")


def unpack(packed: NDArray[np.uint32], bits: int, count: int) -> NDArray[np.uint8]:
    """The inverse of `pack` for rows of `count` codes."""
    import numpy as np

    lanes = -(-count // LANE)
    octets = np.ascontiguousarray(packed, "<u4").view(np.uint8)
    octets = np.pad(octets, ((0, 0), (0, max(0, lanes * bits - octets.shape[1]))))[:, : lanes * bits]
    wide = np.zeros((len(packed), lanes, LANE), np.uint8)
    wide[..., :bits] = octets.reshape(len(packed), lanes, bits)
    joined = wide.view("<u8")
    codes = (joined >> np.arange(0, LANE * bits, bits, dtype=np.uint64)) & np.uint64(2**bits - 1)
    return codes.astype(np.uint8).reshape(len(packed), -1)[:, :count]
