"""Codes of 1 to 8 bits in bytes, without padding bits between them.

The width is split into power-of-two fields (3 = 2 + 1, 6 = 4 + 2), lowest bits first; each field packs 8/field codes a
byte, the first code in the lowest bits. At 2, 4 and 8 bits this is one field, and the layout that ONNX Runtime's
MatMulNBits reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

CONTAINERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of so many bytes."""


def fields(bits: int) -> list[int]:
    """Widths of the fields that `bits` is stored in."""
    return [width for width in (8, 4, 2, 1) if bits & width]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that a row of `count` codes takes."""
    return sum(-(-count * width // 8) for width in fields(bits))


def first(packed: Tensor, bits: int, count: int, kept: int) -> Tensor:
    """Of rows of `count` packed codes, the first `kept`, a multiple of 8: every field then ends on a whole byte."""
    if kept % 8:
        raise ValueError(f"codes are cut at multiples of 8, got {kept}")
    parts, start = [], 0
    for width in fields(bits):
        parts.append(packed[:, start : start + kept * width // 8])
        start += -(-count * width // 8)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes `(rows, count)` below 2**bits -> uint8 `(rows, packed_bytes(count, bits))`."""
    parts, shift = [], 0
    for width in fields(bits):
        part = (codes >> shift) & (2**width - 1)
        shift += width
        per_byte = 8 // width
        part = torch.nn.functional.pad(part, (0, -part.shape[1] % per_byte))
        lanes = part.view(part.shape[0], -1, per_byte)
        byte = torch.zeros(lanes.shape[:2], dtype=torch.uint8, device=codes.device)
        for lane in range(per_byte):
            byte |= lanes[..., lane] << (lane * width)
        parts.append(byte)
    return torch.cat(parts, dim=1)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack`: uint8 codes `(rows, count)`."""
    if bits == 8:
        return packed
    codes = None
    start = shift = 0
    for width in fields(bits):
        size = -(-count * width // 8)
        part = _spread(packed[:, start : start + size], width)[:, :count]
        codes = part if codes is None else codes | (part << shift)
        start, shift = start + size, shift + width
    assert codes is not None
    return codes


def _shifted(packed: Tensor, width: int) -> Tensor:
    """As `_spread`, in two kernels: where each is launched, fewer bytes through memory are what counts."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
    return packed.unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and_(2**width - 1).flatten(1)


def _spread(packed: Tensor, width: int) -> Tensor:
    """Each of the codes in a byte becomes a byte, `(rows, bytes)` -> `(rows, codes)`.

    All of a byte's codes move at once, in a whole number of as many bytes, whose halves part until each has one code: a
    processor's vectors hold many such numbers, where a loop over the few codes of a byte fills none.
    """
    if packed.device.type != "cpu":
        return _shifted(packed, width)
    codes = 8 // width
    whole = packed.to(CONTAINERS[codes]).contiguous()
    apart, size = 8 * codes, 8  # bits from one stretch of codes to the next, and of each stretch
    while size > width:
        apart, size = apart // 2, size // 2
        mask = sum(((1 << size) - 1) << at for at in range(0, 8 * codes, apart))
        whole = (whole | (whole << (apart - size))) & mask
    return whole.view(torch.uint8)  # the lowest byte comes first in memory
