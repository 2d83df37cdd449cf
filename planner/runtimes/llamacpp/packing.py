"""Codes, scales and zeros as the blocks of a llama.cpp type, checked weight by weight: what does not fit is an error.

The order of the codes within a block is ggml's (ggml-quants.c): types of 4 and 5 bits keep weight j in the low half of
byte j and weight j + 16 in its high half, and the fifth bits apart; Q2_0 keeps four weights in a row in each byte, the
first in the lowest bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.runtimes.llamacpp.formats import Q2_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, TensorType
from records.errors import InputError

Bytes = NDArray[np.uint8]
# What is added to `code - zero` where a type has no minimum, and the highest code. Q2_0 turns the numbers around.
_MIDDLE = {Q4_0: (8, 15), Q5_0: (16, 31), Q8_0: (128, 255)}
_MINIMUM = {Q4_1: 15, Q5_1: 31}
ROWS_OF = 2**22  # weights that are packed together: a vocabulary is long


def rows_of(kind: TensorType, codes: Any, scale: Any, zero: Any, name: str) -> Bytes:
    """uint8 `(out_features, row bytes)` of codes `(out_features, in_features)`, scale and zero `(out_features,
    groups)`.

    InputError where a scale leaves the range of float16, or where codes are none of the type's.
    """
    codes, scale, zero = np.asarray(codes), np.asarray(scale, np.float32), np.asarray(zero)
    made = np.empty((len(codes), kind.row_bytes(codes.shape[1])), np.uint8)
    step = max(1, ROWS_OF // codes.shape[1])
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        made[part] = _rows(kind, codes[part], scale[part], zero[part], name)
    return made


def _rows(kind: TensorType, codes: Any, scale: Any, zero: Any, name: str) -> Bytes:
    rows, columns = codes.shape
    blocks = columns // kind.block
    codes = codes.reshape(rows, blocks, kind.block).astype(np.int16)
    scale, zero = (np.repeat(part, blocks // part.shape[1], axis=1) for part in (scale, zero))
    zero = zero.astype(np.int16)[..., None]
    if kind in _MINIMUM:
        low = np.zeros_like(zero)
        found, top = codes, _MINIMUM[kind]
        parts = [_half(scale, name), _half(-scale * zero[..., 0], name)]
    else:
        low = codes - zero
        found, top = (1 - low, 3) if kind == Q2_0 else (low + _MIDDLE[kind][0], _MIDDLE[kind][1])
        parts = [_half(-scale if kind == Q2_0 else scale, name)]
    if found.min() < 0 or found.max() > top:
        raise InputError(f"{kind.name} holds codes from 0 to {top}, {name} has {found.min()} to {found.max()}")
    blocked = np.concatenate([*parts, *_packed(kind, found.astype(np.uint8))], axis=-1)
    return np.asarray(blocked.reshape(rows, -1), np.uint8)


def _half(values: Any, name: str) -> Bytes:
    """float16 `(rows, blocks)` as two bytes each."""
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if not np.isfinite(halves).all():
        raise InputError(f"scales of a GGUF file are float16 numbers, {name} has one of {abs(values).max():.3g}")
    return np.asarray(halves[..., None].view(np.uint8), np.uint8)


def _packed(kind: TensorType, codes: Bytes) -> list[NDArray[Any]]:
    """The codes `(rows, blocks, block)` of each block in its bytes."""
    if kind == Q8_0:
        return [codes ^ 0x80]  # from 128 in the middle to two's complement
    if kind == Q2_0:
        lanes = codes.reshape(*codes.shape[:2], -1, 4)
        return [lanes[..., 0] | lanes[..., 1] << 2 | lanes[..., 2] << 4 | lanes[..., 3] << 6]
    low, high = codes[..., :16] & 15, codes[..., 16:] & 15
    fifth = [np.packbits(codes >> 4, axis=-1, bitorder="little")] if kind in (Q5_0, Q5_1) else []
    return [*fifth, low | high << 4]
