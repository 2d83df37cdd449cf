"""Codes and the numbers beside them as the super-blocks of llama.cpp's K types, bit for bit.

What goes in are the tensors that the grid `k` stores, so nothing is rounded here. The order within a block of 256 is
ggml's (ggml-quants.c): low bits of codes in lanes of 32 or 64 weights that share bytes, high bits likewise apart, and
whole numbers of 6 bits split into nibbles and pairs of bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.runtimes.llamacpp.formats import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, TensorType
from records.errors import InputError

Bytes = NDArray[Any]  # of uint8, as numpy finds it: mypy takes operators with whole numbers for signed
Sides = Mapping[str, Bytes]
ROWS_OF = 2**22  # weights that are packed together: a vocabulary is long


def rows_of(kind: TensorType, codes: Any, sides: Mapping[str, Any], name: str) -> Bytes:
    """uint8 `(out_features, row bytes)` of codes `(out_features, in_features)` and the parts beside them.

    InputError where a part is no number of the type's.
    """
    codes, given = np.asarray(codes, np.uint8), {part: np.asarray(values) for part, values in sides.items()}
    made = np.empty((len(codes), kind.row_bytes(codes.shape[1])), np.uint8)
    step = max(1, ROWS_OF // codes.shape[1])
    for start in range(0, len(codes), step):
        rows = slice(start, start + step)
        blocks = codes[rows].reshape(-1, kind.block)
        parts = {part: values[rows].reshape(len(blocks), -1) for part, values in given.items()}
        _check(kind, parts, name)
        made[rows] = np.concatenate(_LAYOUTS[kind](blocks, parts), axis=-1).reshape(len(made[rows]), -1)
    return made


def _check(kind: TensorType, parts: Sides, name: str) -> None:
    low, high = _NUMBERS[kind]
    for part, values in parts.items():
        if part in ("d", "dmin"):
            if values.dtype != np.float16 or not np.isfinite(values).all():
                raise InputError(f"{part} of {kind.name} are finite float16 numbers, {name} has others")
        elif values.min() < min(low, 0) or values.max() > high:
            raise InputError(
                f"{part} of {kind.name} are from {min(low, 0)} to {high}, {name} has {values.min()} to {values.max()}"
            )


def _q2(codes: Bytes, parts: Sides) -> list[Bytes]:
    numbers = parts["scales"] | parts["minima"] << 4
    return [numbers, _lanes(codes, 2), _half(parts["d"]), _half(parts["dmin"])]


def _q3(codes: Bytes, parts: Sides) -> list[Bytes]:
    numbers = (parts["scales"].astype(np.int16) + 32).astype(np.uint8)
    low = numbers[:, :8] & 15 | (numbers[:, 8:] & 15) << 4
    high = _across(numbers >> 4, 2, 4)
    return [_across(codes >> 2, 1, 32), _lanes(codes & 3, 2), low, high, _half(parts["d"])]


def _q4(codes: Bytes, parts: Sides) -> list[Bytes]:
    return [_half(parts["d"]), _half(parts["dmin"]), _six(parts["scales"], parts["minima"]), _lanes(codes, 4)]


def _q5(codes: Bytes, parts: Sides) -> list[Bytes]:
    first = [_half(parts["d"]), _half(parts["dmin"]), _six(parts["scales"], parts["minima"])]
    return [*first, _across(codes >> 4, 1, 32), _lanes(codes & 15, 4)]


def _q6(codes: Bytes, parts: Sides) -> list[Bytes]:
    low = (codes & 15).reshape(len(codes), 2, 2, 64)
    signed = parts["scales"].astype(np.int8).view(np.uint8)
    return [_merged(low, 4), _lanes(codes >> 4, 2), signed, _half(parts["d"])]


def _lanes(codes: Bytes, bits: int) -> Bytes:
    """Codes of so many bits: each byte has those of weights that are 32 apart."""
    return _merged(codes.reshape(len(codes), -1, 8 // bits, 32), bits)


def _across(codes: Bytes, bits: int, bytes_: int) -> Bytes:
    """Codes of so many bits: each of `bytes_` bytes has those of all numbers that are so many apart."""
    return _merged(codes.reshape(len(codes), 1, -1, bytes_), bits)


def _merged(codes: Bytes, bits: int) -> Bytes:
    """Of `(blocks, parts, codes of a byte, bytes)`, the first code in the lowest bits."""
    found = np.zeros((*codes.shape[:2], codes.shape[3]), np.uint8)
    for place in range(codes.shape[2]):
        found |= codes[:, :, place] << (place * bits)
    return found.reshape(len(codes), -1)


def _six(scales: Bytes, minima: Bytes) -> Bytes:
    """Eight scales and minima of 6 bits in 12 bytes: four of each whole, of the others the nibbles beside each other
    and the upper two bits above the whole ones."""
    first, second = (part[:, :4] | part[:, 4:] >> 4 << 6 for part in (scales, minima))
    return np.concatenate([first, second, scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4], axis=-1)


def _half(values: NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(values, "<f2").view(np.uint8)


_LAYOUTS: dict[TensorType, Callable[[Bytes, Sides], list[Bytes]]] = {
    Q2_K: _q2, Q3_K: _q3, Q4_K: _q4, Q5_K: _q5, Q6_K: _q6
}  # fmt: skip
_NUMBERS = {Q2_K: (0, 15), Q3_K: (-32, 31), Q4_K: (0, 63), Q5_K: (0, 63), Q6_K: (-128, 127)}
