"""Codes and zeros as ONNX Runtime stores them: low code first within a byte, along in_features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack the last axis, `8 / bits` codes a byte; a row that ends within a byte is filled with zeros."""
    per_byte = 8 // bits
    if per_byte == 1:
        return np.ascontiguousarray(codes)
    missing = -codes.shape[-1] % per_byte
    if missing:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], missing), np.uint8)], axis=-1)
    parts = codes.reshape(*codes.shape[:-1], -1, per_byte)
    packed = parts[..., 0].copy()
    for i in range(1, per_byte):
        packed |= parts[..., i] << np.uint8(bits * i)
    return packed


def unpack(packed: NDArray[np.uint8], bits: int, length: int) -> NDArray[np.uint8]:
    """The inverse of `pack` for rows of `length` codes."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1)[..., :length]
